"""View profiles: MedGemma's arithmetic written out, sampling by position, the way back to mm."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.dicom import PROFILES, Volume, Window, load_volume, make_views
from encoders.dicom.display import Display, Voi
from encoders.dicom.header import SeriesInfo
from encoders.dicom.pictures import Picture
from encoders.dicom.views import to_rgb
from encoders.errors import InvalidPixels

MEDGEMMA = PROFILES["medgemma-ct"]


def _stack(voxels: np.ndarray, positions=None, row_mm=1.0, column_mm=1.0, **kwargs) -> Volume:
    positions = np.arange(len(voxels), dtype=float) if positions is None else np.array(positions)
    affine = np.diag([1.0, row_mm, column_mm, 1.0])[[2, 1, 0, 3]]
    affine[2, 0] = np.median(np.diff(positions)) if len(positions) > 1 else 1.0
    return Volume(voxels, affine, positions.astype(float), **kwargs)


def _medgemma(hu: np.ndarray) -> np.ndarray:
    """The notebook's arithmetic in words: clip, move to 0, scale to 255, round, in float32."""
    channels = []
    for low, high in ((-1024, 1024), (-135, 215), (0, 80)):
        grey = np.clip(hu, low, high).astype(np.float32)
        grey -= low
        grey /= high - low
        grey *= 255.0
        channels.append(grey)
    return np.round(np.stack(channels, -1), 0).astype(np.uint8)


def test_every_hounsfield_value_gets_the_three_bytes_of_medgemma() -> None:
    hu = np.arange(-32768, 32768).astype(np.int16).reshape(1, 256, 256)
    assert np.array_equal(to_rgb(hu, MEDGEMMA.windows), _medgemma(hu))


def test_values_with_fractions_take_the_same_arithmetic() -> None:
    hu = np.random.default_rng(0).uniform(-1100, 1100, (2, 30, 40)).astype(np.float32)
    assert np.array_equal(to_rgb(hu, MEDGEMMA.windows), _medgemma(hu))


@pytest.mark.parametrize(
    "study", ["chest_lidc_0001", "head_phantom_study"], ids=["signed", "unsigned"]
)
def test_recorded_ct_becomes_medgemma_pictures_byte_for_byte(shared_data: Path, study: str) -> None:
    """Stored values by pydicom, HU in int32: nothing of ours but the order of the slices."""
    import pydicom

    volume = load_volume(shared_data / study)
    views = make_views(volume, MEDGEMMA)
    found = {}
    for file in (p for p in (shared_data / study).rglob("*") if p.is_file()):
        header = pydicom.dcmread(file, force=True)
        if "LOCALIZER" in header.get("ImageType", ()) or "ImagePositionPatient" not in header:
            continue
        hu = header.pixel_array.astype(np.int32) * int(header.RescaleSlope)
        found[float(header.ImagePositionPatient[2])] = hu + int(header.RescaleIntercept)
    assert len(views.pixels) == len(volume.voxels)
    for picture, source in zip(views.pixels, views.sources, strict=True):
        assert source.slice_index is not None
        hu = found[float(volume.at((source.slice_index, 0, 0))[2])]
        assert np.array_equal(np.moveaxis(picture, 0, -1), _medgemma(hu))


def test_pictures_are_padded_with_zeros_to_a_square() -> None:
    views = make_views(_stack(np.full((3, 4, 6), 40, np.int16)), MEDGEMMA)
    assert views.pixels.shape == (3, 3, 6, 6)
    assert (views.pixels[:, :, [0, 5]] == 0).all()
    assert (views.pixels[:, 2, 1:5] == 128).all()
    assert views.sources[1].to_stored((0, 1, 6, 5)) == (0, 0, 6, 4)


def test_no_more_pictures_than_the_profile_allows_each_with_its_label() -> None:
    views = make_views(_stack(np.zeros((200, 4, 4), np.int16)), MEDGEMMA)
    assert len(views.pixels) == len(views.sources) == len(views.geometry) == 85
    assert views.labels[:2] == ("SLICE 1", "SLICE 2")
    assert views.labels[-1] == "SLICE 85"
    indices = [s.slice_index for s in views.sources]
    assert indices[0] == 0
    assert indices[-1] == 199
    assert set(np.diff(np.array(indices))) == {2, 3}


