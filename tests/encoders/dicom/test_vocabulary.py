"""What may be told is on a list: no free text passes for a term, no name for a file's number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from encoders.dicom import scan, vocabulary
from tests.makers import write_blocks


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("CHEST", "CHEST"), ("Thorax", "THORAX"), ("WHOLE BODY", "WHOLE BODY"),
        ("HEAD_NECK", "HEAD NECK"), ("C SPINE", "C SPINE"), ("CHEST OF DOE", ""), ("DOE", ""),
        ("CHEST 4711", ""), ("", ""),
    ],
)  # fmt: skip
def test_only_body_parts_pass_for_body_parts(value: str, told: str) -> None:
    assert vocabulary.body_part(value) == told


@pytest.mark.parametrize(
    "value", ["B30f", "Br40d", "I31f", "STANDARD", "BONEPLUS", "FC08-H", "YA", "STD+", "11"]
)
def test_kernels_of_the_makers_are_told(value: str) -> None:
    assert vocabulary.kernel(value) == value


@pytest.mark.parametrize("value", ["DOE JOHN", "MRN 4711", "1234567", "John", "B30f Mueller"])
def test_no_free_text_passes_for_a_kernel(value: str) -> None:
    assert vocabulary.kernel(value) == ""


@pytest.mark.parametrize("name", ["IM-0001-0007-0001.dcm", "slice_0003.dcm", "I10", "DICOMDIR"])
def test_a_name_that_only_counts_is_shown(name: str) -> None:
    assert vocabulary.shown_name(name) == name


@given(st.text(min_size=1))
def test_a_shown_name_is_harmless_and_steady(name: str) -> None:
    shown = vocabulary.shown_name(name)
    assert vocabulary.shown_name(name) == shown
    assert vocabulary.shown_name(shown) == shown or shown.startswith("file-")


@pytest.mark.parametrize(
    "name", ["DOE^JOHN.dcm", "4711-0815-19610203.dcm", "1.2.840.113.dcm", "Müller.dcm", "john.dcm"]
)
def test_a_name_that_may_identify_becomes_a_digest(name: str) -> None:
    assert vocabulary.shown_name(name).startswith("file-")
    assert vocabulary.shown_name(name).endswith(".dcm")


def test_a_header_tells_only_what_the_lists_hold(tmp_path) -> None:
    import pydicom

    write_blocks(tmp_path)
    planted = {
        "Modality": "DOE", "BodyPartExamined": "DOE", "ConvolutionKernel": "DOE^JOHN",
        "PatientPosition": "DOE", "PatientSex": "DOE", "PatientAge": "DOE",
        "ContrastBolusAgent": "DOE",
    }  # fmt: skip
    for file in tmp_path.iterdir():
        data: Dataset = pydicom.dcmread(file)
        with pydicom.config.disable_value_validation():
            for keyword, value in planted.items():
                setattr(data, keyword, value)
            data.save_as(file)
    told = scan(tmp_path).default().info
    assert "DOE" not in str(told.to_dict())
    assert told.contrast is True


def test_names_of_windows_and_units_from_a_header_are_told_only_as_terms() -> None:
    from encoders.dicom.display import display_of

    header = Dataset()
    header.WindowCenter, header.WindowWidth = [40, 50], [400, 350]
    header.WindowCenterWidthExplanation = ["SOFT TISSUE", "Mueller^Hans"]
    assert [v.name for v in display_of(header).vois] == ["SOFT TISSUE", "window 2"]
    assert vocabulary.rescale_type("HU_MOD") == "HU_MOD"
    assert "DOE" not in vocabulary.rescale_type("DOE")
