"""The report a study brings with it, and studies of single images, through the CT report task."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from encoders.errors import InvalidMessage, MissingInput
from pipelines.ct_report import CtReportPipeline
from tests.makers import FakeBackend, write_sr


@pytest.fixture
def study_with_reports(phantom_series: Path, tmp_path: Path) -> Path:
    """The phantom with two structured reports and a broken one beside its slices."""
    folder = tmp_path / "study"
    shutil.copytree(phantom_series, folder)
    write_sr(folder / "report.dcm", "There is a nodule in the left lung.", "No pleural effusion.")
    write_sr(folder / "short.dcm", "See above.")
    write_sr(folder / "empty.dcm")
    return folder


def test_the_studys_own_report_is_offered_but_not_used_unasked(study_with_reports: Path) -> None:
    reading = CtReportPipeline(FakeBackend())(study_with_reports)
    assert reading.report is None
    assert reading.report_source == ""
    assert "REPORT_OFFERED" in {w.code for w in reading.warnings}
    given = CtReportPipeline(FakeBackend())(study_with_reports, "No nodule.")
    assert given.report_source == "given text"


def test_the_studys_own_report_is_judged_when_asked_for(study_with_reports: Path) -> None:
    fake = FakeBackend()
    reading = CtReportPipeline(fake)(study_with_reports, report_from_study=True)
    assert reading.report == "There is a nodule in the left lung.\nNo pleural effusion."
    assert reading.report_source == "SR object of the study"
    assert any("No pleural effusion." in prompt for prompt in fake.asked)
    assert {"REPORT_CHOSEN", "UNREADABLE_DOCUMENT"} <= {w.code for w in reading.warnings}
    assert "SR object of the study" in reading.to_html()
    assert "Quagga" not in reading.to_json()


def test_a_report_cannot_come_from_two_places_or_from_nowhere(
    study_with_reports: Path, phantom_series: Path
) -> None:
    task = CtReportPipeline(FakeBackend())
    with pytest.raises(InvalidMessage, match="not both"):
        task(study_with_reports, "No nodule.", report_from_study=True)
    with pytest.raises(MissingInput, match="no SR, PDF or CDA"):
        task(phantom_series, report_from_study=True)


@pytest.mark.parametrize(
    "file",
    ["xray/dx_image.dcm", "xray/CR-ModalitySequenceLUT.dcm", "ultrasound/US1_UNCI.dcm",
     "ultrasound/OBXXXX1A.dcm", "lut/vlut_04.dcm"],
)  # fmt: skip
def test_single_images_are_opened_and_abstained_from(shared_data: Path, file: str) -> None:
    task = CtReportPipeline(FakeBackend())
    reading = task(shared_data / file, "No nodule.", allow_burned_in=True)
    assert reading.agreement == "abstained"
    assert reading.findings == reading.discrepancies == ()
    assert "not calibrated CT" in reading.warnings[0].message
    assert reading.key_slices[0][1].startswith(b"\x89PNG")
    assert len(reading.to_html()) > 1000
