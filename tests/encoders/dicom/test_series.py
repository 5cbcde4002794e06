"""What forms a volume and why: slices split, sorted and never interleaved; which series opens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.dicom import Study, describe, scan
from encoders.dicom.choice import is_soft
from encoders.dicom.grouping import heights_of
from encoders.dicom.header import Part, SeriesInfo, SliceFile, Stored, Traits
from encoders.dicom.series import Series, series_of
from encoders.features import Problem

CT = "1.2.840.10008.5.1.4.1.1.2"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def cut(z: float, number: int = 1, /, traits: Traits | None = None, **changes) -> SliceFile:
    """A slice of a plain axial CT at z mm; its UID follows from `number`."""
    plain = SliceFile(
        f"IM{number}", b"", "1.2", f"1.2.{number}", CT, 64, 64, position=(0.0, 0.0, float(z)),
        orientation=AXIAL, spacing=(1.0, 1.0), rescale=(1.0, 0.0), series_number="1",
        instance_number=number, kernel="B30f", info=SeriesInfo(modality="CT", kernel="B30f"),
        traits=traits or Traits(("ORIGINAL", "PRIMARY", "AXIAL")),
    )  # fmt: skip
    return replace(plain, **changes)


def pile(n: int, first: int = 1, step: float = 2.5, /, **changes) -> list[SliceFile]:
    return [cut(step * i, first + i, **changes) for i in range(n)]


def value(trait: str, which: int) -> object:
    """One of several values a trait may have."""
    return (f"{which}.0",) if trait == "image_type" else f"{which + 1}.0"


def codes(series: Series) -> list[str]:
    return [p.code for p in series.problems]


# --- order (15)


@given(
    turn=st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    heights=st.lists(st.integers(-500, 500), min_size=2, max_size=30, unique=True),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_slices_are_sorted_along_their_normal_whatever_names_and_numbers_say(
    turn: list[float], heights: list[int], seed: int
):
    row, column = np.array(turn[:3]), np.array(turn[3:])
    normal = np.cross(row, column)
    if np.linalg.norm(normal) < 0.2:
        return
    normal /= np.linalg.norm(normal)
    orientation = tuple(float(v) for v in (*row, *column))
    numbers = np.random.default_rng(seed).permutation(len(heights))
    slices = [
        cut(0, int(n), position=tuple(float(v) for v in h * normal), orientation=orientation)
        for h, n in zip(heights, numbers, strict=True)
    ]
    (series,) = series_of(slices)
    assert heights_of(series.files) == pytest.approx(sorted(heights), abs=1e-6)
    assert series.is_volume


@given(seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_order_of_files_changes_nothing(seed: int):
    slices = [*pile(6), *pile(6, 20, kernel="B70f"), *pile(4, 40, orientation=CORONAL)]
    shuffled = [slices[i] for i in np.random.default_rng(seed).permutation(len(slices))]
    assert series_of(shuffled) == series_of(slices)


# --- splitting (13, 22)


@pytest.mark.parametrize(
    "other",
    [
        {"orientation": CORONAL}, {"spacing": (0.5, 0.5)}, {"rows": 128}, {"series_number": "2"},
        {"sop_class": "1.2.840.10008.5.1.4.1.1.2.1"}, {"kernel": "B70f"}, {"echo": "2"},
        {"frame_of_reference": "1.2.3"}, {"kind": "reformat"}, {"series_uid": "1.3"},
        {"position": None},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_what_no_volume_mixes_is_kept_apart_though_it_lies_between(other: dict):
    slices = [*pile(5), *(replace(f, position=(0.0, 0.0, f.position[2] + 1.25), **other)
                          if "position" not in other else replace(f, **other)
                          for f in pile(5, 11))]  # fmt: skip
    series = series_of(slices)
    assert sorted(len(s.files) for s in series) == [5, 5]


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_wobble_of_direction_and_spacing_splits_nothing(seed: int):
    """Scanners round and wobble; neighbours on both sides of any bin edge stay together."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(-1, 1, 6)
    start[:3] /= np.linalg.norm(start[:3])
    start[3:] -= start[:3] * (start[3:] @ start[:3])
    start[3:] /= np.linalg.norm(start[3:])
    normal = np.cross(start[:3], start[3:])
    slices = []
    for i in range(20):
        turn = tuple((start + rng.uniform(-1e-3, 1e-3, 6)).tolist())
        spacing = tuple((0.7 + rng.uniform(-1e-4, 1e-4, 2)).tolist())
        place = tuple((normal * 2.0 * i).tolist())
        slices.append(cut(0, i, position=place, orientation=turn, spacing=spacing))
    assert [len(s.files) for s in series_of(slices)] == [20]


