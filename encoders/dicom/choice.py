"""Which series opens by default, and why.

A CT volume is preferred, then one that is no short test series, is original, axial, of a soft
kernel, of 1 to 5 mm, and has the most slices: each wish decides only between those equal in all
before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from encoders.dicom.grouping import heights_of

if TYPE_CHECKING:
    from encoders.dicom.series import Series

_SHARP_NAMES = {"LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA", "CHST", "D", "E", "L", "YA", "YB", "YC",
                "YD"}  # fmt: skip  # GE, Philips
_SOFT_NAMES = {"STANDARD", "SOFT", "STD", "STD+", "DETAIL", "A", "B", "C", "UA", "UB", "UC"}


def is_soft(kernel: str) -> bool | None:
    """Whether a ConvolutionKernel (0018,1210) suits soft tissue; None where its name says nothing.

    Siemens and Canon number theirs: B30f, Br40d, Hr60 (from 50 on sharp); FC18, FC44 (from 30 to
    39 and from 50 on sharp). GE and Philips name them.
    """
    name = kernel.strip().upper()
    if name in _SHARP_NAMES or name in _SOFT_NAMES:
        return name in _SOFT_NAMES
    canon = re.match(r"FC(\d\d)", name)
    if canon:
        number = int(canon[1])
        return number < 30 or 40 <= number < 50
    siemens = re.match(r"[A-Z]{1,2}(\d\d)", name)
    return int(siemens[1]) < 50 if siemens else None


_PATIENT = ("image", "reformat")


def _is_volume_of(series: Series, modality: str) -> bool:
    return series.is_volume and series.kind in _PATIENT and series.info.modality == modality


def _is_original(series: Series) -> bool:
    return series.files[0].traits.image_type[:1] != ("DERIVED",)


def _extent(series: Series) -> float:
    return float(abs(heights_of(series.files)[[0, -1]] @ (-1, 1))) if series.is_volume else 0.0


def _thickness(series: Series) -> float:
    if series.info.slice_thickness_mm:
        return series.info.slice_thickness_mm
    return _extent(series) / max(len(series.files) - 1, 1)


# what is wished for, in its order, and how far a series is it; some look at the longest of CT
WISHES: dict[str, Callable[[Series, float], float]] = {
    "a picture of the patient, no screen or localizer": lambda s, _: s.kind in _PATIENT,
    "a CT volume": lambda s, _: _is_volume_of(s, "CT"),
    "a volume": lambda s, _: s.is_volume,
    "no short test series": lambda s, longest: _extent(s) >= longest / 4,
    "original, no reformat": lambda s, _: s.kind == "image" and _is_original(s),
    "axial": lambda s, _: s.info.plane == "axial",
    "softest kernel": lambda s, _: (False, None, True).index(is_soft(s.info.kernel)),
    "1 to 5 mm": lambda s, _: 1 <= _thickness(s) <= 5,
    "most slices": lambda s, _: len(s.files),
}


def choose(series: Sequence[Series]) -> tuple[int, tuple[str, ...]]:
    """The index of the series to open, and the wishes that it and not every other meets.

    There must be one.
    """
    longest = max((_extent(s) for s in series if _is_volume_of(s, "CT")), default=0.0)
    left = list(range(len(series)))
    met = []
    for name, wish in WISHES.items():
        marks = {i: wish(series[i], longest) for i in left}
        best = max(marks.values())
        kept = [i for i in left if marks[i] == best]
        if best and len(kept) < len(left):
            met.append(name)
        left = kept
    return left[0], tuple(met)
