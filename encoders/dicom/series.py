"""What is in a DICOM input: file, folder or zip -> Study > Series of slices in spatial order.

Headers only, no pixels. Whatever is not used is listed as a `Problem` with its reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoders.dicom.header import (
    SECONDARY_CAPTURE,
    SeriesInfo,
    SliceFile,
    Unusable,
    normal_of,
    read_slices,
)
from encoders.dicom.intake import members
from encoders.errors import MissingInput, NotDicom
from encoders.features import Problem


@dataclass(frozen=True)
class Series:
    """Slices that belong together, sorted along their normal, and why they were put together so."""

    files: tuple[SliceFile, ...]
    info: SeriesInfo
    problems: tuple[Problem, ...] = ()
    is_volume: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Study:
    """Everything found in one input."""

    series: tuple[Series, ...]
    problems: tuple[Problem, ...] = ()

    def default(self) -> Series:
        """The series to open: CT volumes first, then other volumes, then the most slices.

        Raises:
            NotDicom: nothing here is an image; the reasons are in the message.
        """
        if not self.series:
            reasons = "; ".join(f"{p.subject}: {p.message}" for p in self.problems[:3])
            raise NotDicom(f"no DICOM image found ({reasons or 'the input is empty'})")
        return max(
            self.series,
            key=lambda s: (
                not s.files[0].localizer and s.files[0].sop_class != SECONDARY_CAPTURE,
                s.is_volume and s.info.modality == "CT",
                s.is_volume,
                len(s.files),
            ),
        )


def scan(path: Path | str) -> Study:
    """Read the headers of a file, a folder (with its subfolders) or a zip.

    Raises:
        MissingInput: the path does not exist.
        UnreadableFile: a zip that is broken, or unpacks to more than is safe.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInput(f"{path.name!r} does not exist; give a DICOM file, folder or zip")
    slices: list[tuple[SliceFile, SeriesInfo]] = []
    problems: list[Problem] = []
    for name, source in members(path, problems):
        try:
            slices.extend(read_slices(name, source))
        except Unusable as unusable:
            problems.append(unusable.problem)
    groups: dict[Any, list[tuple[SliceFile, SeriesInfo]]] = {}
    for item in slices:
        groups.setdefault(_group_key(item[0]), []).append(item)
    series = tuple(_make_series(group) for group in groups.values())
    return Study(series, tuple(problems))


def describe(study: Study) -> dict[str, Any]:
    """A study in JSON types, for `crossread info`: series, sizes, reasons, no identifiers."""
    return {
        "series": [
            {
                **series.info.to_dict(),
                "is_volume": series.is_volume,
                "reason": series.reason,
                "default": series is study.default(),
                "problems": [asdict(p) for p in series.problems],
            }
            for series in study.series
        ],
        "problems": [asdict(p) for p in study.problems],
    }


def _group_key(file: SliceFile) -> tuple[Any, ...]:
    """What the slices of one volume share; directions within about a degree count as equal."""
    turn = tuple(round(v / 0.02) for v in file.orientation) if file.orientation else None
    spacing = tuple(round(v, 3) for v in file.spacing) if file.spacing else None
    return (
        file.series_uid, file.sop_class, file.rows, file.columns, turn, spacing, file.localizer
    )  # fmt: skip


def _make_series(group: list[tuple[SliceFile, SeriesInfo]]) -> Series:
    files: dict[str, SliceFile] = {}
    problems = []
    for file, _ in group:
        if file.sop_uid in files and file.sop_uid:
            problems.append(
                Problem("DUPLICATE_INSTANCE", "the same image twice; one kept", file.name)
            )
            continue
        files[file.sop_uid or f"{file.name}#{len(files)}"] = file
    ordered = list(files.values())
    first, info = ordered[0], group[0][1]
    placed = all(f.position and f.orientation for f in ordered) and first.orientation is not None
    if placed and first.orientation is not None:
        normal = normal_of(first.orientation)
        ordered.sort(key=lambda f: float(np.dot(f.position or (0, 0, 0), normal)))
    is_volume = placed and len(ordered) > 1 and not first.localizer
    reason = (
        "localizer images" if first.localizer
        else f"{len(ordered)} slices of one orientation, matrix and spacing" if is_volume
        else "no position and orientation" if not placed
        else "a single image"
    )  # fmt: skip
    info = replace(info, num_slices=len(ordered), spacing_mm=first.spacing)
    return Series(tuple(ordered), info, tuple(problems), is_volume, reason)