@pytest.mark.parametrize("offset", [0.0, 0.5], ids=["same places", "between"])
def test_thick_slices_are_never_mixed_among_thin_ones(offset: float):
    thin = [cut(1.0 * i, 1 + i, Traits((), thickness="1.0")) for i in range(40)]
    thick = [cut(5.0 * i + offset, 100 + i, Traits((), thickness="5.0")) for i in range(8)]
    series = series_of([*thin, *thick])
    assert [len(s.files) for s in series] == [40, 8]
    assert all("told apart by thickness" in s.problems[0].message for s in series)


def test_blocks_of_two_thicknesses_stay_one_series():
    low = [cut(4.0 * i, 1 + i, Traits((), thickness="4.0")) for i in range(8)]
    high = [cut(33.5 + 7.0 * i, 20 + i, Traits((), thickness="7.0")) for i in range(8)]
    (series,) = series_of([*low, *high])
    assert len(series.files) == 16


@pytest.mark.parametrize("trait", Traits._fields)
def test_traits_split_nothing_where_every_place_has_one_image(trait: str):
    """As in the recorded GE head: two ImageTypes and an AcquisitionNumber per slice, one series."""
    slices = [
        replace(f, traits=f.traits._replace(**{trait: value(trait, i >= 5)}))
        for i, f in enumerate(pile(10))
    ]
    (series,) = series_of(slices)
    assert len(series.files) == 10
    assert series.problems == ()


@pytest.mark.parametrize("trait", Traits._fields)
def test_images_at_the_same_places_become_stacks_told_apart_by_their_trait(trait: str):
    slices = [
        replace(f, traits=f.traits._replace(**{trait: value(trait, phase)}))
        for phase, first in ((0, 1), (1, 2), (2, 3))
        for f in (cut(2.5 * i, first + 3 * i) for i in range(8))
    ]
    series = series_of(slices)
    assert [len(s.files) for s in series] == [8, 8, 8]
    for one in series:
        assert codes(one) == ["SECOND_PHASE"]
        assert len({getattr(f.traits, trait) for f in one.files}) == 1
        assert np.diff(heights_of(one.files)) == pytest.approx(2.5)


def test_two_traits_that_vary_together_give_every_combination_its_stack():
    slices = [
        cut(2.0 * i, 100 * p + 10 * e + i, Traits((echo,), phase=phase))
        for p, phase in enumerate("123")
        for e, echo in enumerate(("WATER", "FAT"))
        for i in range(6)
    ]
    assert [len(s.files) for s in series_of(slices)] == [6] * 6


def test_a_time_of_its_own_for_each_slice_tears_no_stack_to_pieces():
    slices = [
        cut(
            2.0 * i,
            10 * p + i,
            Traits((), phase=str(p), content_time=f"10{p}{i:02}", acquisition=str(i)),
        )
        for p in (1, 2)
        for i in range(9)
    ]
    assert [len(s.files) for s in series_of(slices)] == [9, 9]


# --- duplicates (16)


def test_same_instance_twice_is_kept_once_and_told():
    slices = pile(6)
    (series,) = series_of([*slices, replace(slices[2], name="copy")])
    assert len(series.files) == 6
    assert series.problems == (
        Problem("DUPLICATE_INSTANCE", "1 images are there twice; one of each is kept", "copy"),
    )


