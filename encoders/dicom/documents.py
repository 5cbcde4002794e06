"""The words a study brings with it: structured reports, encapsulated PDF and CDA, as text.

Only content is taken. Who the patient, the observer and the clinic are (document headers, observer
contexts, names, UIDs) is left out, and what the object's own header names is blanked wherever it
recurs. Offered as the study's report; nothing uses it unasked.
"""

from __future__ import annotations

import base64
import io
import itertools
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from xml.etree import ElementTree

from encoders.dicom.results import MANUFACTURER
from encoders.dicom.silence import quiet_pydicom
from encoders.errors import UnreadableFile
from encoders.features import Problem

MAX_DEPTH, MAX_ITEMS, MAX_PAGES, MAX_CHARS = 32, 20_000, 200, 200_000
MAX_BYTES = 64 * 2**20
MAX_ELEMENTS = 10_000  # beside those of its sequences
REMOVED = "[removed]"
_NAMING = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName",
    "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "PatientBirthDate",
    "AccessionNumber", "StudyID", "AdmissionID", "IssuerOfPatientID", "InstitutionName",
    "InstitutionAddress", "InstitutionalDepartmentName", "ReferringPhysicianName",
    "PerformingPhysicianName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy",
    "OperatorsName", "RequestingPhysician", "StationName", "StudyInstanceUID",
)  # fmt: skip
_PERSONS = tuple(k for k in _NAMING if k.startswith("Patient") or "Physician" in k or "Oper" in k)
_LABELS = re.compile(
    r"^\W*(patient('s)?( name| id)?|name|first name|last name|surname|mrn|medical record( number)?|id"
    r"|dob|date of birth|birth ?date|born|accession( number| no\.?)?|address|phone|referring"
    r"( physician| doctor)?|requesting physician|attending|radiologist|dictated by|signed by"
    r"|reported by|physician|doctor|institution|hospital|department)\s*[:#].*$",
    re.IGNORECASE,
)


class Opener(Protocol):
    """A document object as `scan` lists it."""

    @property
    def name(self) -> str:
        """Its file name inside the input."""

    @property
    def kind(self) -> Literal["SR", "PDF", "CDA"]:
        """What sort of text it holds."""

    def open(self) -> io.BytesIO | Path:
        """What pydicom reads."""


@dataclass(frozen=True)
class ReportText:
    """Text that the study itself offers as its report."""

    kind: Literal["SR", "PDF", "CDA"]
    text: str
    name: str


def report_texts(documents: Iterable[Opener]) -> tuple[list[ReportText], list[Problem]]:
    """Every document that can be read, the one with the most to say first; and why others not."""
    texts, problems = [], []
    for document in documents:
        try:
            texts.append(read_document(document))
        except UnreadableFile as error:
            problems.append(Problem("UNREADABLE_DOCUMENT", str(error), document.name))
    return sorted(texts, key=lambda text: -len(text.text)), problems


@quiet_pydicom()
def read_document(document: Opener) -> ReportText:
    """The content of one document object, without its header.

    Raises:
        UnreadableFile: it is a result of ours, is broken, holds no text, or more than is safe to unpack.
    """
    from pydicom.errors import InvalidDicomError

    try:
        header = _read(document)
        if header.get("Manufacturer") == MANUFACTURER:
            raise UnreadableFile(f"{document.name!r} is a result of CrossRead, no report to check")
        lines = _READERS[document.kind](header)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, EOFError, OSError,
            RecursionError, NotImplementedError, InvalidDicomError, ElementTree.ParseError,
            zlib.error) as error:  # fmt: skip
        # what pydicom, pypdf and the XML parser let through on broken data
        raise UnreadableFile(
            f"{document.name!r} holds a {document.kind} document that cannot be read"
            f" ({type(error).__name__}); export it again"
        ) from error
    text = _without_names("\n".join(lines)[:MAX_CHARS], header)
    if not text:
        raise UnreadableFile(f"{document.name!r} is a {document.kind} document without text")
    return ReportText(document.kind, text, document.name)


def _read(document: Opener) -> Any:
    """The data set, as long as it has a sane number of elements."""
    from pydicom.filereader import read_partial

    count = itertools.count()

    def is_too_long(*_: object) -> bool:
        if next(count) > MAX_ELEMENTS:
            raise ValueError("more elements than any document has")
        return False

    target = document.open()
    with target.open("rb") if isinstance(target, Path) else target as stream:
        return read_partial(stream, is_too_long)


def _without_names(text: str, header: Any) -> str:
    """Lines that introduce a person or an id are dropped, values of the header blanked."""
    words = sorted(set(_names_of(header)), key=len, reverse=True)
    kept = [" ".join(line.split()) for line in text.splitlines()]
    kept = [line for line in kept if line and not _LABELS.match(line)]
    found = "\n".join(kept)
    if words:
        pattern = r"(?<!\w)(" + "|".join(map(re.escape, words)) + r")(?!\w)"
        found = re.sub(pattern, REMOVED, found, flags=re.IGNORECASE)
    return found


def _names_of(header: Any) -> Iterator[str]:
    for keyword in _NAMING:
        value = header.get(keyword)
        for one in value if isinstance(value, list | tuple) else [value]:
            text = str(one or "").strip()
            if len(text) >= 3:
                yield text
            if keyword in _PERSONS:
                yield from (part for part in re.split(r"[\^=,\s]+", text) if len(part) >= 3)
            if keyword == "PatientBirthDate" and re.fullmatch(r"\d{8}", text):
                year, month, day = text[:4], text[4:6], text[6:]
                for order in ((year, month, day), (day, month, year), (month, day, year)):
                    yield from (mark.join(order) for mark in "-./")


