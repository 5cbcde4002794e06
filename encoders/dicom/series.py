"""What is in a DICOM input: file, folder or archive -> Study > Series of slices in spatial order.

Headers only, no pixels. Whatever is not used is listed as a `Problem` with its reason; what is
told of a study names no patient and no UID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from encoders.dicom.choice import choose
from encoders.dicom.geometry import plane_of
from encoders.dicom.grouping import Stack, heights_of, stacks_of
from encoders.dicom.header import Document, Part, SeriesInfo, SliceFile, read_header
from encoders.dicom.intake import members
from encoders.dicom.kinds import Kind
from encoders.dicom.vocabulary import shown_name
from encoders.errors import MissingInput, NotDicom
from encoders.features import Problem

MAX_SHIFT_MM = 1.0  # sideways, of a slice from the line through the first and the last
_NO_VOLUME: dict[Kind, str] = {
    "localizer": "localizer images",
    "screen": "captured screens, no cross-sections",
    "dose page": "dose or patient information pages",
    "bolus tracking": "bolus tracking: one place over time",
}


@dataclass(frozen=True)
class Series:
    """Slices that belong together, sorted along their normal, and why they were put together so.

    A series of the input may give several of these: one per orientation, echo, phase ...
    """

    files: tuple[SliceFile, ...]
    info: SeriesInfo
    problems: tuple[Problem, ...] = ()
    is_volume: bool = False
    reason: str = ""

    @property
    def kind(self) -> Kind:
        """Which sort of pictures these are."""
        return self.files[0].kind

    @property
    def key(self) -> str:
        """A short name free of UIDs: the same for the same series, whatever it is read from."""
        return hashed(f"{self.files[0].series_uid} {self.files[0].sop_uid}")


@dataclass(frozen=True)
class Study:
    """Everything found in one input."""

    series: tuple[Series, ...]
    problems: tuple[Problem, ...] = ()
    documents: tuple[Document, ...] = ()

    @cached_property
    def _choice(self) -> tuple[int, tuple[str, ...]]:
        if not self.series:
            reasons = "; ".join(f"{p.subject}: {p.message}" for p in self.problems[:3])
            raise NotDicom(f"no DICOM image found ({reasons or 'the input is empty'})")
        return choose(self.series)

    @property
    def default_reason(self) -> str:
        """Why `default()` is the series to open; empty if there is none."""
        if len(self.series) < 2:
            return "the only series" if self.series else ""
        return f"of {len(self.series)} series: " + (", ".join(self.default_wishes) or "the first")

    @property
    def default_wishes(self) -> tuple[str, ...]:
        """What `default()` has before others: some of `encoders.dicom.choice.WISHES`."""
        return self._choice[1] if self.series else ()

    def default(self) -> Series:
        """The series to open: see `encoders.dicom.choice`.

        Raises:
            NotDicom: nothing here is an image; the reasons are in the message.
        """
        return self.series[self._choice[0]]

    def choose(self, wanted: str | int | None = None) -> Series:
        """A series by its number as listed (from 1), its key or UID; without one, `default()`.

        Raises:
            NotDicom: nothing here is an image; the reasons are in the message.
            MissingInput: it is not here, or the UID is that of several stacks.
        """
        default = self.default()
        if wanted is None:
            return default
        name = str(wanted).strip()
        if name.isdecimal() and 0 < int(name) <= len(self.series):
            return self.series[int(name) - 1]
        found = [s for s in self.series if name in (s.key, s.files[0].series_uid)]
        if len(found) == 1:
            return found[0]
        why = f"that UID holds {len(found)} stacks" if found else "the study has no such series"
        raise MissingInput(
            f"{why}; choose by number, 1 to {len(self.series)} as `crossread info` lists them, or by key"
        )


def scan(path: Path | str, *, lenient: bool = False) -> Study:
    """Read the headers of a file, folder (with its subfolders), DICOMDIR, zip, tar or tar.gz.

    Args:
        path: what to read.
        lenient: also read files without preamble or meta header, or with a wrong one.

    Raises:
        MissingInput: the path does not exist.
        UnreadableFile: an archive that is broken, or unpacks to more than is safe.
    """
    left_out: list[Problem] = []
    problems: list[Problem] = []
    slices: list[SliceFile] = []
    documents = []
    for name, source in members(Path(path), left_out):
        header = read_header(shown_name(name), source, lenient=lenient)
        slices += header.slices
        problems += header.problems
        if header.document:
            documents.append(header.document)
    problems += [replace(p, subject=shown_name(p.subject)) for p in left_out]
    series = series_of(slices)
    if len({s.files[0].study_uid for s in series}) > 1:
        words = "images of several studies, perhaps of several patients; they are kept apart"
        problems.append(Problem("SEVERAL_STUDIES", words))
    return Study(series, tuple(problems), tuple(documents))


def series_of(slices: Iterable[SliceFile]) -> tuple[Series, ...]:
    """Slices put together, split and sorted, by SeriesNumber; in which order they come is the same."""
    ordered = sorted(slices, key=_identity)
    lost = _lost_parts(ordered)  # of all: its phases become series of their own
    return tuple(sorted((_make_series(stack, lost) for stack in stacks_of(ordered)), key=_number))


def describe(study: Study) -> dict[str, Any]:
    """A study in JSON types, for `crossread info`: series, sizes, reasons, no identifiers."""
    chosen = study.default() if study.series else None
    return {
        "series": [
            {
                **series.info.to_dict(),
                "key": series.key,
                "kind": series.kind,
                "is_volume": series.is_volume,
                "reason": series.reason,
                "default": series is chosen,
                "slice_gaps_mm": _gaps(series),
                "frame_of_reference": hashed(series.files[0].frame_of_reference),
                "problems": [asdict(p) for p in series.problems],
            }
            for series in study.series
        ],
        "default_reason": study.default_reason,
        "documents": [{"name": d.name, "kind": d.kind} for d in study.documents],
        "num_images": sum(len(s.files) for s in study.series),
        "problems": [asdict(p) for p in study.problems],
    }


def hashed(uid: str) -> str:
    """A UID as it may be told: equal for equal ones, no way back. Empty stays empty."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8] if uid else ""