def test_slices_an_anonymiser_gave_one_uid_are_all_kept():
    (series,) = series_of([replace(f, sop_uid="1.9") for f in pile(6)])
    assert len(series.files) == 6
    assert series.is_volume
    assert codes(series) == ["SHARED_UID"]


def test_images_nothing_tells_apart_are_never_interleaved():
    first, second = pile(8), pile(8, 101)
    series = series_of([f for pair in zip(first, second, strict=True) for f in pair])
    assert [[f.instance_number for f in s.files] for s in series] == [
        list(range(1, 9)), list(range(101, 109))
    ]  # fmt: skip
    assert all(codes(s) == ["DUPLICATE_POSITION"] and s.is_volume for s in series)


def test_one_image_too_many_leaves_the_stack_whole_and_regular():
    extra = cut(5.0, 99)
    series = series_of([*pile(8), extra])
    assert [len(s.files) for s in series] == [8, 1]
    assert np.diff(heights_of(series[0].files)) == pytest.approx(2.5)
    assert series[1].files == (extra,)
    assert "DUPLICATE_POSITION" in codes(series[0])


# --- why a series is no volume (53)


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        (pile(3, kind="localizer"), "localizer images"),
        (pile(3, kind="screen"), "captured screens"),
        (pile(3, kind="dose page"), "dose or patient information"),
        (pile(3, kind="bolus tracking"), "bolus tracking"),
        (pile(3, position=None), "no position and orientation"),
        (pile(1), "a single image"),
        (pile(3, traits=Traits(("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"))), "mosaics"),
        (pile(3, stored=Stored(samples=3)), "colour pictures"),
        (pile(5, 1, 0.0), "5 images at one place, as in bolus tracking"),
    ],
)
def test_series_says_why_it_is_no_volume_and_can_still_be_paged(
    slices: list[SliceFile], reason: str
):
    (series,) = series_of(slices)
    assert not series.is_volume
    assert reason in series.reason
    assert len(series.files) == len(slices)


def test_slices_that_shift_sideways_are_no_volume():
    """One affine cannot tell where they lie; a tilted gantry's straight shear is one."""
    straight = [cut(0, i, position=(0.0, 1.2 * i, 4.0 * i)) for i in range(8)]
    (tilted,) = series_of(straight)
    assert tilted.is_volume
    bent = [replace(f, position=(9.0 * (i > 4), *f.position[1:])) for i, f in enumerate(straight)]
    (broken,) = series_of(bent)
    assert not broken.is_volume
    assert "sideways by up to" in broken.reason


