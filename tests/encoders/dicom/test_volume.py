"""Volumes: units, modality transformations, padding, true geometry, ways there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.dicom import Volume, load_preview, load_volume, scan
from encoders.dicom.display import Display, Voi
from encoders.dicom.geometry import classify_gaps
from encoders.dicom.values import share_outside
from encoders.errors import IrregularGeometry, UnreadableFile
from encoders.features import Problem
from tests.encoders.dicom.slices import CT, ENHANCED_CT, ROOT, write_slice, write_stack

MR, PET, CR = (f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("4", "128", "1"))


def codes(volume: Volume) -> list[str]:
    return [p.code for p in volume.problems]


def message(volume: Volume, code: str) -> str:
    return next(p.message for p in volume.problems if p.code == code)


def one(tmp_path: Path, values: Any = None, dtype: str = "<i2", **attributes: Any) -> Volume:
    if values is not None:
        attributes["PixelData"] = np.asarray(values).astype(dtype).tobytes()
    return load_volume(write_slice(tmp_path / "one.dcm", **attributes))


@pytest.mark.parametrize(
    ("stored", "dtype", "slope", "intercept"),
    [
        ([0, 4095], "<u2", 1, -1024),
        ([0, 65535], "<u2", 1, -32768),
        ([65535, 60000], "<u2", 1, 0),  # beyond int16: never cast back to the stored type
        ([-32768, 32767], "<i2", 1, -1024),
        ([0, 255], "<u2", 100, -1000),
        ([-5, 7], "<i2", 0.001, 3.5),
        ([1, 2], "<i2", 1.5, -0.25),
        ([0, 4095], "<u2", -1, 0),
    ],
)  # fmt: skip
def test_rescale_is_exact_in_int16_or_else_in_float32(
    tmp_path: Path, stored: list[int], dtype: str, slope: float, intercept: float
) -> None:
    values = np.resize(np.array(stored, np.int64), 16)
    volume = one(
        tmp_path, values, dtype, PixelRepresentation=int(dtype == "<i2"), RescaleSlope=slope,
        RescaleIntercept=intercept,
    )  # fmt: skip
    wanted = values * slope + intercept
    assert np.allclose(volume.voxels.ravel(), wanted, rtol=1e-6, atol=0)
    whole = all(float(v).is_integer() and -32768 <= v <= 32767 for v in wanted)
    assert volume.voxels.dtype == (np.int16 if whole and slope == int(slope) else np.float32)


def test_one_slice_beyond_int16_turns_the_whole_stack_into_float(tmp_path: Path) -> None:
    data = [np.full(16, v, "<u2").tobytes() for v in (10, 60000, 30)]
    write_stack(tmp_path, [1, 2, 3], PixelData=data, PixelRepresentation=0)
    volume = load_volume(tmp_path)
    assert volume.voxels.dtype == np.float32
    assert volume.voxels[:, 0, 0].tolist() == [10, 60000, 30]


def test_modality_table_wins_over_slope_and_intercept(shared_data: Path) -> None:
    """Of recorded objects, against pydicom's own transformation; with both, the table counts."""
    from pydicom.pixels.processing import apply_modality_lut

    for name in ("lut/mlut_18.dcm", "xray/CR-ModalitySequenceLUT.dcm"):
        header = pydicom.dcmread(shared_data / name)
        wanted = apply_modality_lut(header.pixel_array, header)
        volume = load_volume(shared_data / name)
        assert np.array_equal(volume.voxels[0], wanted), name
        assert not volume.calibrated


