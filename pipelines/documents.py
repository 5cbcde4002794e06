"""A report as people have it, plain text, Word, PDF or DICOM -> its text. Judges nothing of it."""

from __future__ import annotations

from pathlib import Path

from encoders.errors import MissingInput, UnreadableFile

MAX_BYTES = 20 * 2**20  # a report of a few pages with its letterhead
ENDINGS = (".txt", ".docx", ".pdf", ".dcm")


def read_report(file: Path) -> str:
    """The text of a report file.

    Raises:
        MissingInput: no such file.
        UnreadableFile: too large, broken, without text, or of another kind.
    """
    if not file.is_file():
        raise MissingInput("the report file does not exist (any more); choose it again")
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableFile(f"a report file of more than {MAX_BYTES // 2**20} MiB; refused")
    data = file.read_bytes()
    if data[:5] == b"%PDF-":
        text = _of_pdf(data)
    elif data[:4] == b"PK\x03\x04":
        text = _of_word(file)
    elif data[128:132] == b"DICM":
        text = _of_dicom(file)
    else:
        text = _decoded(data)
    if not text.strip():
        raise UnreadableFile(
            "the report file holds no text; if it is a scan, type the report instead"
        )
    return text.strip()


def _decoded(data: bytes) -> str:
    """Text in UTF-8, UTF-16 with its mark, or the Chinese and western pages of old systems."""
    if b"\0" in data and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableFile("the report file is no text, Word, PDF or DICOM document")
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _of_pdf(data: bytes) -> str:
    from encoders.dicom.documents import lines_of_pdf

    try:
        return "\n".join(lines_of_pdf(data))
    except ValueError as error:
        raise UnreadableFile("the PDF cannot be read; paste the report's text instead") from error


def _of_word(file: Path) -> str:
    """Paragraphs and table rows in their order."""
    import zipfile

    import docx
    from docx.opc.exceptions import OpcError
    from docx.table import Table

    try:
        with zipfile.ZipFile(file) as archive:
            if sum(part.file_size for part in archive.infolist()) > 10 * MAX_BYTES:
                raise UnreadableFile("the Word file unpacks to more than is safe; refused")
        lines = []
        for part in docx.Document(str(file)).iter_inner_content():
            rows = part.rows if isinstance(part, Table) else ()
            lines += ["\t".join(cell.text for cell in row.cells) for row in rows]
            lines += [] if isinstance(part, Table) else [part.text]
        return "\n".join(lines)
    except (OpcError, KeyError, ValueError, zipfile.BadZipFile, SyntaxError) as error:
        # SyntaxError: what lxml's parser raises
        raise UnreadableFile("the Word file cannot be read; paste the report's text") from error


def _of_dicom(file: Path) -> str:
    from encoders.dicom import scan
    from encoders.dicom.documents import report_texts

    texts, problems = report_texts(scan(file).documents)
    if not texts:
        why = f": {problems[0].message}" if problems else ""
        raise UnreadableFile(f"the DICOM file holds no report that can be read{why}")
    return texts[0].text
