"""Text of SR, PDF and CDA objects made here and recorded: content in, identities out."""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset

from encoders.dicom.documents import REMOVED, read_document, report_texts
from encoders.errors import UnreadableFile


@dataclass(frozen=True)
class Held:
    """A document object in memory or in a file."""

    kind: Literal["SR", "PDF", "CDA"]
    data: bytes | Path
    name: str = "object.dcm"

    def open(self) -> io.BytesIO | Path:
        return io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data


def _written(header: Dataset) -> bytes:
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.PatientName, header.PatientID = "Zebra^Quagga^Mary", "ID-4711"
    header.PatientBirthDate, header.InstitutionName = "19330405", "Hidden Clinic"
    header.ReferringPhysicianName = "Refer^Rudolf"
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3"
    out = io.BytesIO()
    pydicom.dcmwrite(out, header, enforce_file_format=True)
    return out.getvalue()


def _code(meaning: str, value: str = "1") -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "99TEST", meaning
    return code


def _item(kind: str, concept: str = "", relation: str = "CONTAINS", **values: object) -> Dataset:
    item = Dataset()
    item.ValueType, item.RelationshipType = kind, relation
    if concept:
        item.ConceptNameCodeSequence = [_code(concept)]
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _number(concept: str, value: str, unit: str, *children: Dataset) -> Dataset:
    measured = Dataset()
    measured.NumericValue = value
    measured.MeasurementUnitsCodeSequence = [_code("unit", unit)]
    return _item("NUM", concept, MeasuredValueSequence=[measured], ContentSequence=list(children))


def _report(*content: Dataset) -> Held:
    return Held("SR", _written(_item("CONTAINER", "Report", ContentSequence=list(content))))


def test_content_tree_reads_as_headings_sentences_and_measurements() -> None:
    side = _item("CODE", "Laterality", "HAS CONCEPT MOD", ConceptCodeSequence=[_code("Left")])
    found = _report(
        _item("CONTAINER", "Findings", ContentSequence=[
            _item("TEXT", "Finding", TextValue="Nodule in the left upper lobe."),
            _number("Diameter", "12.5", "mm", side),
            _number("Count", "3", "{nodules}"),
            _item("CODE", "Morphology", ConceptCodeSequence=[_code("Solid")]),
        ]),
        _item("CONTAINER", "Impression", ContentSequence=[_item("TEXT", TextValue="Follow up.")]),
    )  # fmt: skip
    assert read_document(found).text.splitlines() == [
        "Findings", "Nodule in the left upper lobe.", "Diameter: 12.5 mm (Left)", "Count: 3",
        "Morphology: Solid", "Impression", "Follow up.",
    ]  # fmt: skip


def test_observers_names_dates_and_references_are_left_out() -> None:
    found = _report(
        _item("PNAME", "Recording Observer's Name", "HAS OBS CONTEXT", PersonName="Obs^Erver"),
        _item("TEXT", "Organization", "HAS OBS CONTEXT", TextValue="Secret Trust"),
        _item("PNAME", "Person Observer", PersonName="Dicta^Tor"),
        _item("UIDREF", "Study", UID="1.2.3.4.5"),
        _item("DATE", "Date of report", Date="20260101"),
        _item("TEXT", "Report Text", TextValue="No effusion."),
    )
    assert read_document(found).text == "No effusion."


def test_recorded_reports_are_read(shared_data: Path) -> None:
    found = read_document(Held("SR", Path(str(get_testdata_file("reportsi.dcm", download=False)))))
    assert found.text.splitlines() == ["Section Heading", "Enter text"]
    measured = read_document(Held("SR", shared_data / "non_images/sr.dcm"))
    header = pydicom.dcmread(shared_data / "non_images/sr.dcm")
    assert "Measurement" in measured.text
    assert str(header.PatientID) not in measured.text


def _pdf(*lines: str) -> bytes:
    """A PDF of one page that shows lines in Helvetica (ISO 32000-1 7.5.2)."""
    shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
    stream = f"BT /F1 12 Tf 50 700 Td {shown}ET".encode("latin-1")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(out)
    out += b"xref\n0 6\n0000000000 65535 f \n" + table
    return out + b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start