@pytest.mark.parametrize(
    ("attributes", "unit", "why"),
    [
        ({}, "HU", ""),
        ({"RescaleType": "HU"}, "HU", ""),
        ({"RescaleType": "US"}, "", "RescaleType"),
        ({"RescaleType": "MGML"}, "", "MGML"),
        ({"RescaleSlope": None}, "", "without RescaleSlope"),
        ({"RescaleIntercept": None}, "", "without RescaleSlope"),
        ({"RescaleSlope": 0}, "", "without RescaleSlope"),
        ({"BitsStored": 8, "HighBit": 7}, "", "8 bits"),
        ({"SOPClassUID": MR, "Modality": "MR"}, "", "not of a CT image"),
        ({"SOPClassUID": CR, "Modality": "CR"}, "", "not of a CT image"),
        ({"SOPClassUID": PET, "Modality": "PT", "Units": "GML"}, "SUV", "not of a CT image"),
        ({"SOPClassUID": PET, "Modality": "PT", "Units": "BQML"}, "Bq/ml", "not of a CT image"),
        ({"SOPClassUID": PET, "Modality": "PT", "Units": "CNTS"}, "counts", "not of a CT image"),
    ],
)  # fmt: skip
def test_only_calibrated_ct_is_called_hounsfield_units(
    tmp_path: Path, attributes: dict[str, Any], unit: str, why: str
) -> None:
    volume = one(tmp_path, np.arange(16), **attributes)
    assert volume.unit == unit
    assert volume.calibrated == (unit == "HU")
    if not volume.calibrated:
        assert why in message(volume, "UNCALIBRATED")


def test_slices_that_philips_scaled_apart_come_on_one_scale(tmp_path: Path) -> None:
    """Floating value = stored / scale slope where intercept is 0 (private (2005,100E))."""
    for number, (slope, scale) in enumerate([(2.0, 0.5), (4.0, 0.25), (1.0, 1.0)], 1):
        path = write_slice(
            tmp_path / f"{number}.dcm", number, SOPClassUID=MR, Modality="MR", RescaleSlope=slope,
            PixelData=np.full(16, 100 * scale, "<i2").tobytes(),
        )  # fmt: skip
        header = pydicom.dcmread(path)
        block = header.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", scale)
        header.save_as(path)
    assert np.allclose(load_volume(tmp_path).voxels, 100.0)


def test_declared_padding_is_masked_whatever_its_vr(tmp_path: Path) -> None:
    values = np.arange(16)
    values[:3] = -2000
    path = write_slice(tmp_path / "a.dcm", PixelData=values.astype("<i2").tobytes())
    header = pydicom.dcmread(path)
    header.add_new("PixelPaddingValue", "US", 65536 - 2000)  # as LIDC has it: US on signed data
    header.save_as(path)
    volume = load_volume(path)
    assert volume.padding is not None
    assert volume.padding.ravel().tolist() == [True] * 3 + [False] * 13
    header.add_new("PixelPaddingRangeLimit", "US", 4)
    header.save_as(path)
    padding = load_volume(path).padding
    assert padding is not None
    assert padding.sum() == 5  # -2000, 3 and 4 lie within -2000..4


def test_padding_that_the_tag_misses_is_found_in_the_corners(shared_data: Path) -> None:
    chest = load_volume(shared_data / "chest_lidc_0001")
    assert "PADDING_MISMATCH" in codes(chest)
    assert chest.padding is not None
    assert np.array_equal(chest.padding, chest.voxels == -2048)
    tilted = load_volume(shared_data / "head_tilt_irregular")
    assert tilted.padding is not None
    assert np.array_equal(tilted.padding, tilted.voxels == -1500)
    assert load_volume(shared_data / "abdomen_j2k").padding is None


def test_implausible_values_are_counted_and_clamped_only_on_request(tmp_path: Path) -> None:
    values = np.zeros(16, int)
    values[[5, 6]] = 9000, -1500
    volume = one(tmp_path, values)
    assert message(volume, "IMPLAUSIBLE_HU").startswith("12.50% of the voxels")
    assert volume.voxels.max() == 9000
    clamped = volume.clamped()
    assert (clamped.voxels.min(), clamped.voxels.max()) == (-1024, 3071)
    assert message(clamped, "CLAMPED").startswith("12.500%")
    assert clamped.clamped().problems == clamped.problems


def test_padding_counts_as_no_implausible_value() -> None:
    voxels = np.full((2, 4, 4), -2048, np.int16)
    assert share_outside(voxels, ((-2048, -2048),), (-1024, 3071)) == 0
    assert share_outside(voxels, (), (-1024, 3071)) == 1


