"""Series whose slices differ in scale, unit, padding or window: each slice by its own header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_rescale, apply_windowing

from encoders.dicom import Volume, load_volume, resample, scan
from encoders.dicom.display import unit_of, voi_of
from tests.encoders.dicom.slices import CT, write_slice, write_stack

MR, PET = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
RAMP = np.arange(16, dtype="<i2") * 100


def codes(volume: Volume) -> set[str]:
    return {p.code for p in volume.problems}


def theirs(folder: Path) -> list[Any]:
    """The files as pydicom has them, lowest first."""
    files = [pydicom.dcmread(f) for f in folder.iterdir()]
    return sorted(files, key=lambda f: f.ImagePositionPatient[2])


def test_slices_of_pet_have_each_their_own_slope(tmp_path: Path) -> None:
    write_stack(
        tmp_path, [1, 2, 3, 4], SOPClassUID=PET, Modality="PT", Units="BQML",
        RescaleSlope=[0.5, 1.25, 3.0, 0.125], PixelData=RAMP.tobytes(),
    )  # fmt: skip
    volume = load_volume(tmp_path)
    assert volume.unit == "Bq/ml"
    wanted = [apply_rescale(f.pixel_array, f) for f in theirs(tmp_path)]
    assert np.allclose(volume.voxels, wanted)


@pytest.mark.parametrize(
    ("attributes", "unit"),
    [
        ({"RescaleType": ["HU", "HU", "US", "HU"]}, ""),
        ({"RescaleType": ["HU", "HU", None, "HU"]}, "HU"),  # absent means HU in CT
        ({"RescaleSlope": [1, 1, 1, None]}, ""),
        ({"SOPClassUID": PET, "Modality": "PT", "Units": ["BQML"] * 4}, "Bq/ml"),
        ({"SOPClassUID": PET, "Modality": "PT", "Units": ["BQML", "BQML", "BQML", "GML"]}, ""),
    ],
)
def test_a_unit_is_told_only_if_every_slice_has_it(
    tmp_path: Path, attributes: dict[str, Any], unit: str
) -> None:
    volume = load_volume(write_stack(tmp_path, [1, 2, 3, 4], **attributes))
    assert volume.unit == unit
    assert ("UNCALIBRATED" in codes(volume)) == (unit != "HU")
    if not unit and "Units" in attributes:
        told = next(p.message for p in volume.problems if p.code == "UNCALIBRATED")
        assert "1 of 4 slices have another unit than the first" in told


def _padded(value: int) -> bytes:
    """A ramp whose first two pixels are padding."""
    return np.concatenate([np.full(2, value, "<i2"), RAMP[2:]]).tobytes()


@pytest.mark.parametrize(
    ("paddings", "slopes"),
    [
        ([-2000, -2000, -2000], [1, 1, 1]),
        ([-2000, -1000, 300], [1, 1, 1]),  # what is padding of one is measured in another
        ([-2000, -2000, -2000], [1, 2, 0.5]),
        ([-2000, None, -2000], [1, 1, 1]),
        ([-32768, -3000, -32768], [1, 1, 1]),
    ],
)
def test_padding_is_that_of_each_slice_and_nothing_measured_is_masked(
    tmp_path: Path, paddings: list[int | None], slopes: list[float]
) -> None:
    write_stack(
        tmp_path, [1, 2, 3], RescaleSlope=slopes, PixelPaddingValue=paddings,
        PixelData=[_padded(-2000 if p is None else p) for p in paddings],
    )  # fmt: skip
    volume = load_volume(tmp_path)
    assert volume.padding is not None
    wanted = np.zeros((3, 16), bool)
    wanted[:, :2] = True
    if 300 in paddings:
        wanted[2, 3] = True  # its ramp holds the value too
    assert np.array_equal(volume.padding.reshape(3, 16), wanted)
    stored = np.array([f.pixel_array.ravel() for f in theirs(tmp_path)])
    measured = stored * np.array(slopes)[:, None]
    assert np.array_equal(volume.voxels.reshape(3, 16)[~wanted], measured[~wanted])


def test_padding_survives_the_scales_of_philips(tmp_path: Path) -> None:
    for number, (slope, scale) in enumerate([(3.0, 0.3), (7.0, 0.7), (1.0, 1.1)], 1):
        path = write_slice(
            tmp_path / f"{number}.dcm", number, SOPClassUID=MR, Modality="MR", RescaleSlope=slope,
            PixelPaddingValue=-5, PixelData=_padded(-5),
        )  # fmt: skip
        header = pydicom.dcmread(path)
        block = header.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", scale)
        header.save_as(path)
    volume = load_volume(tmp_path)
    assert volume.padding is not None
    assert volume.padding.reshape(3, 16).tolist() == [[True] * 2 + [False] * 14] * 3


def test_each_slice_is_shown_by_its_own_window(tmp_path: Path) -> None:
    """Projections in a stack, as a tomosynthesis gives; grey levels are those of pydicom."""
    write_stack(
        tmp_path, [1, 2, 3], Modality="CR", SOPClassUID="1.2.840.10008.5.1.4.1.1.1",
        WindowCenter=[500, 900, 500], WindowWidth=[1000, 400, 1000], PixelData=RAMP.tobytes(),
    )  # fmt: skip
    volume = load_volume(tmp_path)
    voi = voi_of(volume)
    wanted = np.array([apply_windowing(f.pixel_array, f) for f in theirs(tmp_path)])
    low, high = -32768, 32767  # pydicom's range of the output
    wanted = (wanted - low) / (high - low)
    assert np.allclose(unit_of(volume, voi), wanted, atol=1e-4)
    assert np.allclose(unit_of(volume, voi, 1), wanted[1], atol=1e-4)
    part = volume.crop(slice(1, 3), slice(0, 4), slice(0, 4))
    assert np.allclose(unit_of(part, voi_of(part)), wanted[1:], atol=1e-4)
    assert resample(volume, (2.5, 1, 1)).displays == ()


def test_slices_of_one_window_carry_one_display(tmp_path: Path) -> None:
    write_stack(tmp_path, [1, 2, 3], WindowCenter=40, WindowWidth=400)
    volume = load_volume(tmp_path)
    assert volume.displays == ()
    assert volume.display.vois[0].width == 400


def test_inverted_slices_form_a_series_of_their_own(tmp_path: Path) -> None:
    write_stack(
        tmp_path, [1, 2, 3, 4], SOPClassUID=CT,
        PhotometricInterpretation=["MONOCHROME2", "MONOCHROME1", "MONOCHROME2", "MONOCHROME1"],
    )  # fmt: skip
    found = [load_volume(series) for series in scan(tmp_path).series]
    assert sorted(volume.display.inverted for volume in found) == [False, True]
    assert [len(volume.voxels) for volume in found] == [2, 2]


def test_overlays_of_any_slice_are_told(tmp_path: Path) -> None:
    write_stack(tmp_path, [1, 2, 3])
    last = theirs(tmp_path)[2]
    last.add_new((0x6000, 0x0010), "US", 4)
    last.save_as(last.filename)
    assert "OVERLAY" in codes(load_volume(tmp_path))
