"""Where the slices of a series lie: the affine, the true positions, and what is wrong with them.

Only Image Position, Image Orientation and Pixel Spacing count (PS3.3 C.7.6.2); no tag that merely
describes them (SliceThickness, SpacingBetweenSlices, GantryDetectorTilt, PatientPosition) is
believed. Nothing is averaged and nothing guessed: what is unknown is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from encoders.dicom.header import SliceFile, Vector
from encoders.features import Problem

GapKind = Literal["single", "regular", "jitter", "missing", "blocks", "irregular"]
TILT_DEGREES = 0.5  # below it a stack counts as straight; real headers round that much
_UNKNOWN = np.full((4, 4), np.nan)


@dataclass(frozen=True)
class Gaps:
    """How far the slices of a stack lie apart.

    Attributes:
        kind: `regular` within 2 %, `jitter` within 15 %, `missing` where every odd gap is a whole
            multiple of the usual one, `blocks` where few runs of slices have each their own gap.
        usual_mm: the median gap.
        lost: how many slices are missing.
        text: the gaps in words.
        at: the slice before the first unusual gap.
    """

    kind: GapKind
    usual_mm: float = 0.0
    lost: int = 0
    text: str = ""
    at: int = 0


def classify_gaps(positions: Sequence[float] | np.ndarray) -> Gaps:
    """Classify the gaps of ascending positions in mm."""
    gaps = np.diff(np.asarray(positions, float))
    if len(gaps) == 0:
        return Gaps("single")
    usual = float(np.median(gaps))
    off = np.abs(gaps - usual)
    odd = np.flatnonzero(off > max(0.02 * usual, 0.02))
    if len(odd) == 0:
        return Gaps("regular", usual)
    at, multiples = int(odd[0]), gaps[odd] / max(usual, 1e-6)
    if np.all((np.abs(multiples - np.round(multiples)) < 0.05) & (multiples > 1.5)):
        lost = int(np.round(multiples).sum()) - len(odd)
        return Gaps("missing", usual, lost, _several(gaps), at)
    if off.max() <= 0.15 * usual:
        return Gaps("jitter", usual, 0, f"{gaps.min():.2f} to {gaps.max():.2f} mm", at)
    runs = _runs(gaps)
    long = [(n, gap) for n, gap in runs if n >= 3]
    if 2 <= len(long) <= 4 and sum(n for n, _ in runs if n < 3) <= len(long):
        text = ", then ".join(f"{n} gaps of {gap:.2f} mm" for n, gap in long)
        return Gaps("blocks", usual, 0, text, at)
    return Gaps("irregular", usual, 0, _several(gaps), at)


def _runs(gaps: np.ndarray) -> list[tuple[int, float]]:
    """Neighbouring gaps that are equal within 2 %: how many, and how wide."""
    runs: list[tuple[int, float]] = []
    for gap in gaps.tolist():
        if runs and abs(gap - runs[-1][1]) <= max(0.02 * runs[-1][1], 0.02):
            runs[-1] = (runs[-1][0] + 1, runs[-1][1])
        else:
            runs.append((1, gap))
    return runs


def _several(gaps: np.ndarray) -> str:
    return ", ".join(f"{g:.2f}" for g in sorted(set(np.round(gaps, 2).tolist()))[:5]) + " mm"


def place_slices(
    files: Sequence[SliceFile], thickness_mm: float | None, problems: list[Problem]
) -> tuple[np.ndarray, np.ndarray]:
    """The affine (slice, row, column) -> LPS mm and the positions along the normal.

    The slice axis of an irregular stack is its usual gap, never a mean; of a single slice, its
    thickness or 1 mm. Both are NaN where the files do not say where the slices are; flaws are added
    to `problems`.
    """
    first = files[0]
    unknown = _UNKNOWN.copy(), np.full(len(files), np.nan)
    if first.orientation is None or any(f.position is None for f in files):
        message = "no position or orientation: where the image lies in the patient is unknown"
        problems.append(Problem("NO_GEOMETRY", message))
        return unknown
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    if abs(row @ column) > 1e-2 or max(abs(np.linalg.norm(v) - 1) for v in (row, column)) > 1e-2:
        message = (
            "the image axes (0020,0037) are not orthogonal unit vectors: where the image lies in"
            " the patient is unknown"
        )
        problems.append(Problem("BAD_ORIENTATION", message))
        return unknown
    normal = normal_of(first.orientation)
    places = np.array([f.position for f in files], float)
    positions = places @ normal
    if first.spacing is None:
        problems.append(Problem("NO_SPACING", "no pixel spacing (0028,0030): sizes are unknown"))
        return unknown[0], positions
    step = normal * (thickness_mm or 1.0)
    if len(files) > 1:
        step = _usual_step(places, positions, problems)
        _report_tilt(step, normal, problems)
        _report_shifts(places, positions, step, min(first.spacing), problems)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = step, places[0]
    affine[:3, 1], affine[:3, 2] = column * first.spacing[0], row * first.spacing[1]
    return affine, positions


def _usual_step(places: np.ndarray, positions: np.ndarray, problems: list[Problem]) -> np.ndarray:
    """From one slice to the next; where gaps differ, a usual one, and the flaw is reported."""
    gaps = classify_gaps(positions)
    where = "Volume.positions_mm holds the true places"
    if gaps.kind == "regular":
        return (places[-1] - places[0]) / (len(places) - 1)
    if gaps.kind == "missing":
        noun = "slice is" if gaps.lost == 1 else "slices are"
        message = f"{gaps.lost} {noun} missing (gaps {gaps.text}); {where}"
        problems.append(Problem("MISSING_SLICE", message, f"after slice {gaps.at}"))
    else:
        words = {"jitter": "slightly unevenly spaced", "blocks": "spaced in blocks"}
        message = f"slices are {words.get(gaps.kind, 'unevenly spaced')} ({gaps.text}); {where}"
        problems.append(Problem("IRREGULAR_SPACING", message))
    near = int(np.argmin(np.abs(np.diff(positions) - gaps.usual_mm)))
    return places[near + 1] - places[near]


def _report_tilt(step: np.ndarray, normal: np.ndarray, problems: list[Problem]) -> None:
    angle = tilt_degrees(step, normal)
    if angle > TILT_DEGREES:
        message = (
            f"slices are sheared by {angle:.1f} degrees; the affine keeps the shear,"
            " resample() removes it"
        )
        problems.append(Problem("GANTRY_TILT", message))


def tilt_degrees(step: np.ndarray, normal: np.ndarray) -> float:
    """The angle between the way the slices are stacked and their normal."""
    cosine = abs(float(step @ normal)) / (np.linalg.norm(step) or 1.0)
    return float(np.degrees(np.arccos(min(cosine, 1.0))))


def _report_shifts(
    places: np.ndarray,
    positions: np.ndarray,
    step: np.ndarray,
    pixel: float,
    problems: list[Problem],
) -> None:
    """An affine has its slices on one line; say so where they are not."""
    rise = float(np.diff(positions)[np.argmin(np.abs(np.diff(positions) - np.linalg.norm(step)))])
    line = places[0] + (positions - positions[0])[:, None] * (step / (rise or 1.0))
    off = float(np.linalg.norm(places - line, axis=1).max())
    if off > pixel / 2:
        message = f"slices lie up to {off:.1f} mm beside the line through the first ones"
        problems.append(Problem("SHIFTED_SLICES", message))


def normal_of(orientation: Vector) -> np.ndarray:
    """Unit normal of a slice: row direction cross column direction (PS3.3 C.7.6.2.1.1)."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / (np.linalg.norm(normal) or 1.0)


def plane_of(orientation: Vector | None) -> str:
    """The plane a slice lies in; oblique from 45 degrees between two of them."""
    if orientation is None:
        return ""
    weight = np.abs(normal_of(orientation))
    return (
        ("sagittal", "coronal", "axial")[int(weight.argmax())] if weight.max() > 0.8 else "oblique"
    )