def test_loss_is_told_by_its_tag_and_by_the_transfer_syntax(
    shared_data: Path, tmp_path: Path
) -> None:
    assert "LOSSY" in codes(one(tmp_path, np.arange(16), LossyImageCompression="01"))
    files = sorted((shared_data / "transfer_syntaxes_ct").iterdir())
    for file in files:
        if file.stem.endswith((".51", ".53", ".55")):
            continue
        lossy = file.stem.endswith((".4.50", ".4.81", ".4.91"))
        assert ("LOSSY" in codes(load_volume(file))) == lossy, file.name


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"ImagePositionPatient": None}, "NO_GEOMETRY"),
        ({"ImageOrientationPatient": None}, "NO_GEOMETRY"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.3, 0.9, 0]}, "BAD_ORIENTATION"),
        ({"PixelSpacing": None}, "NO_SPACING"),
        ({"PixelSpacing": [0, 0]}, "NO_SPACING"),
    ],
)
def test_unknown_geometry_is_unknown_and_never_guessed(
    tmp_path: Path, attributes: dict[str, Any], code: str
) -> None:
    volume = one(tmp_path, np.arange(16), **attributes)
    assert code in codes(volume)
    assert not volume.placed
    assert np.isnan(volume.affine).all()
    for ask in (volume.at, volume.index_of):
        with pytest.raises(IrregularGeometry, match="do not say where this image lies"):
            ask((0, 0, 0))
    assert np.isfinite(volume.grid).all()  # for drawing only
    json.dumps(volume.info.to_dict(), allow_nan=False)


def test_unplaced_image_is_drawn_as_stored_and_claims_no_position(tmp_path: Path) -> None:
    from encoders.dicom import PROFILES, make_views

    volume = one(tmp_path, np.arange(16), ImagePositionPatient=None)
    views = make_views(volume, PROFILES["crossread-ct"])
    assert views.sources[0].position_mm is None
    assert np.isfinite(views.geometry).all()


def test_pixel_spacing_is_row_then_column_and_forgives_a_third_value(tmp_path: Path) -> None:
    for spacing in ([3.5, 2.5], [3.5, 2.5, 9.0]):
        volume = one(tmp_path, np.arange(16), PixelSpacing=spacing)
        assert np.allclose(volume.affine[:3, 1], [0, 3.5, 0])
        assert np.allclose(volume.affine[:3, 2], [2.5, 0, 0])


def test_imager_spacing_serves_where_no_other_is(tmp_path: Path) -> None:
    volume = one(
        tmp_path, np.arange(16), SOPClassUID=CR, Modality="CR", PixelSpacing=None,
        ImagerPixelSpacing=[0.2, 0.1], ImagePositionPatient=None,
    )  # fmt: skip
    assert volume.spacing_mm[1:] == (0.2, 0.1)


@pytest.mark.parametrize(
    ("positions", "kind", "lost"),
    [
        ([0, 2.5, 5, 7.5], "regular", 0),
        ([0, 2.5, 5.01, 7.5], "regular", 0),
        ([0, 2.5, 5.2, 7.5], "jitter", 0),
        ([0, 2.5, 7.5, 10, 12.5], "missing", 1),
        ([0, 2.5, 10, 12.5, 15, 17.5], "missing", 2),
        ([0, 1, 2, 3, 8, 13, 18, 23], "blocks", 0),
        ([0, 2, 4, 6, 8, 13, 18, 23, 28], "blocks", 0),
        ([0, 1, 4, 5, 9, 11], "irregular", 0),
        ([3], "single", 0),
    ],
)
def test_gaps_are_told_apart(positions: list[float], kind: str, lost: int) -> None:
    gaps = classify_gaps(positions)
    assert (gaps.kind, gaps.lost) == (kind, lost)