def _identity(file: SliceFile) -> tuple[str, str, int, str, int]:
    return (
        file.study_uid, file.series_uid, file.instance_number, file.sop_uid, file.frame or 0
    )  # fmt: skip


def _number(series: Series) -> tuple[str, int]:
    first = series.files[0]
    number = first.series_number
    return first.study_uid, int(number) if number.isdecimal() else 0


def _make_series(stack: Stack, lost: dict[str, Problem]) -> Series:
    first = stack.files[0]
    why_not = _why_no_volume(stack)
    plane = plane_of(first.orientation)
    info = replace(
        first.info, num_slices=len(stack.files), spacing_mm=first.spacing, plane=plane,
        rows=first.rows, columns=first.columns,
    )  # fmt: skip
    words = f"{len(stack.files)} {plane} slices of one orientation, matrix and spacing"
    if first.kind == "reformat":
        words += ", reformatted from others"
    risky = [f.burned_in.problem(f.name) for f in stack.files if f.burned_in][:1]
    concatenations = dict.fromkeys(f.part.concatenation for f in stack.files if f.part)
    incomplete = [lost[uid] for uid in concatenations if uid in lost]
    problems = (*stack.problems, *incomplete, *risky)
    return Series(stack.files, info, problems, not why_not, why_not or words)


def _why_no_volume(stack: Stack) -> str:
    """Empty if the slices form one."""
    files = stack.files
    if files[0].kind in _NO_VOLUME:
        return _NO_VOLUME[files[0].kind]
    if "MOSAIC" in files[0].traits.image_type:
        return "mosaics: each image shows many slices side by side"
    if files[0].stored.samples > 1:
        return "colour pictures, no measured values"
    if not stack.placed:
        return "no position and orientation"
    if len(files) == 1:
        return "a single image"
    heights = heights_of(files)
    if heights[-1] - heights[0] < 1e-3 * len(files):
        ct = files[0].info.modality == "CT"
        return f"{len(files)} images at one place" + (", as in bolus tracking" if ct else "")
    shift = _sideways(files, heights)
    return f"slices shift sideways by up to {shift:.0f} mm" if shift > MAX_SHIFT_MM else ""


def _sideways(files: Sequence[SliceFile], heights: np.ndarray) -> float:
    """mm by which a slice lies beside the straight line from the first to the last."""
    places = np.array([f.position for f in files])
    share = (heights - heights[0]) / (heights[-1] - heights[0])
    line = places[0] + share[:, None] * (places[-1] - places[0])
    return float(np.linalg.norm(places - line, axis=1).max())


def _lost_parts(files: Iterable[SliceFile]) -> dict[str, Problem]:
    """Concatenations of which parts are not there (PS3.3 C.7.6.16.2.2.4)."""
    parts: dict[str, set[Part]] = {}
    for file in files:
        if file.part:
            parts.setdefault(file.part.concatenation, set()).add(file.part)
    problems = {}
    for concatenation, found in parts.items():
        total = max(part.total for part in found)
        if len(found) < total:
            words = f"{len(found)} of {total} parts of a concatenation are there"
            problems[concatenation] = Problem("INCOMPLETE_CONCATENATION", words)
    return problems


def _gaps(series: Series) -> list[float]:
    """The different distances between neighbouring slices, at most five."""
    if not series.is_volume:
        return []
    gaps = np.round(np.diff(heights_of(series.files)), 3)
    return sorted(set(gaps.tolist()))[:5]
