"""Pictures that may show text are told from the header, and stop at the gate."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from encoders.dicom import let_through, load_preview, load_volume, scan
from encoders.dicom.burned_in import burned_in_risk, shows_face
from encoders.errors import BurnedInText
from pipelines.chat import ChatPipeline
from pipelines.ct_report import CtReportPipeline
from tests.makers import FakeBackend, write_blocks

SOP = "1.2.840.10008.5.1.4.1.1."
RISKY = {
    "secondary capture": {"SOPClassUID": SOP + "7"},
    "true colour capture": {"SOPClassUID": SOP + "7.4"},
    "ultrasound": {"SOPClassUID": SOP + "6.1"},
    "ultrasound cine": {"SOPClassUID": SOP + "3.1"},
    "angiography": {"SOPClassUID": SOP + "12.1"},
    "photograph": {"SOPClassUID": SOP + "77.1.4"},
    "declared": {"SOPClassUID": SOP + "2", "BurnedInAnnotation": "YES"},
    "screen": {"SOPClassUID": SOP + "2", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    "dose page that says NO": {
        "SOPClassUID": SOP + "7", "BurnedInAnnotation": "NO",
        "ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"],
    },
    "digitized film": {"SOPClassUID": SOP + "1", "ConversionType": "DF"},
    "device of the table": {
        "SOPClassUID": SOP + "2", "Modality": "CT", "Manufacturer": "Philips",
        "ImageType": ["DERIVED", "SECONDARY", "DOSE"],
    },
}  # fmt: skip
CLEAN = {
    "CT": {"SOPClassUID": SOP + "2", "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY"]},
    "MR": {"SOPClassUID": SOP + "4"},
    "radiograph": {"SOPClassUID": SOP + "1.1"},
    "capture declared clean": {"SOPClassUID": SOP + "7", "BurnedInAnnotation": "NO"},
}


@pytest.mark.parametrize("case", RISKY)
def test_pictures_that_usually_hold_text_are_at_risk_and_say_why(case: str) -> None:
    risk = burned_in_risk(RISKY[case])
    assert risk.at_risk
    assert risk.reasons
    assert risk.problem("x").code == "BURNED_IN_RISK"


@pytest.mark.parametrize("case", CLEAN)
def test_pictures_straight_from_a_scanner_are_not(case: str) -> None:
    assert not burned_in_risk(CLEAN[case]).at_risk


def test_overlays_count_and_are_named() -> None:
    risk = burned_in_risk(CLEAN["CT"], num_overlays=2)
    assert risk.reasons == ("2 overlay planes",)
    assert burned_in_risk(CLEAN["CT"]).score < risk.score < 0.5


def test_the_device_table_tells_where_text_stands() -> None:
    facts = {
        "Modality": "US", "Manufacturer": "Philips Medical Systems", "ManufacturerModelName": "iU22",
        "Rows": 600, "Columns": 800,
    }  # fmt: skip
    assert burned_in_risk(facts).boxes == ((0, 0, 800, 59),)


def test_the_screens_of_the_head_phantom_are_at_risk_and_its_slices_are_not(shared_data) -> None:
    study = shared_data / "head_phantom_study"
    found = [f for series in scan(study).series for f in series.files]
    assert {f.source.parent.name for f in found if f.burned_in} == {"S4010"}
    assert {f.source.parent.name for f in found if not f.burned_in} == {"S1000", "S2010"}


@pytest.mark.parametrize(
    ("values", "face"),
    [
        ({"Modality": "CT", "BodyPartExamined": "HEAD"}, True),
        ({"Modality": "MR", "SeriesDescription": "t1 brain sag"}, True),
        ({"Modality": "CT", "StudyDescription": "CT SINUSES"}, True),
        ({"Modality": "CT", "BodyPartExamined": "CHEST"}, False),
        ({"Modality": "CR", "BodyPartExamined": "SKULL"}, False),
    ],
)
def test_head_tomograms_show_a_face(values: dict[str, object], face: bool) -> None:
    assert shows_face(values) is face


@pytest.fixture
def screens(tmp_path: Path) -> Path:
    """A volume whose slices say that text is burnt in."""
    write_blocks(tmp_path, shape=(8, 16, 16))
    for file in tmp_path.iterdir():
        data = pydicom.dcmread(file)
        data.BurnedInAnnotation = "YES"
        data.save_as(file)
    return tmp_path


def test_a_picture_at_risk_reaches_no_model_by_any_door(screens: Path, tiny_composite) -> None:
    from multimodal.local import LocalBackend
    from multimodal.messages import Study, user

    fake, real = FakeBackend(), LocalBackend(*tiny_composite)
    preview = load_preview(scan(screens).default())
    for study in (screens, load_volume(screens), preview):
        with pytest.raises(BurnedInText, match="may show patient data"):
            CtReportPipeline(fake)(study)
        with pytest.raises(BurnedInText, match="allow_burned_in=True"):
            ChatPipeline(real)(user(Study(study), "list the findings"))
    assert fake.asked == []


def test_who_vouches_for_a_picture_may_have_it_read_and_the_warning_stays(screens: Path) -> None:
    reading = CtReportPipeline(FakeBackend())(screens, allow_burned_in=True)
    assert "BURNED_IN_ALLOWED" in {w.code for w in reading.warnings}
    for pictures in (scan(screens).default(), load_volume(screens)):
        assert let_through(let_through(pictures, allow_burned_in=True)).problems
