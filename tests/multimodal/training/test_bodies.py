"""Drawn bodies: every finding where its truth says, on any scan; a file's orientation changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.dicom import PROFILES, load_volume, make_views, write_ct_series
from multimodal.training.corpus import to_volume
from multimodal.training.world.canvas import Canvas
from multimodal.training.world.findings import (
    KIND_OF,
    KINDS,
    REGIONS,
    Key,
    keys_of,
    random_keys,
)
from multimodal.training.world.scan import Position, Scan, finish, random_scan
from multimodal.training.world.worlds import WORLDS, random_body, scanned, truth_of

PROFILE = PROFILES["crossread-ct"]


def _scan(body, coarser: float = 4.0, seed: int = 0) -> Scan:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    return random_scan(rng, body.field_mm, body.length_mm).coarser(coarser)


@pytest.mark.parametrize("key", keys_of(), ids=str)
def test_every_finding_is_drawn_on_its_own_side_and_nowhere_else(key: Key) -> None:
    name, side = key
    for seed in range(3):
        rng = np.random.default_rng((41, seed))
        body = random_body(rng, KIND_OF[name].region, [key])
        assert [(f.name, f.side) for f in truth_of(body)] == [key]
        canvas = Canvas(_scan(body, 2.5, seed))
        masks = body.draw(canvas)
        assert set(masks) == {key}
        assert masks[key].any()
        if side is not None:
            x = np.broadcast_to(canvas.px, masks[key].shape)[masks[key]]
            assert (np.sign(x) == (1 if side == "left" else -1)).mean() > 0.97


@pytest.mark.parametrize("kind", [k for k in KINDS if k.size_mm is not None], ids=lambda k: k.name)
def test_a_lesions_mask_has_the_size_that_is_stated(kind) -> None:  # type: ignore[no-untyped-def]
    """Its volume, counted in voxels, against the ball of the stated diameter (where organs let it)."""
    key = next(k for k in keys_of([kind.region]) if k[0] == kind.name)
    ratios = []
    for seed in range(6):
        body = random_body(np.random.default_rng((42, seed)), kind.region, [key])
        size = body.lesions[0].shown.size_mm
        assert size is not None
        scan = _scan(body, 1.0, seed)
        spacing = (2.0, 1.2, 1.2) if size > 8 else (1.0, 0.8, 0.8)
        at, reach = np.array(body.lesions[0].centre), 2.2 * size  # only the part that shows it
        n = [int(np.ceil(2 * reach / s)) for s in spacing]
        scan = Scan((n[0], n[1], n[2]), spacing, at[2] - reach, shift_mm=(-at[0], -at[1]))
        counted = body.draw(Canvas(scan))[key].sum() * np.prod(spacing)
        ratios.append(2 * (counted * 3 / (4 * np.pi)) ** (1 / 3) / size)
    expected = 1.7 ** (1 / 3) if kind.name == "aortic aneurysm" else 1.0  # it is long
    assert np.median(ratios) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("region", ["chest", "head", "abdomen"])
def test_drawing_is_hounsfield_and_repeats_from_its_seed(region) -> None:  # type: ignore[no-untyped-def]
    def draw() -> np.ndarray:
        rng = np.random.default_rng(7)
        body = random_body(rng, region)
        return scanned(body, _scan(body), rng).voxels

    first, again = draw(), draw()
    assert np.array_equal(first, again)
    assert first.dtype == np.int16
    assert first[:, 0, 0].mean() == pytest.approx(-1000, abs=25)  # air in a corner
    assert (first > 300).mean() > 0.002  # bone
    if region == "chest":
        lung = (first > -960) & (first < -700)
        assert 0.05 < lung.mean() < 0.5


@pytest.mark.parametrize("position", ["HFS", "FFS", "HFP"])
@pytest.mark.parametrize("head_first", [False, True])
def test_left_stays_left_for_every_position_and_order_of_slices(
    tmp_path: Path, position: Position, head_first: bool
) -> None:
    """A series stored in any order gives the pictures of the volume as it was drawn."""
    rng = np.random.default_rng(11)
    body = random_body(rng, "chest", [("pleural effusion", "left")])
    scan = Scan((20, 48, 48), (15.0, 9.0, 9.0), -150.0, position=position, head_first=head_first)
    drawn = scanned(body, scan, rng)
    voxels, affine = scan.stored(drawn.voxels)
    write_ct_series(voxels, affine, tmp_path, patient_position=position)
    read, straight = (
        make_views(load_volume(tmp_path), PROFILE),
        make_views(to_volume(drawn), PROFILE),
    )
    assert np.array_equal(read.pixels, straight.pixels)
    assert read.geometry == pytest.approx(straight.geometry, abs=1e-3)


def test_fluid_gathers_at_the_back_of_who_lies_on_it_and_at_the_front_of_who_lies_prone() -> None:
    body = random_body(np.random.default_rng(12), "chest", [("pleural effusion", "right")])
    heights = []
    for position in ("HFS", "HFP"):
        canvas = Canvas(Scan((24, 64, 64), (12.0, 6.5, 6.5), -150.0, position=position))  # type: ignore[arg-type]
        mask = body.draw(canvas)["pleural effusion", "right"]
        heights.append(np.broadcast_to(canvas.py, mask.shape)[mask].mean())
    assert heights[0] > 15
    assert heights[1] < -15


def test_a_trunk_is_in_every_slice_the_superellipse_of_that_slices_radii() -> None:
    canvas = Canvas(Scan((6, 40, 50), (10.0, 9.0, 8.0), -30.0, shift_mm=(5.0, -7.0), tilt=0.06))
    wide, deep = np.array([90, 120, 90, 90, 60, 120.0]), np.array([70, 80, 70, 75, 50, 80.0])
    u, v = np.abs(canvas.px.astype(float)), np.abs(canvas.py.astype(float) - 4.0)
    told = [(u / a) ** 2.4 + (v / b) ** 2.4 < 1 for a, b in zip(wide, deep, strict=True)]
    assert np.array_equal(canvas.trunk(wide, deep, y=4.0), told)
    assert canvas.px.dtype == canvas.py.dtype == canvas.z.dtype == np.float32  # half the memory


def test_a_coarser_scan_covers_the_same_field_and_looks_the_same_in_a_view() -> None:
    """Mean grey of each view's windows, and the noise left in a view, within a few levels of 255."""
    rng = np.random.default_rng(13)
    body = random_body(rng, "chest", [])
    fine = random_scan(np.random.default_rng(3), body.field_mm, body.length_mm).coarser(1.6)
    coarse = fine.coarser(1.8)
    assert np.multiply(coarse.shape, coarse.spacing_mm) == pytest.approx(
        np.multiply(fine.shape, fine.spacing_mm)
    )
    views = [make_views(to_volume(scanned(body, s, rng)), PROFILE).pixels for s in (fine, coarse)]
    means = [v.astype(float).mean((2, 3)) for v in views]
    assert means[0] == pytest.approx(means[1], abs=6)