# --- structured reports (PS3.3 C.17.3) -----------------------------------------------------------


def _sr_lines(header: Any) -> list[str]:
    lines: list[str] = []
    for item in header.get("ContentSequence") or ():
        _sr_item(item, lines, 0)
    return lines


def _sr_item(item: Any, lines: list[str], depth: int) -> None:
    """One content item: headings and text as lines, codes and numbers with what they are of."""
    if depth > MAX_DEPTH or len(lines) > MAX_ITEMS:
        raise ValueError("the content tree is too deep or too long")
    if item.get("RelationshipType") in ("HAS OBS CONTEXT", "HAS CONCEPT MOD"):
        return  # who observed; what qualifies the item above stands in its line
    children = item.get("ContentSequence") or ()
    line = _sr_line(item)
    if line:
        modifiers = [_sr_value(c) for c in children if c.get("RelationshipType") == "HAS CONCEPT MOD"]  # fmt: skip
        extra = ", ".join(m for m in modifiers if m)
        lines.append(f"{line} ({extra})" if extra else line)
    for child in children:
        _sr_item(child, lines, depth + 1)


def _sr_line(item: Any) -> str:
    kind, concept, value = item.get("ValueType", ""), _meaning(item, "ConceptNameCodeSequence"), _sr_value(item)  # fmt: skip
    if kind == "CONTAINER":
        return concept
    if kind == "TEXT" or not concept:
        return value
    return f"{concept}: {value}" if value else ""


def _sr_value(item: Any) -> str:
    """The value of TEXT, CODE and NUM; of names, dates, UIDs and references nothing."""
    kind = item.get("ValueType", "")
    if kind == "TEXT":
        return str(item.get("TextValue") or "").strip()
    if kind == "CODE":
        return _meaning(item, "ConceptCodeSequence")
    if kind == "NUM" and item.get("MeasuredValueSequence"):
        measured = item.MeasuredValueSequence[0]
        units = (measured.get("MeasurementUnitsCodeSequence") or [None])[0]
        unit = str(units.get("CodeValue", "")) if units is not None else ""
        if unit == "1" or unit.startswith("{"):  # UCUM's "no unit" and counts
            unit = ""
        return f"{measured.get('NumericValue', '')} {unit}".strip()
    return ""


def _meaning(item: Any, sequence: str) -> str:
    codes = item.get(sequence)
    return str(codes[0].get("CodeMeaning") or "").strip() if codes else ""


# --- encapsulated documents (PS3.3 C.24.2) -------------------------------------------------------


def _encapsulated(header: Any) -> bytes:
    data = bytes(header.get("EncapsulatedDocument") or b"")
    length = header.get("EncapsulatedDocumentLength")
    if not data or len(data) > MAX_BYTES:
        raise ValueError("no encapsulated document, or one too large")
    return data[: int(length)] if length else data.rstrip(b"\0")


def _pdf_lines(header: Any) -> list[str]:
    return lines_of_pdf(_encapsulated(header))


def lines_of_pdf(data: bytes) -> list[str]:
    """The lines of a PDF.

    Raises:
        ValueError: it is broken, or too long.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    log = logging.getLogger("pypdf")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)  # its messages may quote the document
    try:
        pages = PdfReader(io.BytesIO(data)).pages
        if len(pages) > MAX_PAGES:
            raise ValueError(f"more than {MAX_PAGES} pages")
        return [line for page in pages for line in (page.extract_text() or "").splitlines()]
    except PyPdfError as error:
        raise ValueError("a broken PDF") from error
    finally:
        log.setLevel(before)


def _cda_lines(header: Any) -> list[str]:
    """Titles and narratives of the body; the header with its names is not looked at."""
    data = _encapsulated(header)
    if re.search(rb"<!(DOCTYPE|ENTITY)", data):
        raise ValueError("a CDA document with entities of its own")
    root = ElementTree.fromstring(data)
    for body in root.iter("{urn:hl7-org:v3}nonXMLBody"):
        text = body.find("{urn:hl7-org:v3}text")
        return _plain_body(text) if text is not None else []
    lines: list[str] = []
    for section in root.iter("{urn:hl7-org:v3}section"):
        for part in section:
            if part.tag in ("{urn:hl7-org:v3}title", "{urn:hl7-org:v3}text"):
                lines += _narrative(part)
    return lines


def _plain_body(text: ElementTree.Element) -> list[str]:
    """A body that is no XML: text or PDF, as it is or in base64."""
    content = (text.text or "").encode()
    if text.get("representation") == "B64":
        content = base64.b64decode(content)
    if text.get("mediaType") == "application/pdf":
        return lines_of_pdf(content)
    if not (text.get("mediaType") or "text/plain").startswith("text/"):
        raise ValueError("a CDA body that is neither text nor PDF")
    return content.decode(errors="replace").splitlines()


def _narrative(part: ElementTree.Element) -> list[str]:
    """Text of a narrative block; paragraphs, items, rows and breaks end a line, cells a word."""
    words: list[str] = []

    def walk(element: ElementTree.Element) -> None:
        name = element.tag.rpartition("}")[2]
        words.append(element.text or "")
        for child in element:
            walk(child)
            words.append(child.tail or "")
        words.append("\n" if name in _BLOCKS else " " if name in ("td", "th") else "")

    walk(part)
    return "".join(words).splitlines()


_BLOCKS = ("paragraph", "item", "tr", "br", "title", "text", "caption", "list", "table")
_READERS = {"SR": _sr_lines, "PDF": _pdf_lines, "CDA": _cda_lines}
