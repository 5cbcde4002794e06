"""The server half of the viewer: panes and letters of every acquisition, slabs, tokens, routes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from encoders.dicom import Volume, load_volume
from encoders.dicom.header import SeriesInfo
from pipelines.ui import viewer
from pipelines.ui.viewer import PREFIX, Shelf, routes
from pipelines.ui.viewer.panes import Pane, describe, letters_of, panes_of, shown
from tests import makers
from tests.encoders.dicom.test_laterality import POSITIONS, TURNS

OPPOSITE = dict(zip("LRAPHF", "RLPAFH", strict=True))
EDGES = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}


def name(value: Any) -> str:
    return "".join(str(int(v)) for v in value)


def letters_by_nibabel(affine: np.ndarray) -> str:
    """Where each voxel axis runs, in the letters of DICOM; nibabel's space has x and y the other way."""
    codes = nibabel.aff2axcodes(np.diag([-1, -1, 1, 1]) @ affine)
    return "".join({"S": "H", "I": "F"}.get(code, code) for code in codes)


def picture(volume: Volume, pane: Pane) -> np.ndarray:
    """The brightest along the line of sight, turned as the browser turns it."""
    flat = volume.voxels.max(pane.axes[0])
    flat = flat if pane.axes[1] < pane.axes[2] else flat.T
    return flat[:: -1 if pane.flips[0] else 1, :: -1 if pane.flips[1] else 1]


@pytest.mark.parametrize(("row", "column"), TURNS, ids=name)
def test_letters_are_nibabels_in_every_orientation(row: Any, column: Any, tmp_path: Path):
    makers.write_blocks(tmp_path, row, column)
    volume = load_volume(tmp_path)
    codes = letters_by_nibabel(volume.affine)
    for pane in panes_of(volume):
        left, right, upper, lower = pane.letters
        _, down, across = pane.axes
        to_right = OPPOSITE[codes[across]] if pane.flips[1] else codes[across]
        to_bottom = OPPOSITE[codes[down]] if pane.flips[0] else codes[down]
        assert (right, lower) == (to_right, to_bottom)
        assert (left, upper) == (OPPOSITE[right], OPPOSITE[lower])
        assert left + right + upper + lower == EDGES[pane.name]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("row", "column"), TURNS[::5], ids=name)
def test_blocks_are_seen_at_their_letters_whatever_the_patient_position(
    row: Any, column: Any, position: str, tmp_path: Path
):
    makers.write_blocks(tmp_path, row, column, position)
    volume = load_volume(tmp_path)
    wanted = {  # block: pane -> (down, across), each -1, 0 or 1 from the middle
        "left": {"axial": (0, 1), "coronal": (0, 1)},
        "back": {"axial": (1, 0), "sagittal": (0, 1)},
        "head": {"coronal": (-1, 0), "sagittal": (-1, 0)},
    }
    for pane in panes_of(volume):
        for block, seen in wanted.items():
            if pane.name in seen:
                hu = makers.BLOCKS[block][1]
                picked = replace(volume, voxels=np.where(volume.voxels == hu, 1, 0))
                flat = picture(picked, pane)
                off = np.argwhere(flat).mean(0) - (np.array(flat.shape) - 1) / 2
                mm = off * pane.mm[1:]
                ways = tuple(int(np.sign(v)) if abs(v) > 15 else 0 for v in mm)
                assert ways == seen[pane.name]
                assert abs(mm).max() == pytest.approx(30, abs=6)


@pytest.mark.parametrize(
    ("direction", "letters"),
    [((1, 0, 0), "L"), ((0, 0, -1), "F"), ((-0.94, 0.34, 0), "RP"), ((0.99, 0.1, 0.1), "L"),
     ((0.5, -0.7, 0.51), "AHL")],
)  # fmt: skip
def test_oblique_directions_name_their_parts_the_strongest_first(direction: Any, letters: str):
    assert letters_of(direction) == letters


def test_a_recorded_oblique_series_is_lettered_by_its_affine(shared_data: Path):
    volume = load_volume(shared_data / "oblique")
    codes = letters_by_nibabel(volume.affine)
    for pane in panes_of(volume):
        assert pane.letters[1][0] in codes[pane.axes[2]] + OPPOSITE[codes[pane.axes[2]]]
        assert pane.letters[0][0] == OPPOSITE[pane.letters[1][0]]
        assert pane.letters[0][0] + pane.letters[1][0] == EDGES[pane.name][:2]


def test_who_does_not_know_left_shows_one_plane_without_letters(phantom_series: Path):
    volume = load_volume(phantom_series)
    lost = replace(volume, affine=np.full((4, 4), np.nan), positions_mm=np.full(24, np.nan))
    (pane,) = panes_of(lost)
    assert (pane.name, pane.letters) == ("stored", ("", "", "", ""))
    told = describe(shown(lost))
    assert told["placed"] is False
    assert told["panes"][0]["mm"] == list(makers.BLOCKS_SPACING)


def test_one_slice_is_shown_in_its_own_plane_only(tmp_path: Path):
    makers.write_blocks(tmp_path, (1, 0, 0), (0, 0, -1), shape=(1, 64, 48))
    (pane,) = panes_of(load_volume(tmp_path))
    assert (pane.name, "".join(pane.letters)) == ("coronal", "RLHF")


