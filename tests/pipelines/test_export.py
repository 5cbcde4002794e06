"""A reading as DICOM and PDF, from the pipeline's own values."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from encoders.dicom import load_volume, scan
from encoders.dicom.documents import report_texts
from encoders.features import Source
from multimodal.backends import Region
from pipelines import pipeline
from pipelines.evidence import Reading
from pipelines.export import as_result, render_pdf
from tests.makers import FakeBackend

REPORT = "There is a left nodule. No cardiomegaly."


@pytest.fixture(scope="module")
def reading(phantom_series: Path) -> Reading:
    """A right nodule of 12 mm on slice 7, while the report says left."""
    volume = load_volume(phantom_series)
    source = Source("dicom", slice_index=7, position_mm=float(volume.positions_mm[7]))
    backend = FakeBackend(
        answers={"List": "right nodule, 12 mm", "large": "12 mm",
                 "left nodule": "direction: There is a right nodule."},
        chances={"right nodule": 0.9, "left nodule": 0.1},
        regions=(Region("nodule", "right", 0.8, source, (4.0, 5.0, 9.0, 11.0)),),
    )  # fmt: skip
    return pipeline("ct-report", backend)(phantom_series, REPORT)


def test_reading_becomes_a_report_key_images_and_a_document(
    reading: Reading, phantom_series: Path, tmp_path: Path
) -> None:
    files = reading.to_dicom(phantom_series, tmp_path)
    assert [f.name for f in files] == ["sr.dcm", "key_1.dcm", "report.pdf.dcm"]
    report, picture, document = (pydicom.dcmread(f) for f in files)
    told = report.to_json()
    finding = reading.findings[0]
    assert (finding.name, finding.side) == ("nodule", "right")
    for words in ("nodule", "Right", "direction", "There is a left nodule.", reading.verdict()):
        assert words in told
    assert picture.SourceImageSequence[0].ReferencedSOPInstanceUID in told
    assert document.EncapsulatedDocument.startswith(b"%PDF-")


def test_result_says_what_the_reading_says(reading: Reading) -> None:
    result = as_result(reading)
    seen = result.observations[0]
    finding = reading.findings[0]
    assert (seen.name, seen.side, seen.size_mm, seen.probability) == (
        finding.name, finding.side, finding.size_mm, finding.probability
    )  # fmt: skip
    assert seen.place is not None
    assert (seen.place.slice_index, seen.place.box) == (7, (4.0, 5.0, 9.0, 11.0))
    assert [r.kind for r in result.remarks] == [d.type for d in reading.discrepancies]
    assert result.warnings == reading.warnings
    assert result.pictures[0][0].position_mm == finding.evidence[0].position_mm
    assert result.maker.weights_sha256 == "unknown"  # a fake backend has none


def test_pdf_is_the_same_every_time_and_takes_words_of_any_script(reading: Reading) -> None:
    assert render_pdf(reading) == render_pdf(reading)
    unsure = replace(reading.findings[0], probability=None)
    assert render_pdf(replace(reading, findings=(unsure,))) != render_pdf(reading)
    answered = replace(reading, answer="没有气胸。 <b>& no markup</b>")
    assert render_pdf(answered) != render_pdf(reading)


def test_pdf_holds_the_words_of_the_reading(reading: Reading) -> None:
    import pypdf

    pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(render_pdf(reading))).pages]
    told = "\n".join(pages)
    for words in (
        reading.verdict(),
        "There is a left nodule.",
        "There is a right nodule.",
        "12 mm",
    ):
        assert words in told
    assert all("not for diagnosis" in page for page in pages)


def test_own_results_beside_a_study_are_neither_read_nor_taken_for_its_report(
    reading: Reading, phantom_series: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_series, tmp_path / "study")
    reading.to_dicom(tmp_path / "study", tmp_path / "study")
    study = scan(tmp_path / "study")
    assert load_volume(study.default()).digest == load_volume(phantom_series).digest
    assert {d.kind for d in study.documents} == {"SR", "PDF"}
    texts, problems = report_texts(study.documents)
    assert texts == []
    assert all("is a result of CrossRead" in p.message for p in problems)


def test_patient_of_the_study_reaches_the_dicom_objects_and_nothing_else(
    reading: Reading, phantom_series: Path, tmp_path: Path
) -> None:
    name = str(pydicom.dcmread(next(phantom_series.iterdir())).PatientName)
    assert name == "Phantom^Generated"
    told = reading.to_json() + reading.to_html() + repr(as_result(replace(reading, key_slices=())))
    assert name not in told
    for file in reading.to_dicom(phantom_series, tmp_path):
        assert str(pydicom.dcmread(file).PatientName) == name
        assert name.encode() not in getattr(pydicom.dcmread(file), "EncapsulatedDocument", b"")
