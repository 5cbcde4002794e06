"""Reports as people have them become text; what is none is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import docx
import pytest
from reportlab.pdfgen.canvas import Canvas

from encoders.errors import MissingInput, UnreadableFile
from pipelines.documents import MAX_BYTES, read_report
from tests.makers import write_sr

WORDS = "Left lung nodule measuring 14 mm."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_text_of_old_and_new_systems_reads_the_same(tmp_path: Path, encoding: str):
    (tmp_path / "report.txt").write_bytes(f"{WORDS} 左肺结节。\n".encode(encoding))
    assert read_report(tmp_path / "report.txt") == f"{WORDS} 左肺结节。"


def test_word_gives_paragraphs_and_tables_in_order(tmp_path: Path):
    document = docx.Document()
    document.add_paragraph("FINDINGS:")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "nodule", "14 mm"
    document.add_paragraph(WORDS)
    document.save(str(tmp_path / "report.docx"))
    assert read_report(tmp_path / "report.docx") == f"FINDINGS:\nnodule\t14 mm\n{WORDS}"


def test_pdf_gives_its_lines(tmp_path: Path):
    page = Canvas(str(tmp_path / "report.pdf"))
    page.drawString(72, 720, WORDS)
    page.save()
    assert read_report(tmp_path / "report.pdf") == WORDS


def test_a_structured_report_gives_its_sentences_and_no_name(tmp_path: Path):
    write_sr(tmp_path / "report.dcm", WORDS)
    text = read_report(tmp_path / "report.dcm")
    assert WORDS in text
    assert "Zebra" not in text


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.pdf", b"%PDF-1.4 broken", "PDF cannot be read"),
        ("a.docx", b"PK\x03\x04broken", "Word file cannot be read"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.bin", b"\x01\0\x02\0\0\0", "no text, Word, PDF or DICOM"),
        ("a.txt", b"x" * (MAX_BYTES + 1), "refused"),
    ],
)
def test_what_is_no_report_is_refused_by_its_reason(
    tmp_path: Path, name: str, data: bytes, reason: str
):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableFile, match=reason):
        read_report(tmp_path / name)


def test_a_file_that_is_gone_is_help(tmp_path: Path):
    with pytest.raises(MissingInput, match="choose it again"):
        read_report(tmp_path / "none.txt")
