"""Resampling: against dcm2niix's straightened volumes, closed forms and linear fields."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from encoders.dicom import Volume, load_volume, resample
from encoders.dicom.resampling import weights
from encoders.errors import InvalidPixels, IrregularGeometry


@pytest.mark.parametrize(
    ("name", "reference", "step_mm"),
    [
        ("head_tilt_irregular", "d2n_2_000000_Tilt_Eq_1_sub8.npz", 144.0885 / 55),
        ("missing_slice", "d2n_2_20160722145617_Eq_1_sub8.npz", 4.0),
    ],
)
def test_straightened_volume_is_that_of_dcm2niix_within_two_percent(
    shared_data: Path, name: str, reference: str, step_mm: float
) -> None:
    """Where both lie in the other's grid; their padding counts as air, as it does in ours."""
    stored = np.load(shared_data / "ref" / name / reference)
    volume = load_volume(shared_data / name)
    straight = resample(volume, (step_mm, *volume.spacing_mm[1:]))
    theirs = np.maximum(stored["data"].astype(float), -1024)
    index = np.stack(np.meshgrid(*map(np.arange, theirs.shape), indexing="ij"), -1)
    places = (index * stored["stride"]) @ stored["affine"][:3, :3].T + stored["affine"][:3, 3]
    found = np.rint(straight.index_of(places * [-1, -1, 1])).astype(int)
    inside = ((found >= 0) & (found < straight.voxels.shape)).all(-1)
    ours = straight.voxels[tuple(found[inside].T)]
    span = np.percentile(theirs, 99.9) - np.percentile(theirs, 0.1)
    assert inside.mean() > 0.95
    assert np.abs(ours - theirs[inside]).mean() < 0.02 * span
    assert "RESAMPLED" in {p.code for p in straight.problems}
    assert "GANTRY_TILT" not in {p.code for p in straight.problems}


def _linear(positions: np.ndarray, tilt: float) -> tuple[Volume, np.ndarray]:
    """A volume whose value is a linear function of the place, and that function."""
    affine = np.array([[0, 0, 1.5, -20], [tilt, 1.2, 0, 7], [2.0, 0, 0, 3], [0, 0, 0, 1.0]])
    volume = Volume(
        np.zeros((len(positions), 20, 24), np.float32), affine, 3 + positions, (), unit=""
    )
    field = np.array([3.0, -2.0, 5.0])
    index = np.stack(np.meshgrid(*map(np.arange, volume.voxels.shape), indexing="ij"), -1)
    return replace(volume, voxels=(volume.at(index) @ field).astype(np.float32)), field


@given(
    step=st.floats(0.7, 6), row=st.floats(0.5, 4), column=st.floats(0.5, 4),
    tilt=st.sampled_from([0.0, 0.5, -0.4]), gap=st.sampled_from([0.0, 3.0]),
)  # fmt: skip
@example(step=2.5, row=0.5, column=1.0, tilt=0.5, gap=3.0)
@settings(max_examples=40, deadline=None)
def test_linear_field_stays_what_it_is_wherever_it_is_sampled(
    step: float, row: float, column: float, tilt: float, gap: float
) -> None:
    positions = 2.0 * np.arange(9) + gap * (np.arange(9) > 4)
    volume, field = _linear(positions, tilt)
    found = resample(volume, (step, row, column))
    index = np.argwhere(np.ones(found.voxels.shape, bool))
    places = found.at(index)
    old = volume.index_of(places)
    room = 0.6 * np.array([step, row, column]) / [2.0, 1.2, 1.5] + 0.6
    room[1] += 1.5 * abs(tilt) / 1.2  # a slice of the same cell is sheared past the edge
    inner = ((old > room) & (old < np.array(volume.voxels.shape) - 1 - room)).all(-1)
    error = np.abs(found.voxels[tuple(index[inner].T)] - places[inner] @ field)
    assert len(error) == 0 or error.max() < 1e-2
    assert found.spacing_mm == pytest.approx((step, row, column))


def test_same_spacing_of_a_straight_volume_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0, 1.5, -20], [0, 1.2, 0, 7], [2.0, 0, 0, 3], [0, 0, 0, 1.0]])
    volume = Volume(
        rng.integers(-1000, 1000, (5, 6, 7)).astype(np.int16), affine, 3 + 2.0 * np.arange(5)
    )
    same = resample(volume, volume.spacing_mm)
    assert np.array_equal(same.voxels, volume.voxels)
    assert np.allclose(same.affine, affine)
    assert np.allclose(same.positions_mm, volume.positions_mm)


def test_shrinking_takes_means_and_aliases_nothing() -> None:
    stripes = np.tile([0, 1000], 32)[None, None, :].repeat(4, 0).repeat(64, 1).astype(np.int16)
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    small = resample(Volume(stripes, affine, np.arange(4.0)), (1, 4, 4)).voxels
    assert np.abs(small[:, 1:-1, 1:-1] - 500).max() <= 1


def test_outside_and_padding_become_air() -> None:
    affine = np.array([[0, 0, 1.0, 0], [0.8, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    voxels = np.full((6, 8, 8), 100, np.int16)
    voxels[:, :, 0] = -2048
    volume = Volume(voxels, affine, 2.0 * np.arange(6), padding_ranges=((-2048, -2048),))
    straight = resample(volume, (2.0, 1.0, 1.0))
    assert straight.voxels.shape == (6, 12, 8)  # four rows more for the shear
    assert straight.voxels.min() == -1024
    assert (straight.voxels[:, :, 0] == -1024).all()
    assert straight.voxels[0, 11, 4] == -1024
    assert straight.voxels[0, 3, 4] == 100


def test_impossible_spacings_and_unplaced_volumes_are_refused() -> None:
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    volume = Volume(np.zeros((3, 4, 4), np.int16), affine, np.arange(3.0))
    for spacing in (0, (1, -1, 1), (1, float("nan"), 1)):
        with pytest.raises(IrregularGeometry, match="mm above zero"):
            resample(volume, spacing)  # type: ignore[arg-type]
    with pytest.raises(InvalidPixels, match="more than"):
        resample(volume, 1e-4)
    with pytest.raises(IrregularGeometry, match="do not say where"):
        resample(replace(volume, affine=np.full((4, 4), np.nan)), 1.0)


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=12), st.floats(0.1, 12))
@settings(max_examples=60, deadline=None)
def test_weights_of_inner_places_add_up_to_one(gaps: list[float], cell: float) -> None:
    old = np.concatenate([[0.0], np.cumsum(gaps)])
    new = np.arange(0, old[-1], cell)
    sums = np.asarray(weights(old, new, cell).sum(1)).ravel()
    inner = (new - cell / 2 >= -gaps[0] / 2) & (new + cell / 2 <= old[-1] + gaps[-1] / 2)
    assert np.allclose(sums[inner], 1, atol=1e-5)
    assert (sums <= 1 + 1e-5).all()