def test_slices_are_taken_evenly_by_position_not_by_index() -> None:
    """Half of the stack is four times denser: by index it would get four fifths of the pictures."""
    positions = np.concatenate([np.arange(0, 100, 0.5), np.arange(100, 200, 2.0)])
    profile = replace(MEDGEMMA, num_views=21)
    views = make_views(_stack(np.zeros((250, 4, 4), np.int16), positions), profile)
    taken = [s.position_mm for s in views.sources]
    assert np.diff(taken) == pytest.approx(np.full(20, 9.9), abs=1.1)
    assert [positions[s.slice_index or 0] for s in views.sources] == taken


@given(
    gaps=st.lists(st.floats(0.3, 12), min_size=1, max_size=120), count=st.integers(2, 40), slab=st.booleans()
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_stack_gives_ordered_different_slices_within_the_cap(
    gaps: list[float], count: int, slab: bool
) -> None:
    positions = np.cumsum([0.0, *gaps])
    volume = _stack(np.zeros((len(positions), 4, 4), np.int16), positions)
    views = make_views(volume, replace(MEDGEMMA, num_views=count, size=4, slab=slab))
    ranges = [s.slice_range or (0, 0) for s in views.sources]
    assert 1 <= len(ranges) <= count
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    assert all(a <= (s.slice_index or 0) < b for (a, b), s in zip(ranges, views.sources, strict=True))  # fmt: skip


def test_pixels_that_are_not_square_become_square() -> None:
    """Columns 1 mm, rows 2 mm: a square of 8 mm is shown as wide as high, nothing thrown away."""
    voxels = np.full((1, 10, 16), -1024, np.int16)
    voxels[0, 3:7, 4:12] = 1024  # 8 mm x 8 mm
    views = make_views(_stack(voxels, row_mm=2.0), MEDGEMMA)
    assert views.pixels.shape == (1, 3, 20, 20)
    bright = views.pixels[0, 0] > 128
    assert abs(int(bright.any(0).sum()) - int(bright.any(1).sum())) <= 1
    assert views.geometry[0, [3, 7]] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("uneven", [0, 1], ids=["of one value", "but for a pixel"])
def test_a_slice_is_averaged_within_its_frame_and_has_air_beside_it(uneven: int) -> None:
    """40 x 60 pixels in a square of 30: each of the 20 x 30 in the middle is the mean of 2 x 2."""
    profile = replace(PROFILES["crossread-ct"], size=30)
    window = profile.windows[0]
    voxels = np.full((1, 40, 60), -600, np.int16)
    voxels[0, 7, 9] += 400 * uneven
    wanted = np.full((30, 30), -1024.0, np.float32)
    wanted[5:25] = voxels[0].reshape(20, 2, 30, 2).astype(np.float32).mean((1, 3))
    picture = make_views(_stack(voxels, info=SeriesInfo(modality="CT")), profile).pixels[0, 0]
    assert np.array_equal(picture, window.apply(wanted))


def test_pixels_a_thousand_times_as_long_as_wide_are_refused_and_fill_no_memory() -> None:
    """Square ones in their stead would have taken 114 GiB."""
    hu = np.zeros((4, 64, 64), np.int16)
    stack = _stack(hu, row_mm=10.0, column_mm=0.01, info=SeriesInfo(modality="CT"))
    with pytest.raises(InvalidPixels, match=r"1e\+03 times as high as wide.*pixel spacing"):
        make_views(stack, MEDGEMMA)
    assert make_views(stack, PROFILES["crossread-ct"]).pixels.shape == (4, 3, 96, 96)
    picture = Picture(np.zeros((8, 8, 3), np.uint8), "x", aspect=1000.0)
    with pytest.raises(InvalidPixels, match="correct the pixel spacing"):
        picture.squared()


def test_mr_is_scaled_by_percentiles_of_the_volume_not_of_each_slice() -> None:
    rng = np.random.default_rng(1)
    dim, bright = rng.integers(0, 200, (2, 5, 64, 64))
    voxels = np.concatenate([dim, bright * 5]).astype(np.int16)
    voxels[0, 0, 0] = 30000  # one hot voxel must not darken the rest
    info = SeriesInfo(modality="MR")
    views = make_views(_stack(voxels, info=info, unit=""), PROFILES["mr"])
    low, high = np.percentile(voxels, [0.5, 99.5])
    wanted = 255 * np.clip((voxels - low) / (high - low), 0, 1)
    assert np.abs(views.pixels[:, 0] - wanted).max() <= 0.51
    assert (views.pixels[:, 0] == views.pixels[:, 2]).all()
    assert views.pixels[:5].max(initial=0, where=views.pixels[:5] < 255) < 60


@pytest.mark.parametrize("inverted", [False, True])
def test_chest_x_ray_takes_the_headers_window_and_is_inverted_once(inverted: bool) -> None:
    voxels = np.arange(4096, dtype=np.int16).reshape(1, 64, 64)
    for display, low, high in (
        (Display((Voi("w", 2048, 1024, "LINEAR_EXACT"),), inverted), 1536, 2560),
        (Display((), inverted), 0, 4095),
    ):
        volume = _stack(voxels, info=SeriesInfo(modality="DX"), unit="", display=display)
        shown = make_views(volume, PROFILES["cxr"]).pixels[0, 1]
        wanted = np.clip((voxels[0] - low) / (high - low), 0, 1)
        wanted = 1 - wanted if inverted else wanted
        assert np.abs(shown - 255 * wanted).max() <= 0.51


@pytest.mark.parametrize(("profile", "modality"), [("mr", "MR"), ("cxr", "DX")])
@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_and_does_not_stretch_the_scale(
    profile: str, modality: str, inverted: bool
) -> None:
    voxels = np.random.default_rng(2).integers(1000, 2000, (4, 32, 32)).astype(np.int16)
    plain = _stack(
        voxels, info=SeriesInfo(modality=modality), unit="", display=Display((), inverted)
    )
    padded = voxels.copy()
    padded[:, :3] = -30000
    holed = replace(plain, voxels=padded, padding_ranges=((-30000.0, -30000.0),))
    shown, without = (make_views(v, PROFILES[profile]).pixels for v in (holed, plain))
    assert (shown[:, :, :3] == 0).all()
    assert np.abs(shown[:, :, 3:].astype(int) - without[:, :, 3:]).max() <= 4


def test_our_profile_on_an_x_ray_shows_it_as_the_header_wants() -> None:
    voxels = np.arange(4096, dtype=np.int16).reshape(1, 64, 64)
    info = SeriesInfo(modality="CR")
    volume = _stack(voxels, info=info, unit="", display=Display((), inverted=True))
    views = make_views(volume, PROFILES["crossread-ct"])
    assert [p.code for p in views.problems] == ["STRETCHED"]
    lung = views.pixels[0, 0].astype(int)
    assert lung[0].mean() > lung[-1].mean() + 100


def test_a_profile_is_a_value_that_a_model_names() -> None:
    assert set(PROFILES) >= {"crossread-ct", "crossread-ct-large", "medgemma-ct", "mr", "cxr"}
    assert all(name == profile.name for name, profile in PROFILES.items())
    low_high = [(w.center - w.width / 2, w.center + w.width / 2) for w in MEDGEMMA.windows]
    assert low_high == [(-1024, 1024), (-135, 215), (0, 80)]


def test_documented_profiles_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[3] / "docs/dicom.md").read_text(encoding="utf-8")
    for profile in PROFILES.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{profile.name}` |"))
        assert str(profile.num_views) in row
        assert profile.size is None or f"| {profile.size} |" in row
        if profile.scale == "hu" and "the same" not in row:
            for w in profile.windows:
                assert f"{w.center - w.width / 2:g}..{w.center + w.width / 2:g}" in row


def test_window_table_is_kept_and_never_written_to() -> None:
    hu = np.array([[0, 40, 80]], np.int16)
    first = to_rgb(hu, MEDGEMMA.windows)
    first[:] = 7
    assert to_rgb(hu, MEDGEMMA.windows)[0, :, 2].tolist() == [0, 128, 255]
    other = (Window("a", 0, 2), Window("b", 0, 2), Window("c", 40, 2))
    assert to_rgb(hu, other)[0, 1].tolist() == [255, 255, 128]


@pytest.mark.parametrize("profile", ["crossread-ct", "medgemma-ct"])
def test_stack_whose_place_is_unknown_still_shows_all_its_parts(profile: str) -> None:
    voxels = np.arange(100, dtype=np.int16)[:, None, None] * np.ones((1, 8, 8), np.int16)
    placed = _stack(voxels)
    lost = replace(placed, affine=np.full((4, 4), np.nan), positions_mm=np.full(100, np.nan))
    views, wanted = (make_views(volume, PROFILES[profile]) for volume in (lost, placed))
    assert np.array_equal(views.pixels, wanted.pixels)
    assert [s.slice_range for s in views.sources] == [s.slice_range for s in wanted.sources]
    assert {s.position_mm for s in views.sources} == {None}
