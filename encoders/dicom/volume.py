"""One series decoded: voxels in Hounsfield units and where they are.

Axes are slice, row, column; space is LPS millimetres. Spacing comes from positions alone; flaws of
the geometry are listed and the true positions exposed, nothing is averaged or guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from encoders.dicom.display import Display
from encoders.dicom.geometry import place_slices
from encoders.dicom.header import SeriesInfo, SliceFile
from encoders.dicom.pixels import require_plausible
from encoders.dicom.series import Series, scan
from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.values import AIR_HU, MAX_HU, read_stack, share_outside
from encoders.errors import InvalidPixels, IrregularGeometry
from encoders.features import Problem

MAX_VOLUME_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Volume:
    """A stack of slices.

    Attributes:
        voxels: int16 where exact, else float32, `[slice, row, column]`; HU if `calibrated`.
        affine: `[4, 4]`, (slice, row, column) index -> LPS mm of the voxel's centre. NaN where the
            files do not tell (`placed` is False). Of an irregular stack it holds the usual gap:
            `at` follows the true positions.
        positions_mm: `[slices]`, true positions along the slices' normal.
        problems: flaws found on the way.
        info: what may be told of the series.
        unit: "HU"; for PET and NM what they declare ("SUV", "Bq/ml", "counts"); else "".
        display: how the header wants the values shown to people; of several slices the first's.
        displays: one for each slice, where they differ.
        padding_ranges: values (low, high) that mean "no measurement here".
    """

    voxels: np.ndarray
    affine: np.ndarray
    positions_mm: np.ndarray
    problems: tuple[Problem, ...] = ()
    info: SeriesInfo = field(default_factory=SeriesInfo)
    unit: str = "HU"
    display: Display = field(default_factory=Display)
    padding_ranges: tuple[tuple[float, float], ...] = ()
    displays: tuple[Display, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether values are Hounsfield units."""
        return self.unit == "HU"

    @property
    def placed(self) -> bool:
        """Whether it is known where the voxels lie in the patient."""
        return bool(np.isfinite(self.affine).all())

    @property
    def grid(self) -> np.ndarray:
        """The affine, or of a volume that is not placed: mm in its own frame, rows down.

        For drawing and resizing only; it says nothing of the patient.
        """
        if self.placed:
            return self.affine
        spacing = [mm if np.isfinite(mm) else 1.0 for mm in self.spacing_mm]
        own = np.zeros((4, 4))
        own[2, 0], own[1, 1], own[0, 2], own[3, 3] = *spacing, 1.0
        return own

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring slices, rows and columns; NaN where unknown."""
        if not self.placed:
            s, r, c = self.info.spacing_mm or (np.nan, np.nan, np.nan)
            return s, r, c
        s, r, c = (float(np.linalg.norm(self.affine[:3, i])) for i in range(3))
        return s, r, c

    @cached_property
    def padding(self) -> np.ndarray | None:
        """Bool mask of the voxels that hold no measurement, None where there are none."""
        mask = np.zeros(self.voxels.shape, bool)
        for low, high in self.padding_ranges:
            mask |= (self.voxels >= low) & (self.voxels <= high)
        return mask if mask.any() else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides how it looks, and where it lies: equal if those are."""
        vois = [(d.vois, d.inverted) for d in (self.display, *self.displays)]
        shown = (self.info.modality, self.unit, vois, self.padding_ranges)
        sha = hashlib.sha256(f"{self.voxels.dtype}{self.voxels.shape}{shown}".encode())
        sha.update(np.ascontiguousarray(self.affine, np.float64).tobytes())
        sha.update(np.ascontiguousarray(self.positions_mm, np.float64).tobytes())
        sha.update(np.ascontiguousarray(self.voxels).data)
        return sha.hexdigest()

    def at(self, index: Sequence[float] | np.ndarray) -> np.ndarray:
        """LPS mm of (slice, row, column) indices `[..., 3]`, by the true slice positions.

        Raises:
            IrregularGeometry: it is not known where the voxels lie.
        """
        axes = self._axes()
        index = np.asarray(index, float)
        along = _interpolate(index[..., 0], np.arange(len(self.voxels)), self._distances())
        return self.affine[:3, 3] + np.stack([along, index[..., 1], index[..., 2]], -1) @ axes.T

    def index_of(self, place_mm: Sequence[float] | np.ndarray) -> np.ndarray:
        """(slice, row, column) of LPS mm `[..., 3]`, fractional: the inverse of `at`.

        Raises:
            IrregularGeometry: it is not known where the voxels lie.
        """
        inverse = np.linalg.inv(self._axes())
        found = (np.asarray(place_mm, float) - self.affine[:3, 3]) @ inverse.T
        slices = _interpolate(found[..., 0], self._distances(), np.arange(len(self.voxels)))
        return np.concatenate([slices[..., None], found[..., 1:]], -1)

    def crop(self, slices: slice, rows: slice, columns: slice) -> Volume:
        """A part of the volume, in place: `at` gives the same mm for the same voxel.

        Raises:
            IrregularGeometry: a step other than 1, or nothing left.
        """
        ranges = [
            range(n)[part]
            for n, part in zip(self.voxels.shape, (slices, rows, columns), strict=True)
        ]
        if any(len(r) == 0 or r.step != 1 for r in ranges):
            raise IrregularGeometry("a crop takes whole, non-empty ranges of slices, rows, columns")
        affine = self.affine.copy()
        if self.placed:
            affine[:3, 3] = self.at([r.start for r in ranges])
        s, r, c = (slice(found.start, found.stop) for found in ranges)
        info = replace(
            self.info, num_slices=len(ranges[0]), rows=len(ranges[1]), columns=len(ranges[2])
        )
        displays = self.displays[s]
        return replace(
            self, voxels=self.voxels[s, r, c], affine=affine, positions_mm=self.positions_mm[s],
            info=info, displays=displays, display=(displays or (self.display,))[0],
        )  # fmt: skip

    def clamped(self, low: float = AIR_HU, high: float = MAX_HU) -> Volume:
        """Values limited to what is plausible, padding to `low`; the share is told (`CLAMPED`)."""
        share = share_outside(self.voxels, self.padding_ranges, (low, high))
        message = f"{share:.3%} of the voxels lay outside {low:g}..{high:g} and were clamped"
        problems = (*self.problems, Problem("CLAMPED", message)) if share else self.problems
        return replace(self, voxels=np.clip(self.voxels, low, high).astype(self.voxels.dtype),
                       problems=problems, padding_ranges=())  # fmt: skip

    def _distances(self) -> np.ndarray:
        return np.abs(self.positions_mm - self.positions_mm[0])

    def _axes(self) -> np.ndarray:
        """Columns: the way from slice to slice for each mm along the normal, a row, a column."""
        if not self.placed:
            raise IrregularGeometry(
                "the files do not say where this image lies in the patient; "
                + "; ".join(p.message for p in self.problems if p.code in _PLACELESS)
            )
        axes = self.affine[:3, :3].copy()
        normal = np.cross(axes[:, 2], axes[:, 1])
        axes[:, 0] /= abs(float(axes[:, 0] @ normal)) / np.linalg.norm(normal)
        return axes