def test_recorded_tilt_has_two_blocks_and_a_transition(shared_data: Path) -> None:
    volume = load_volume(shared_data / "head_tilt_irregular")
    assert "13 gaps of 4.00 mm, then 13 gaps of 7.00 mm" in message(volume, "IRREGULAR_SPACING")
    assert "sheared by 18.5 degrees; the affine keeps the shear" in message(volume, "GANTRY_TILT")
    wanted = [4.002] * 13 + [1.081] + [6.999] * 13
    assert np.allclose(np.diff(volume.positions_mm), wanted, atol=1e-3)


def test_step_of_a_stack_with_a_gap_is_a_gap_that_exists(tmp_path: Path) -> None:
    write_stack(tmp_path, [1, 2, 3, 5, 6])
    volume = load_volume(tmp_path)
    assert volume.spacing_mm[0] == pytest.approx(2.5)  # 3.125 is the mean, which lies nowhere
    assert message(volume, "MISSING_SLICE").startswith("1 slice is missing")
    assert volume.at((3, 0, 0)) == pytest.approx([0, 0, 12.5])


def test_thickness_and_declared_spacing_change_nothing(tmp_path: Path) -> None:
    """SliceThickness and SpacingBetweenSlices are not spacing, GantryDetectorTilt is no tilt."""
    write_stack(tmp_path / "a", [1, 2, 3])
    write_stack(tmp_path / "b", [1, 2, 3], SliceThickness=7, SpacingBetweenSlices=9,
                GantryDetectorTilt=20)  # fmt: skip
    a, b = load_volume(tmp_path / "a"), load_volume(tmp_path / "b")
    assert np.array_equal(a.affine, b.affine)
    assert "GANTRY_TILT" not in codes(b)


def test_corrupt_slice_leaves_its_place_open(tmp_path: Path) -> None:
    write_stack(tmp_path, [1, 2, 3, 4, 5])
    third = scan(tmp_path).series[0].files[2]
    assert isinstance(third.source, Path)
    header = pydicom.dcmread(third.source)
    header.PixelData = b"xx"
    header.save_as(third.source)
    volume = load_volume(tmp_path)
    assert volume.voxels[:, 0, 0].tolist() == [1, 2, 4, 5]
    assert {"CORRUPT_SLICE", "MISSING_SLICE"} <= set(codes(volume))


def test_broken_first_slice_takes_no_attribute_of_the_series_with_it(tmp_path: Path) -> None:
    write_stack(
        tmp_path, [1, 2, 3], Modality="PT", SOPClassUID=PET, Units="BQML", WindowCenter=2,
        WindowWidth=4, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=3,
        PixelData=[b"xx", *(np.full(16, n, "<i2").tobytes() for n in (2, 3))],
    )  # fmt: skip
    volume = load_volume(tmp_path)
    assert volume.voxels[:, 0, 0].tolist() == [2, 3]
    assert (volume.unit, volume.display.inverted) == ("Bq/ml", True)
    assert (volume.display.vois[0].center, volume.display.vois[0].width) == (2, 4)
    assert volume.padding_ranges == ((3, 3),)


def test_one_lossy_slice_is_enough_to_tell_of_loss(tmp_path: Path) -> None:
    write_stack(tmp_path, [1, 2, 3], LossyImageCompression=["00", "01", None])
    assert "LOSSY" in codes(load_volume(tmp_path))


def test_nothing_but_corrupt_slices_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    write_stack(tmp_path, [1, 2, 3], PixelData=b"xx")
    with pytest.raises(UnreadableFile, match="declares 32 bytes of pixels but holds 2"):
        load_volume(tmp_path)


def test_nan_pixels_cost_their_slice(tmp_path: Path) -> None:
    values = np.ones((3, 16), "<f4")
    values[1, 4] = np.nan
    write_stack(tmp_path, [1, 2, 3], PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None,
                PixelRepresentation=None, FloatPixelData=[v.tobytes() for v in values])  # fmt: skip
    volume = load_volume(tmp_path)
    assert len(volume.voxels) == 2
    assert "NaN" in message(volume, "CORRUPT_SLICE")