@given(st.integers(0, 10**6), st.floats(1.0, 6.0))
def test_no_slice_is_thicker_than_3_mm_unless_it_was_scanned_so(seed: int, factor: float) -> None:
    """A cut every 12 mm shows a vessel that crosses it as a row of dots, which nodules are too."""
    fine = random_scan(np.random.default_rng(seed), (300.0, 400.0), (0.0, 330.0))
    coarse = fine.coarser(factor)
    assert coarse.spacing_mm[0] <= max(3.0, fine.spacing_mm[0]) + 1e-9
    assert coarse.shape[0] <= fine.shape[0]
    assert coarse.shape[1] == round(512 / factor)  # rows and columns as coarse as asked


def test_the_scanners_noise_is_what_the_scan_says_for_every_kernel() -> None:
    for blur in (0.2, 0.8, 1.4):
        scan = Scan((6, 128, 128), (3.0, 0.8, 0.8), 0.0, blur_mm=blur, noise_hu=20.0)
        flat = np.zeros(scan.shape, np.float32)
        assert finish(flat, scan, np.random.default_rng(2)).std() == pytest.approx(20.0, rel=0.1)


def test_findings_that_would_hide_each_other_never_come_together() -> None:
    for seed in range(400):
        keys = random_keys("chest", np.random.default_rng(seed))
        for side in ("right", "left"):
            assert not {("pneumothorax", side), ("pleural effusion", side)} <= set(keys)
        assert len(keys) == len(set(keys)) <= 4


def test_a_crowded_body_has_most_of_what_can_come_together_and_still_hides_nothing() -> None:
    usual, crowded = (
        [random_keys("chest", np.random.default_rng(s), crowded=c) for s in range(200)]
        for c in (False, True)
    )
    assert np.mean([len(keys) for keys in crowded]) > 2.5 * np.mean([len(k) for k in usual])
    assert max(map(len, crowded)) > 8
    for keys in crowded:
        for side in ("right", "left"):
            assert not {("consolidation", side), ("mass", side)} <= set(keys)


def test_of_crowded_bodies_half_are_chests_and_a_third_abdomens() -> None:
    drawn = [random_body(np.random.default_rng((9, s)), crowded=True).region for s in range(300)]
    shares = [drawn.count(region) / 300 for region in REGIONS]
    assert shares == pytest.approx([0.5, 0.15, 0.35], abs=0.08)  # 3 standard deviations


def test_of_several_alike_in_a_crowded_body_every_one_is_covered_and_one_is_told() -> None:
    """Each lesion's own mask, drawn by itself, lies in the mask of its kind and side."""
    body = next(
        b for s in range(99)
        if (b := random_body(np.random.default_rng((6, s)), crowded=True)).region == "chest"
        and sum(x.key == ("nodule", "left") for x in b.lesions) > 2
    )  # fmt: skip
    nodules = [x for x in body.lesions if x.shown.name == "nodule"]
    assert len({x.shown.size_mm for x in nodules}) == 1
    told = [(f.name, f.side) for f in truth_of(body)]
    assert sorted(set(told)) == sorted(told) == sorted({x.key for x in body.lesions})
    scan = _scan(body, 2.5)
    masks = body.draw(Canvas(scan))
    left = [x for x in nodules if x.shown.side == "left"]
    alone = [
        replace(body, lesions=(x,)).draw(Canvas(scan))["nodule", "left"]  # type: ignore[type-var]
        for x in left
    ]
    assert np.array_equal(np.logical_or.reduce(alone), masks["nodule", "left"])
    assert masks["nodule", "left"].sum() > 1.5 * max(mask.sum() for mask in alone)


@pytest.mark.parametrize(
    ("seed", "crowded", "hidden"), [(673, True, 1), (37, False, 1), (0, True, 0)]
)
def test_the_truth_holds_only_what_a_slice_shows(
    seed: int, crowded: bool, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stone of 7 mm may lie between two slices of 7: then there is none to be seen."""
    monkeypatch.setattr("multimodal.training.world.scan.THICKEST_MM", 12.0)
    rng = np.random.default_rng((77, seed))
    drawn = WORLDS["body"].draw(rng, 3.0, crowded)
    assert all(drawn.rendered.masks[f.name, f.side].any() for f in drawn.truth)
    unseen = [mask for mask in drawn.rendered.masks.values() if not mask.any()]
    assert len(unseen) == hidden
