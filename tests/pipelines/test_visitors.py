"""Whose file is it: ownership, tabs, age, and paths that try to lead elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.ui.visitors import Visitors
from tests.served import ROOT


@pytest.fixture
def visitors(tmp_path: Path) -> Visitors:
    (tmp_path / "cache").mkdir()
    return Visitors(tmp_path / "cache")


def sent_by(visitors: Visitors, visitor: str, name: str, size: int = 3) -> Path:
    file = visitors.folder / name / "scan.dcm"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    visitors.grant(visitor, str(file), sent=True)
    return file


def test_a_file_is_its_senders_and_theirs_to_whom_it_was_named(visitors: Visitors):
    file = sent_by(visitors, "anna", "a")
    assert visitors.may_have("anna", str(file))
    assert not visitors.may_have("ben", str(file))
    assert not visitors.may_have("", str(file))
    visitors.grant("ben", str(file))
    assert visitors.may_have("ben", str(file))
    assert visitors.sent("ben") == (0, 0)


def test_every_way_to_write_a_path_means_the_same_file(visitors: Visitors):
    file = sent_by(visitors, "anna", "a")
    (visitors.folder.parent / "link").symlink_to(file)
    for way in (
        f"{visitors.folder}/./a/../a/scan.dcm",
        f"/{file}",
        os.path.relpath(file),
        str(visitors.folder.parent / "link"),
    ):
        assert visitors.inside(way) == file
        assert not visitors.may_have("ben", way)


@pytest.mark.parametrize("path", ["/etc/passwd", "cache/../../x", "\0", "x" * 10_000])
def test_nothing_outside_the_folder_is_ever_granted(visitors: Visitors, path: str):
    visitors.grant("anna", path, sent=True)
    assert not visitors.may_have("anna", path)
    assert visitors.sent("anna") == (0, 0)


def test_what_was_sent_is_counted_until_it_is_gone(visitors: Visitors):
    sent_by(visitors, "anna", "a", 10)
    sent_by(visitors, "anna", "b", 32)
    assert visitors.sent("anna") == (2, 42)
    visitors.sweep(max_age_s=-1)
    assert visitors.sent("anna") == (0, 0)


def test_files_go_with_the_last_tab_and_not_with_another(visitors: Visitors):
    visitors.arrive("anna")
    visitors.arrive("anna")
    file = sent_by(visitors, "anna", "a")
    visitors.leave("anna")
    assert file.exists()
    visitors.leave("anna")
    assert not file.parent.exists()
    assert not visitors.may_have("anna", str(file))


def test_what_two_have_sent_goes_with_neither_alone(visitors: Visitors):
    """Gradio keeps equal files once: the same study sent by two is one file."""
    for visitor in ("anna", "ben"):
        visitors.arrive(visitor)
        file = sent_by(visitors, visitor, "same")
    visitors.leave("anna")
    assert file.exists()
    assert visitors.may_have("ben", str(file))
    assert not visitors.may_have("anna", str(file))


def test_programs_files_stay_until_they_are_old(visitors: Visitors):
    visitors.arrive("")
    file = sent_by(visitors, "", "a")
    visitors.leave("")
    assert file.exists()
    visitors.sweep(max_age_s=60)
    assert file.exists()
    visitors.sweep(max_age_s=-1)
    assert not file.parent.exists()
    assert visitors.folder.is_dir()


def test_a_process_has_a_cache_of_its_own_that_goes_with_it():
    code = (
        "from pathlib import Path\nfrom pipelines.ui.visitors import all_visitors\n"
        "from gradio.utils import get_upload_folder\n"
        "folder = all_visitors().folder\nassert Path(get_upload_folder()).resolve() == folder\n"
        "assert folder.stat().st_mode & 0o077 == 0\n"
        "(folder / 'a').write_text('b')\nprint(folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not Path(done.stdout.strip()).exists()