def test_preview_decodes_the_middle_slice_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoders.dicom import pixels

    write_stack(tmp_path, list(range(1, 40)))
    series, opened = scan(tmp_path).series[0], []
    real = pixels._open_simple
    monkeypatch.setattr(pixels, "_open_simple", lambda f: opened.append(f) or real(f))
    preview = load_preview(series)
    assert preview.voxels.shape == (1, 4, 4)
    assert preview.voxels[0, 0, 0] == 20
    assert opened == [series.files[19]]
    assert preview.positions_mm[0] == pytest.approx(50.0)


def _enhanced(path: Path, numbers: list[int], uid: str = "7", **attributes: Any) -> Path:
    """An Enhanced CT whose frames stand in this order, each with a rescale of its own."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def group(**items: Any) -> Dataset:
        out = Dataset()
        for keyword, value in items.items():
            setattr(out, keyword, value)
        return out

    frames = [
        group(
            PlanePositionSequence=[group(ImagePositionPatient=[0, 0, 2.5 * n])],
            PixelValueTransformationSequence=[
                group(RescaleSlope=1, RescaleIntercept=-1000 * n, RescaleType="HU")
            ],
        )
        for n in numbers
    ]
    shared = group(
        PlaneOrientationSequence=[group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[group(PixelSpacing=[1, 1], SliceThickness=2.5)],
    )
    data = np.repeat(np.array(numbers, "<i2") * 1000 + np.array(numbers, "<i2"), 16)
    return write_slice(
        path, SOPClassUID=ENHANCED_CT, SOPInstanceUID=ROOT + uid, NumberOfFrames=len(numbers),
        PixelData=data.tobytes(), PerFrameFunctionalGroupsSequence=Sequence(frames),
        SharedFunctionalGroupsSequence=Sequence([shared]), ImagePositionPatient=None,
        ImageOrientationPatient=None, PixelSpacing=None, RescaleSlope=None, RescaleIntercept=None,
        **attributes,
    )  # fmt: skip


def test_unordered_frames_are_sorted_and_rescaled_each_by_its_own(tmp_path: Path) -> None:
    volume = load_volume(_enhanced(tmp_path / "e.dcm", [3, 1, 5, 2, 4]))
    assert volume.voxels[:, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert volume.calibrated
    assert np.allclose(np.diff(volume.positions_mm), 2.5)


def test_parts_of_a_concatenation_form_one_volume(tmp_path: Path) -> None:
    for part, numbers in enumerate(([5, 6], [3, 1], [2, 4])):
        _enhanced(
            tmp_path / f"{part}.dcm", numbers, f"7.{part}", ConcatenationUID=ROOT + "8",
            InConcatenationNumber=part + 1, InConcatenationTotalNumber=3,
        )  # fmt: skip
    volume = load_volume(tmp_path)
    assert volume.voxels[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert codes(volume) == []


def test_phases_of_a_whole_concatenation_miss_no_part(tmp_path: Path) -> None:
    """Each part holds a phase of its own: every stack sees one part, and none is lost."""
    for part in range(2):
        path = _enhanced(
            tmp_path / f"{part}.dcm", [1, 2, 3], f"7.{part}", ConcatenationUID=ROOT + "8",
            InConcatenationNumber=part + 1, InConcatenationTotalNumber=2,
        )  # fmt: skip
        header = pydicom.dcmread(path)
        for frame in header.PerFrameFunctionalGroupsSequence:
            content = pydicom.Dataset()
            content.TemporalPositionIndex = part + 1
            frame.FrameContentSequence = [content]
        header.save_as(path)
    series = scan(tmp_path).series
    assert [len(s.files) for s in series] == [3, 3]
    assert {p.code for s in series for p in s.problems} == {"SECOND_PHASE"}
    (tmp_path / "1.dcm").unlink()
    assert codes(load_volume(tmp_path)) == ["INCOMPLETE_CONCATENATION"]


def _volume(tilt: float = 0.0, positions: tuple[float, ...] = (0, 2, 4, 9, 11)) -> Volume:
    affine = np.array([[0, 0.1, 1.5, -20], [tilt * 2, 1.2, 0, 7], [2.0, 0, 0.1, 3], [0, 0, 0, 1]])
    voxels = np.arange(len(positions) * 6 * 8).reshape(len(positions), 6, 8).astype(np.int16)
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    unit = normal / np.linalg.norm(normal)
    return Volume(
        voxels, affine, affine[:3, 3] @ unit + np.array(positions) * (affine[:3, 0] @ unit) / 2
    )


@given(
    index=st.tuples(st.floats(-1, 5), st.floats(-3, 9), st.floats(-3, 9)),
    tilt=st.sampled_from([0.0, 0.3, -0.2]), mirrored=st.booleans(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_the_way_to_millimetres_and_back_ends_where_it_began(
    index: tuple[float, float, float], tilt: float, mirrored: bool
) -> None:
    volume = _volume(tilt)
    if mirrored:
        affine = volume.affine.copy()
        affine[:3, 0] *= -1
        volume = replace(volume, affine=affine, positions_mm=-volume.positions_mm)
    assert np.allclose(volume.index_of(volume.at(index)), index, atol=1e-9)


def test_at_follows_true_positions_across_a_gap() -> None:
    volume = _volume()
    heights = volume.at([(k, 0, 0) for k in range(5)])[:, 2] - 3
    assert np.allclose(heights, [0, 2, 4, 9, 11])


def test_crop_keeps_every_voxel_in_its_place() -> None:
    volume = _volume(0.3)
    part = volume.crop(slice(1, 4), slice(2, None), slice(3, 7))
    assert part.voxels.shape == (3, 4, 4)
    for index in ((0, 0, 0), (2, 3, 1)):
        before = np.add(index, (1, 2, 3))
        assert part.voxels[index] == volume.voxels[tuple(before)]
        assert np.allclose(part.at(index), volume.at(before))
    with pytest.raises(IrregularGeometry, match="whole, non-empty ranges"):
        volume.crop(slice(3, 3), slice(None), slice(None))


def test_digest_tells_apart_what_is_placed_or_shown_differently() -> None:
    volume = _volume()
    assert replace(volume, display=Display(inverted=True)).digest != volume.digest
    assert replace(volume, display=Display((Voi("a", 1, 2),))).digest != volume.digest
    assert replace(volume, padding_ranges=((-5.0, 0.0),)).digest != volume.digest
    assert replace(volume, unit="").digest != volume.digest
    assert replace(volume, positions_mm=volume.positions_mm * 2).digest != volume.digest
    assert replace(volume, problems=(Problem("LOSSY", "x"),)).digest == volume.digest


def test_private_ct_class_is_read_as_plain_image(tmp_path: Path) -> None:
    volume = one(tmp_path, np.arange(16), SOPClassUID=CT)
    assert volume.calibrated
    assert not one(tmp_path, np.arange(16), SOPClassUID="1.2.3.4.5").calibrated


def test_affines_agree_with_other_readers_within_a_micrometre(shared_data: Path) -> None:
    """SimpleITK on regular series (right there; it has no shear and no gaps)."""
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for name in ("chest_lidc_0001", "abdomen_j2k", "chest_full_lowres", "oblique"):
        volume = load_volume(shared_data / name)
        files = [str(f.source) for f in scan(shared_data / name).default().files]
        reader = sitk.ImageFileReader()
        reader.SetFileName(files[0])
        reader.ReadImageInformation()
        turn = np.array(reader.GetDirection()).reshape(3, 3)
        origin, spacing = np.array(reader.GetOrigin()), reader.GetSpacing()
        assert np.abs(volume.affine[:3, 3] - origin).max() < 1e-3
        assert np.abs(volume.affine[:3, 2] - turn[:, 0] * spacing[0]).max() < 1e-3
        assert np.abs(volume.affine[:3, 1] - turn[:, 1] * spacing[1]).max() < 1e-3
        reader.SetFileName(files[-1])
        reader.ReadImageInformation()
        assert np.abs(volume.at((len(files) - 1, 0, 0)) - reader.GetOrigin()).max() < 1e-3
