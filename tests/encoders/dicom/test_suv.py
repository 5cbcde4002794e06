"""PET in SUV by body weight, against the formula written out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from encoders.dicom import load_suv, load_volume, scan
from encoders.errors import InvalidPixels
from tests.encoders.dicom.slices import write_slice, write_stack

PET = "1.2.840.10008.5.1.4.1.1.128"
F18_S = 6586.2
DRUG = {
    "RadionuclideTotalDose": 3.7e8, "RadionuclideHalfLife": F18_S,
    "RadiopharmaceuticalStartTime": "093000.5",
}  # fmt: skip
HEADER: dict[str, Any] = {
    "SOPClassUID": PET, "Modality": "PT", "Units": "BQML", "PatientWeight": 70,
    "CorrectedImage": ["NORM", "ATTN", "DECAY"], "DecayCorrection": "START", "SeriesDate": "20200131",
    "SeriesTime": "103000.5", "AcquisitionTime": "103010",
}  # fmt: skip


def suv(tmp_path: Path, drug: dict[str, Any] | None = None, **header: Any) -> Any:
    """Three slices of 5000 Bq/ml, each with a slope of its own."""
    values = HEADER | header
    values = {k: [v] * 3 if isinstance(v, list) and k == "CorrectedImage" else v for k, v in values.items()}  # fmt: skip
    write_stack(
        tmp_path, [1, 2, 3], RescaleSlope=[1.0, 2.0, 0.5],
        PixelData=[np.full(16, 5000 / s, "<i2").tobytes() for s in (1.0, 2.0, 0.5)], **values,
    )  # fmt: skip
    for file in tmp_path.iterdir():
        data = pydicom.dcmread(file)
        item = pydicom.Dataset()
        for keyword, value in (DRUG | (drug or {})).items():
            if value is not None:
                setattr(item, keyword, value)
        data.RadiopharmaceuticalInformationSequence = [item]
        data.save_as(file)
    return load_suv(scan(tmp_path).default())


@pytest.mark.parametrize(
    ("header", "drug", "waited_s"),
    [
        ({}, {}, 3600.0),
        ({"DecayCorrection": "ADMIN"}, {}, 0.0),
        ({}, {"RadiopharmaceuticalStartDateTime": "20200131100000"}, 1800.5),
        ({"SeriesTime": "001000", "AcquisitionTime": "001500"}, {"RadiopharmaceuticalStartTime": "233000"}, 2400.0),
    ],
    ids=["start", "admin", "date and time", "over midnight"],
)  # fmt: skip
def test_suv_is_activity_by_the_dose_left_for_each_gram(
    tmp_path: Path, header: dict[str, Any], drug: dict[str, Any], waited_s: float
) -> None:
    volume = suv(tmp_path, drug, **header)
    left_bq = 3.7e8 * 0.5 ** (waited_s / F18_S)
    assert np.allclose(volume.voxels, 5000 / (left_bq / 70_000), rtol=1e-5)
    assert volume.unit == "SUV"
    assert "SUV" in [p.code for p in volume.problems]


@pytest.mark.parametrize(
    ("header", "drug", "words"),
    [
        ({"PatientWeight": None}, {}, "PatientWeight is missing"),
        ({"PatientWeight": 0}, {}, "PatientWeight is missing or not above zero"),
        ({"CorrectedImage": ["ATTN"]}, {}, "decay"),
        ({"DecayCorrection": "NONE"}, {}, "neither START nor ADMIN"),
        ({"SeriesTime": "110000"}, {}, "later than the scan"),
        ({"SeriesTime": None}, {}, "missing or later"),
        ({"Units": "CNTS"}, {}, "not activity in Bq/ml"),
        ({}, {"RadionuclideTotalDose": 370}, "no dose in Bq"),
        ({}, {"RadionuclideTotalDose": None}, "RadionuclideTotalDose is missing"),
        ({}, {"RadionuclideHalfLife": None}, "RadionuclideHalfLife is missing"),
        ({}, {"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime"),
        ({}, {"RadiopharmaceuticalStartDateTime": "20200129100000"}, "within a day"),
    ],
)
def test_what_the_header_does_not_tell_is_never_assumed(
    tmp_path: Path, header: dict[str, Any], drug: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidPixels, match=words):
        suv(tmp_path, drug, **header)


def test_no_drug_and_no_pet_are_refused(tmp_path: Path, phantom_series: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", **HEADER)
    with pytest.raises(InvalidPixels, match="Radiopharmaceutical Information"):
        load_suv(scan(path).default())
    with pytest.raises(InvalidPixels, match="not activity"):
        load_suv(scan(phantom_series).default())


def test_values_in_suv_stay_and_philips_counts_take_its_factor(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", **HEADER | {"Units": "GML"})
    assert np.array_equal(load_suv(scan(path).default()).voxels, load_volume(path).voxels)
    data = pydicom.dcmread(write_slice(tmp_path / "b.dcm", **HEADER | {"Units": "CNTS"}))
    data.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0, "DS", "0.25")
    data.save_as(tmp_path / "b.dcm")
    found = load_suv(scan(tmp_path / "b.dcm").default())
    assert np.allclose(found.voxels, load_volume(tmp_path / "b.dcm").voxels * 0.25)
