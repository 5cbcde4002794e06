"""How a volume is laid out on a screen: its panes, their letters, its windows, as JSON types.

Everything about left and right is decided here, from the affine alone; the browser only follows.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from encoders.dicom import Volume
    from encoders.dicom.display import Voi

MAX_BYTES = 2**29  # of voxels in a browser; larger volumes are thinned within the slice
CHUNK_BYTES = 2**22  # what one request fetches
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # negative and positive end of each LPS axis
_OBLIQUE = 0.26  # sine of 15 degrees: from there on a second letter is named
# pane -> patient axis (x, y, z) into the screen, down, across; and which way down and across run
_PLANES = {
    "axial": ((2, 1, 0), (1, 1)),
    "coronal": ((1, 2, 0), (-1, 1)),
    "sagittal": ((0, 2, 1), (-1, 1)),
}
_OFFERED = ("lung", "mediastinum", "abdomen", "liver", "bone", "brain")


@dataclass(frozen=True)
class Pane:
    """One plane through a volume.

    Attributes:
        name: axial, coronal, sagittal; "stored" where nobody knows.
        axes: the voxel axes into the screen, down and across.
        flips: whether down and across run against the voxel axis.
        mm: size of a voxel into the screen, down and across.
        letters: at the left, right, upper and lower edge; empty where unknown.
    """

    name: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]
    mm: tuple[float, float, float]
    letters: tuple[str, str, str, str]


def panes_of(volume: Volume) -> tuple[Pane, ...]:
    """Axial, coronal and sagittal, patient right at the left, front or head up; of one slice its own."""
    from encoders.dicom.display import dominant_axes

    grid = volume.grid
    sizes = [float(np.linalg.norm(grid[:3, axis])) for axis in range(3)]
    if not volume.placed:
        mm = (sizes[0], sizes[1], sizes[2])
        return (Pane("stored", (0, 1, 2), (False, False), mm, ("", "", "", "")),)
    patient = dominant_axes(grid)
    panes = []
    for name, (wanted, ways) in _PLANES.items():
        depth, down, across = (patient.index(axis) for axis in wanted)
        flips = tuple(
            bool(grid[patient[axis], axis] * way < 0)
            for axis, way in zip((down, across), ways, strict=True)
        )
        to_bottom, to_right = (
            grid[:3, axis] / sizes[axis] * (-1 if flip else 1)
            for axis, flip in zip((down, across), flips, strict=True)
        )
        letters = (
            letters_of(-to_right), letters_of(to_right), letters_of(-to_bottom), letters_of(to_bottom)
        )  # fmt: skip
        mm = (sizes[depth], sizes[down], sizes[across])
        panes.append(Pane(name, (depth, down, across), (flips[0], flips[1]), mm, letters))
    return tuple(pane for pane in panes if len(volume.voxels) > 1 or pane.axes[0] == 0)


def letters_of(direction: Sequence[float] | np.ndarray) -> str:
    """Where a unit vector in LPS points: "L", "AL" of an oblique one, the strongest first."""
    order = np.argsort(-np.abs(np.asarray(direction)), kind="stable")
    named = [_LETTERS[axis][int(direction[axis] > 0)] for axis in order
             if abs(direction[axis]) > _OBLIQUE]  # fmt: skip
    return "".join(named)


@dataclass(frozen=True)
class Shown:
    """A volume as it goes to the browser: int16 `[slice, row, column]`, value = raw * slope + base."""

    raw: np.ndarray
    slope: float
    base: float
    volume: Volume
    stride: int

    @property
    def chunk(self) -> int:
        """How many slices one request fetches."""
        return max(CHUNK_BYTES // (self.raw[0].size * 2), 1)

    def slab(self, first: int, count: int) -> bytes:
        """The raw values of some slices, little-endian."""
        return self.raw[first : first + count].astype("<i2", copy=False).tobytes()


def shown(volume: Volume) -> Shown:
    """HU as they are; other values spread over 16 bits; too many voxels thinned."""
    voxels, stride = volume.voxels, 1
    while voxels[:, ::stride, ::stride].size * 2 > MAX_BYTES:
        stride += 1
    voxels = voxels[:, ::stride, ::stride]
    if voxels.dtype == np.int16:
        return Shown(voxels, 1.0, 0.0, volume, stride)
    low, high = float(voxels.min()), float(voxels.max())
    slope = (high - low) / 65535 or 1.0
    raw = np.rint((voxels.astype(np.float64) - low) / slope) - 32768
    return Shown(raw.astype(np.int16), slope, low + 32768 * slope, volume, stride)


def describe(shown: Shown) -> dict[str, Any]:
    """All the browser needs to know before the first voxel."""
    volume, stride = shown.volume, shown.stride
    affine = volume.affine[:3] if volume.placed else volume.grid[:3]
    affine = affine @ np.diag([1, stride, stride, 1])
    windows, first = _windows(volume)
    ranges = [[(v - shown.base) / shown.slope for v in pair] for pair in volume.padding_ranges]
    return {
        "shape": list(shown.raw.shape), "chunk": shown.chunk, "stride": stride,
        "slope": shown.slope, "base": shown.base, "unit": volume.unit,
        "placed": volume.placed, "affine": affine.tolist(), "steps": _steps(volume),
        "panes": [_thinned(asdict(pane), stride) for pane in panes_of(volume)],
        "windows": windows, "window": first, "inverted": volume.display.inverted,
        "padding": ranges, "modality": volume.info.modality,
    }  # fmt: skip


def _thinned(pane: dict[str, Any], stride: int) -> dict[str, Any]:
    mm = [
        size * (stride if axis else 1) for size, axis in zip(pane["mm"], pane["axes"], strict=True)
    ]
    return {**pane, "mm": mm}


def _steps(volume: Volume) -> list[float]:
    """Where each slice lies, counted in usual gaps: 0, 1, 2 of a regular stack."""
    count = len(volume.voxels)
    if not volume.placed or count == 1:
        return [float(i) for i in range(count)]
    row, column, step = volume.affine[:3, 2], volume.affine[:3, 1], volume.affine[:3, 0]
    normal = np.cross(row, column)
    gap = abs(float(step @ normal)) / float(np.linalg.norm(normal))
    away = np.abs(volume.positions_mm - volume.positions_mm[0]) / gap
    return np.round(away, 4).tolist()


def _windows(volume: Volume) -> tuple[list[dict[str, Any]], int]:
    """Presets (of HU only), then the file's own; and which is looked through first."""
    from encoders.dicom.display import PRESETS, hanging, voi_of

    named = [PRESETS[name] for name in _OFFERED] if volume.calibrated else []
    own = list(volume.display.vois)
    if not volume.calibrated:
        own = [voi_of(volume), *(v for v in own if v != voi_of(volume))]
    first = named.index(hanging(volume.info)[_hung(volume)]) if named else 0
    listed = [_window(v, file=False) for v in named] + [_window(v, file=True) for v in own]
    return listed, first


def _hung(volume: Volume) -> int:
    """Chest and head are looked at through the first of their two windows, the rest the second."""
    from encoders.dicom.display import PRESETS, hanging

    chest = hanging(volume.info)[1] == PRESETS["mediastinum"]
    head = hanging(volume.info)[0] == PRESETS["brain"]
    return 0 if chest or head else 1


def _window(voi: Voi, *, file: bool) -> dict[str, Any]:
    table = {"first": voi.first, "table": base64.b64encode(voi.table).decode()} if voi.table else {}
    return {"name": voi.name, "center": voi.center, "width": voi.width, "function": voi.function,
            "file": file, **table}  # fmt: skip