_PLACELESS = ("NO_GEOMETRY", "BAD_ORIENTATION", "NO_SPACING")


def _interpolate(x: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Piecewise linear, continued at both ends by the first and the last piece."""
    if len(old) == 1:
        return np.asarray(x - old[0] + new[0])
    piece = np.clip(np.searchsorted(old, x, side="right") - 1, 0, len(old) - 2)
    share = (x - old[piece]) / (old[piece + 1] - old[piece])
    return new[piece] + share * (new[piece + 1] - new[piece])


@quiet_pydicom()
def load_volume(series: Series | Path | str) -> Volume:
    """Decode a series (or the default series of a path).

    Raises:
        UnsupportedTransferSyntax: no decoder for the way its pixels are stored.
        UnreadableFile: no slice of it can be decoded.
        InvalidPixels: more data than `MAX_VOLUME_BYTES`, or far more than its files can hold.
    """
    if not isinstance(series, Series):
        series = scan(series).default()
    problems = list(series.problems)
    files = list(series.files) if series.is_volume else [series.files[0]]
    if len(files) < len(series.files):
        message = f"{len(series.files) - 1} further images form no volume with the first"
        problems.append(Problem("NOT_A_VOLUME", message))
    return _load(files, series.info, problems)


@quiet_pydicom()
def load_preview(series: Series) -> Volume:
    """The middle slice of a series alone: as quick for a thousand slices as for one.

    Raises:
        UnsupportedTransferSyntax, UnreadableFile, InvalidPixels: as `load_volume`.
    """
    return _load([series.files[len(series.files) // 2]], series.info, list(series.problems))


def _load(files: list[SliceFile], info: SeriesInfo, problems: list[Problem]) -> Volume:
    need = 2 * len(files) * files[0].rows * files[0].columns
    if need > MAX_VOLUME_BYTES:
        raise InvalidPixels(f"the series declares {need / 2**30:.1f} GiB of voxels; refused")
    require_plausible(files, need)
    stack = read_stack(files, info, problems)
    affine, positions = place_slices(stack.files, info.slice_thickness_mm, problems)
    spacing = stack.files[0].spacing
    known = tuple(float(np.linalg.norm(affine[:3, i])) for i in range(3))
    if not np.isfinite(affine).all():
        known = (info.slice_thickness_mm or 1.0, *spacing) if spacing else ()
    rows, columns = stack.voxels.shape[1:]
    info = replace(
        info, num_slices=len(stack.files), rows=rows, columns=columns, spacing_mm=known or None
    )
    problems += dict.fromkeys(p for display in stack.displays for p in display.problems)
    displays = [replace(display, problems=()) for display in stack.displays]
    differ = any(display != displays[0] for display in displays)
    return Volume(
        stack.voxels, affine, positions, tuple(problems), info, stack.unit, displays[0],
        stack.padding, tuple(displays) if differ else (),
    )  # fmt: skip