def test_a_missing_slice_leaves_a_step_between_its_neighbours(tmp_path: Path):
    makers.write_blocks(tmp_path)
    for number in (9, 10):
        (tmp_path / f"slice_{number:04d}.dcm").unlink()
    steps = describe(shown(load_volume(tmp_path)))["steps"]
    assert steps == [float(i) for i in range(24) if i not in (9, 10)]


def test_slabs_are_the_hounsfield_units_of_their_slices(phantom_series: Path):
    volume = load_volume(phantom_series)
    held = shown(volume)
    slab = np.frombuffer(held.slab(5, 3), "<i2").reshape(3, *volume.voxels.shape[1:])
    assert np.array_equal(slab, volume.voxels[5:8])
    assert (held.slope, held.base) == (1, 0)


def test_values_that_are_no_integers_come_back_within_half_a_step(phantom_series: Path):
    volume = load_volume(phantom_series)
    values = np.linspace(-0.25, 31.5, volume.voxels.size, dtype=np.float32)
    held = shown(replace(volume, voxels=values.reshape(volume.voxels.shape), unit="SUV"))
    back = held.raw.reshape(-1) * held.slope + held.base
    assert np.abs(back - values).max() <= held.slope / 2 + 1e-5


def test_too_many_voxels_are_thinned_within_the_slice_and_stay_where_they_are(
    phantom_series: Path, monkeypatch: pytest.MonkeyPatch
):
    volume = load_volume(phantom_series)
    monkeypatch.setattr("pipelines.ui.viewer.panes.MAX_BYTES", volume.voxels.nbytes // 3)
    held = shown(volume)
    told = describe(held)
    assert (held.stride, told["shape"]) == (2, [24, 32, 24])
    affine = np.array(told["affine"])
    assert affine @ [7, 5, 3, 1] == pytest.approx(volume.at([7, 10, 6]))
    assert told["panes"][0]["mm"] == [4.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("part", "first"),
    [("CHEST", "lung"), ("HEAD", "brain"), ("ABDOMEN", "abdomen"), ("", "abdomen")],
)
def test_a_ct_opens_in_the_window_of_its_body_part_and_offers_the_files_own(
    phantom_series: Path, part: str, first: str
):
    volume = replace(load_volume(phantom_series), info=SeriesInfo(modality="CT", body_part=part))
    told = describe(shown(volume))
    assert told["windows"][told["window"]]["name"] == first
    own = [(w["center"], w["width"]) for w in told["windows"] if w["file"]]
    assert own == [(40, 400)]


def test_values_without_hounsfield_units_get_no_preset_of_ct(phantom_series: Path):
    volume = replace(load_volume(phantom_series), unit="", info=SeriesInfo(modality="MR"))
    assert all(w["file"] for w in describe(shown(volume))["windows"])


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    own = Shelf()
    monkeypatch.setattr(viewer, "shelf", lambda: own)
    return TestClient(Starlette(routes=routes()))


def test_a_token_opens_its_volume_and_nothing_else(client: TestClient, phantom_series: Path):
    volume = load_volume(phantom_series)
    one, other = viewer.shelf().put(volume), viewer.shelf().put(volume)
    assert len(one["token"]) >= 32
    assert one["token"] != other["token"]
    reply = client.get(f"{PREFIX}/slab/{one['token']}/2/4")
    assert np.array_equal(np.frombuffer(reply.content, "<i2"), volume.voxels[2:6].reshape(-1))
    assert reply.headers["cache-control"] == "no-store"
    viewer.shelf().release(one["token"])
    assert client.get(f"{PREFIX}/slab/{one['token']}/2/4").status_code == 404
    assert client.get(f"{PREFIX}/slab/{other['token']}/2/4").status_code == 200


@pytest.mark.parametrize("path", ["x/0/1", "{}/23/2", "{}/0/0", "{}/0/100000", "{}/-1/1", "{}/a/1"])
def test_a_wrong_token_and_a_wrong_range_are_not_found(
    client: TestClient, phantom_series: Path, path: str
):
    token = viewer.shelf().put(load_volume(phantom_series))["token"]
    assert client.get(f"{PREFIX}/slab/{path.format(token)}").status_code == 404


def test_only_the_viewers_own_files_are_served(client: TestClient):
    script = client.get(f"{PREFIX}/viewer.js")
    assert script.headers["content-type"].startswith("text/javascript")
    for wrong in ("__init__.py", "panes.py", "%2e%2e%2fwords.py", "..%2f__init__.py", "none.js"):
        assert client.get(f"{PREFIX}/{wrong}").status_code == 404


def test_the_volume_used_longest_ago_makes_room(phantom_series: Path):
    volume = load_volume(phantom_series)
    kept = Shelf(max_bytes=2 * volume.voxels.nbytes)
    first, second = (kept.put(volume)["token"] for _ in range(2))
    kept.get(first)
    third = kept.put(volume)["token"]
    assert [kept.get(t) is not None for t in (first, second, third)] == [True, False, True]


def test_a_volume_nobody_fetches_is_dropped(phantom_series: Path, monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("pipelines.ui.viewer.monotonic", lambda: now)
    kept = Shelf()
    token = kept.put(load_volume(phantom_series))["token"]
    now = viewer.KEEP_S
    assert kept.get(token) is not None
    now = 2 * viewer.KEEP_S + 1
    assert kept.get(token) is None
