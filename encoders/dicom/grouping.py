"""Which slices form one stack: a series holds several where directions, echoes or phases differ.

Slices are put apart by what no volume mixes; by what a volume may mix (ImageType, acquisition,
times) only where two of them lie at the same place. Nothing here looks at file names or times to
put slices in order: that is the position along the normal (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from encoders.dicom.geometry import normal_of
from encoders.dicom.header import SliceFile, Traits, Vector
from encoders.features import Problem

SAME_DIRECTION = 0.01  # difference of direction cosines: half a degree
SAME_SPACING = 1e-3  # relative
SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class Stack:
    """Slices in spatial order, lowest along their normal first."""

    files: tuple[SliceFile, ...]
    placed: bool
    problems: tuple[Problem, ...] = ()


def stacks_of(slices: Iterable[SliceFile]) -> list[Stack]:
    """Every slice in one stack; images given twice are dropped and reported."""
    stacks = []
    for group in _groups(slices, _hard_key):
        kept, problems = _without_copies(group)
        for part in _alike(kept):
            stacks += [replace(s, problems=(*problems, *s.problems)) for s in _phases(part)]
            problems = []
    return stacks


def heights_of(files: Sequence[SliceFile]) -> np.ndarray:
    """mm along the normal of the first slice; all must have a position."""
    orientation = files[0].orientation
    assert orientation is not None
    return np.array([f.position for f in files]) @ normal_of(orientation)


def _hard_key(file: SliceFile) -> Hashable:
    """What no volume mixes."""
    return (
        file.series_uid or file.study_uid, file.series_number, file.sop_class, file.kind,
        file.rows, file.columns, file.stored.samples, file.frame_of_reference, file.kernel,
        file.echo, file.stored.photometric == "MONOCHROME1",
    )  # fmt: skip


def _groups(
    slices: Iterable[SliceFile], key: Callable[[SliceFile], Hashable]
) -> list[list[SliceFile]]:
    found: dict[Hashable, list[SliceFile]] = {}
    for file in slices:
        found.setdefault(key(file), []).append(file)
    return list(found.values())


def _without_copies(group: list[SliceFile]) -> tuple[list[SliceFile], list[Problem]]:
    """An instance twice is kept once; different images that share a UID are all kept."""
    kept: dict[Hashable, SliceFile] = {}
    copies = []
    for file in group:
        identity = (file.sop_uid, file.position, file.instance_number, file.sop_uid or len(kept))
        if identity in kept:
            copies.append(file.name)
        else:
            kept[identity] = file
    problems = []
    if copies:
        words = f"{len(copies)} images are there twice; one of each is kept"
        problems.append(Problem("DUPLICATE_INSTANCE", words, copies[0]))
    uids = {f.sop_uid for f in kept.values() if f.sop_uid}
    if len(uids) < sum(bool(f.sop_uid) for f in kept.values()):
        words = "different images share one SOP Instance UID (0008,0018); all are kept"
        problems.append(Problem("SHARED_UID", words))
    return list(kept.values()), problems


def _alike(group: list[SliceFile]) -> list[list[SliceFile]]:
    """Parts of one direction and spacing, each compared with its part's first slice."""
    parts: list[list[SliceFile]] = []
    for file in group:
        for part in parts:
            if _same_plane(part[0], file):
                part.append(file)
                break
        else:
            parts.append([file])
    return parts


def _same_plane(a: SliceFile, b: SliceFile) -> bool:
    if (a.position is None) != (b.position is None):
        return False
    return _close(a.orientation, b.orientation, SAME_DIRECTION) and _close(
        a.spacing, b.spacing, SAME_SPACING * min(a.spacing or (1.0,))
    )


def _close(a: Vector | None, b: Vector | None, tolerance: float) -> bool:
    if a is None or b is None or a == b:
        return a == b
    return max(abs(p - q) for p, q in zip(a, b, strict=True)) <= tolerance


def _phases(files: list[SliceFile]) -> list[Stack]:
    """One stack, or several where images lie at the same place."""
    if files[0].orientation is None or files[0].position is None:
        ordered = sorted(files, key=lambda f: (f.instance_number, f.frame or 0, f.name))
        return [Stack(tuple(ordered), False)]
    order = np.argsort(heights_of(files), kind="stable")
    files = [files[i] for i in order]
    thickness = _is_thick_among_thin(files)
    if _num_places(files) in (1, len(files)) and not thickness:
        return [Stack(tuple(files), True)]
    trait = "thickness" if thickness else _telling_trait(files)
    if trait is None:
        return _by_rank(files)
    parts = _groups(files, lambda f: getattr(f.traits, trait))
    words = f"{len(parts)} stacks at the same places, told apart by {trait.replace('_', ' ')}"
    problem = Problem("SECOND_PHASE", f"{words}; each is a series of its own")
    found = [stack for part in parts for stack in _phases(part)]
    return [replace(s, problems=(problem, *s.problems)) for s in found]


def _num_places(files: Sequence[SliceFile]) -> int:
    heights = np.sort(heights_of(files))
    return 1 + int((np.diff(heights) > SAME_PLACE_MM).sum())


def _is_thick_among_thin(files: list[SliceFile]) -> bool:
    """Whether thick slices lie among thin ones; blocks of two thicknesses lie one after another."""
    parts: dict[float, list[float]] = {}
    for file, height in zip(files, heights_of(files).tolist(), strict=True):
        parts.setdefault(float(file.traits.thickness or 0), []).append(height)
    spans = sorted((t, min(h), max(h)) for t, h in parts.items() if t > 0 and len(h) > 2)
    return any(
        thick > 1.4 * thin and min(top, top2) - max(low, low2) > thick
        for thin, low, top in spans
        for thick, low2, top2 in spans
    )


def _telling_trait(files: list[SliceFile]) -> str | None:
    """The trait that parts images at the same place best, without tearing stacks to pieces."""
    most = _most_at_one_place(files)
    best, fewest = None, len(files) - _num_places(files)
    for trait in Traits._fields:
        parts = _groups(files, lambda f, t=trait: getattr(f.traits, t))  # type: ignore[misc]
        if len(parts) == 1 or len(parts) > max(most, len(files) // 3):
            continue
        left = sum(len(part) - _num_places(part) for part in parts)
        if left < fewest:
            best, fewest = trait, left
    return best


def _most_at_one_place(files: Sequence[SliceFile]) -> int:
    heights = np.sort(heights_of(files))
    starts = np.flatnonzero(np.diff(heights, prepend=heights[0] - 1) > SAME_PLACE_MM)
    return int(np.diff(starts, append=len(heights)).max())


def _by_rank(files: list[SliceFile]) -> list[Stack]:
    """No trait tells the images apart: the first of each place by InstanceNumber, the second ..."""
    heights = heights_of(files)
    ranks: list[list[SliceFile]] = []
    for place in np.split(
        np.array(files, object), np.flatnonzero(np.diff(heights) > SAME_PLACE_MM) + 1
    ):
        for rank, file in enumerate(sorted(place, key=lambda f: (f.instance_number, f.name))):
            if rank == len(ranks):
                ranks.append([])
            ranks[rank].append(file)
    extra = sum(map(len, ranks[1:]))
    words = f"{extra} images lie where another does and nothing tells them apart"
    problem = Problem("DUPLICATE_POSITION", f"{words}; they are kept as a series of their own")
    return [Stack(tuple(rank), True, (problem,)) for rank in ranks]