def _encapsulated(kind: Literal["PDF", "CDA"], document: bytes) -> Held:
    header = Dataset()
    header.EncapsulatedDocumentLength = len(document)
    header.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return Held(kind, _written(header))


def test_pdf_gives_its_lines_without_the_patients_head() -> None:
    pdf = _pdf(
        "Hidden Clinic", "Patient Name: Mary Zebra", "DOB: 05.04.1933", "MRN: ID-4711",
        "Findings: Small effusion on the left.", "Mrs Zebra should come back. Dr. Rudolf Refer",
    )  # fmt: skip
    found = read_document(_encapsulated("PDF", pdf))
    assert found.kind == "PDF"
    assert found.text.splitlines() == [
        REMOVED,
        "Findings: Small effusion on the left.",
        f"Mrs {REMOVED} should come back. Dr. {REMOVED} {REMOVED}",
    ]


_CDA = """<?xml version="1.0"?><ClinicalDocument xmlns="urn:hl7-org:v3">
<recordTarget><patientRole><patient><name>Mary Zebra</name></patient></patientRole></recordTarget>
<author><assignedAuthor><assignedPerson><name>Dicta Tor</name></assignedPerson></assignedAuthor></author>
<component>%s</component></ClinicalDocument>"""
_BODY = """<structuredBody><component><section><title>Findings</title>
<text><paragraph>No nodule.</paragraph><list><item>Heart <content>normal</content>.</item></list>
<table><tr><td>Size</td><td>12 mm</td></tr></table></text>
<component><section><title>Impression</title><text>Normal chest.</text></section></component>
</section></component></structuredBody>"""


def test_cda_gives_titles_and_narrative_of_its_body() -> None:
    found = read_document(_encapsulated("CDA", (_CDA % _BODY).encode()))
    assert found.text.splitlines() == [
        "Findings", "No nodule.", "Heart normal.", "Size 12 mm", "Impression", "Normal chest.",
    ]  # fmt: skip


def test_cda_with_a_plain_or_pdf_body_is_read() -> None:
    plain = '<nonXMLBody><text mediaType="text/plain">No effusion.</text></nonXMLBody>'
    assert read_document(_encapsulated("CDA", (_CDA % plain).encode())).text == "No effusion."
    coded = base64.b64encode(_pdf("Lungs clear.")).decode()
    text = f'<text mediaType="application/pdf" representation="B64">{coded}</text>'
    body = f"<nonXMLBody>{text}</nonXMLBody>"
    assert read_document(_encapsulated("CDA", (_CDA % body).encode())).text == "Lungs clear."


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("CDA", b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>'), ("CDA", b"<x>"),
        ("PDF", b"%PDF-1.4 broken"), ("PDF", b""),
    ],
)  # fmt: skip
def test_broken_documents_are_listed_without_a_word_of_them(
    kind: Literal["PDF", "CDA"], document: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts, problems = report_texts([_encapsulated(kind, document)])
    assert texts == []
    assert [p.code for p in problems] == ["UNREADABLE_DOCUMENT"]
    assert caplog.text == ""


def test_a_tree_without_end_is_refused() -> None:
    item = _item("TEXT", TextValue="deep")
    for _ in range(60):
        item = _item("CONTAINER", ContentSequence=[item])
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_document(_report(item))


def test_elements_without_end_are_refused() -> None:
    """Three million of them took pydicom five seconds."""
    report = _item("CONTAINER", "Report")
    report.ContentSequence = [_item("TEXT", "Finding", TextValue="no nodule")]
    data = _written(report)
    flood = data + b"\xe1\x7f\x01\x10LO\x00\x00" * 20_000
    assert "no nodule" in read_document(Held("SR", data)).text
    with pytest.raises(UnreadableFile, match=r"cannot be read \(ValueError\)"):
        read_document(Held("SR", flood))


def test_the_longest_report_comes_first_and_an_empty_one_is_told() -> None:
    texts, problems = report_texts(
        [_report(), _report(_item("TEXT", TextValue="Short.")),
         _report(_item("TEXT", TextValue="No nodule, no effusion."))]
    )  # fmt: skip
    assert [t.text for t in texts] == ["No nodule, no effusion.", "Short."]
    assert "without text" in problems[0].message