def test_lost_part_of_a_concatenation_is_told():
    parts = [replace(f, part=Part("1.9", 1 + i // 4, 3)) for i, f in enumerate(pile(8))]
    (series,) = series_of(parts)
    assert "INCOMPLETE_CONCATENATION" in codes(series)
    assert "2 of 3 parts" in series.problems[-1].message
    whole = [replace(f, part=Part("1.9", 1 + i // 4, 2)) for i, f in enumerate(pile(8))]
    assert series_of(whole)[0].problems == ()


# --- the series that opens (14)


def one(n: int = 20, uid: str = "1", /, **changes) -> list[SliceFile]:
    step = changes.pop("step", 2.5)
    info = SeriesInfo(
        modality=changes.pop("modality", "CT"), kernel=changes.get("kernel", "B30f"),
        slice_thickness_mm=changes.pop("thickness", step),
    )  # fmt: skip
    return [
        replace(f, series_uid=uid, sop_uid=f"{uid}.{f.sop_uid}", info=info, **changes)
        for f in pile(n, 1, step)
    ]


@pytest.mark.parametrize(
    ("loser", "word"),
    [
        (one(40, "9", modality="MR", sop_class="1.2.840.10008.5.1.4.1.1.4"), "a CT volume"),
        (one(40, "9", kind="localizer"), "no screen or localizer"),
        (one(40, "9", kind="reformat"), "original"),
        (one(40, "9", traits=Traits(("DERIVED", "SECONDARY", "AXIAL"))), "original"),
        (one(20, "9", orientation=CORONAL, position=None), "volume"),
        (one(60, "9", kernel="B70f"), "softest kernel"),
        (one(100, "9", step=0.5), "1 to 5 mm"),
        (one(3, "9"), "no short test series"),
        (one(18, "9"), "most slices"),
    ],
    ids=["MR", "localizer", "reformat", "derived", "2-D", "sharp", "thin", "short", "fewer"],
)
def test_default_is_the_original_soft_axial_ct_and_says_why(loser: list[SliceFile], word: str):
    wanted = one(20, "5")
    study = Study(series_of([*loser, *wanted]))
    assert study.default().files[0].series_uid == "5"
    assert word in study.default_reason


def test_a_coronal_reconstruction_does_not_open_before_the_axial_one():
    coronal = [
        replace(f, orientation=CORONAL, position=(0.0, 2.5 * i, 0.0))
        for i, f in enumerate(one(40, "9"))
    ]
    study = Study(series_of([*coronal, *one(20, "5")]))
    assert study.default().info.plane == "axial"
    assert "axial" in study.default_reason


def test_a_short_test_series_does_not_open_before_the_lung_that_was_scanned():
    study = Study(series_of([*one(3, "9"), *one(60, "5", kernel="B70f")]))
    assert len(study.default().files) == 60


@pytest.mark.parametrize(
    ("kernel", "soft"),
    [
        ("B30f", True), ("B70f", False), ("Br40d", True), ("Hr60", False), ("I31f", True),
        ("STANDARD", True), ("LUNG", False), ("BONEPLUS", False), ("FC08", True), ("FC51", False),
        ("FC30", False), ("UB", True), ("YB", False), ("", None), ("whatever", None),
    ],
)  # fmt: skip
def test_kernel_names_of_four_makers_are_known(kernel: str, soft: bool | None):
    assert is_soft(kernel) is soft


# --- recorded studies


def test_every_recorded_series_is_one_series_of_the_reference(shared_data: Path):
    expected = json.loads((shared_data / "ref/expected_series.json").read_text())
    checked = 0
    for name, record in expected.items():
        (wanted,) = record["series"]
        folder = shared_data / name
        if wanted["multiframe"] or not folder.exists():
            continue
        (series,) = (
            s for s in scan(folder).series if s.files[0].series_uid == wanted["series_uid"]
        )
        assert series.is_volume, name
        assert len(series.files) == wanted["n_slices"], name
        assert series.files[0].position == pytest.approx(wanted["ipp_first"], abs=1e-3)
        assert series.files[-1].position == pytest.approx(wanted["ipp_last"], abs=1e-3)
        found = next(s for s in describe(scan(folder))["series"] if s["key"] == series.key)
        assert found["slice_gaps_mm"] == pytest.approx(wanted["gaps_mm"], abs=2e-3), name
        checked += 1
    assert checked >= 7


def test_recorded_study_opens_its_head_and_says_what_the_rest_is(shared_data: Path):
    study = scan(shared_data / "head_phantom_study")
    told = describe(study)
    assert [s["default"] for s in told["series"]].count(True) == 1
    assert study.default().info.num_slices == 28
    assert "no screen or localizer" in study.default_reason
    kinds = {s["kind"]: s["num_slices"] for s in told["series"]}
    assert {k: kinds[k] for k in ("localizer", "image")} == {"localizer": 1, "image": 28}
    two_numbers = [s for s in study.series if s.kind in ("screen", "dose page")]
    assert sum(len(s.files) for s in two_numbers) == 6
    assert len({(f.rows, f.columns) for s in two_numbers for f in s.files[:1]}) >= 3
    assert not any(s.is_volume for s in two_numbers)
