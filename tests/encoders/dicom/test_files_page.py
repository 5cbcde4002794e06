"""docs/dicom_files.md says of every file of pydicom's collection what a scan says today."""

from __future__ import annotations

from pathlib import Path

from benchmarks.dicom_files import collection, files_of, header_words

PAGE = (Path(__file__).parents[3] / "docs/dicom_files.md").read_text(encoding="utf-8")


def test_every_file_is_read_right_or_refused_by_name():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and "| file |" not in line]
    rows = [line.split(" | ") for line in lines]
    assert len(rows) > 80
    assert "DIFFERS" not in PAGE
    assert "Error:" not in PAGE
    for row in rows:
        assert "refused: " in " ".join(row) or " x " in row[-1], row


def test_headers_of_pydicoms_collection_are_as_the_page_says():
    section = PAGE.split("## pydicom's collection")[1].split("\n## ")[0]
    checked, files = 0, {p.relative_to(collection()).as_posix() for p in files_of(collection())}
    for line in section.splitlines():
        if not line.startswith("| ") or line.startswith("| file"):
            continue
        names, header, _ = (cell.strip() for cell in line.strip("|").split(" | "))
        folder, _, first = names.split(" and ")[0].rpartition("/")
        for name in first.split(", "):
            path = f"{folder}/{name}".lstrip("/")
            assert path in files
            assert header_words(collection() / path) == header, path
            checked += 1
    assert checked > 90
