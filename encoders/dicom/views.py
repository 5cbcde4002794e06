"""The pictures a model sees of a volume: which slices, which grey values, and the way back to them.

What a model was trained on is a named value, its `ViewProfile`. A view shows a slice, or a slab's
mean or maximum, in canonical orientation (columns to patient left, rows to posterior or feet) with
three windows as three channels. Each keeps its `Source`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from encoders.dicom.display import dominant_axes, unit_of, voi_of
from encoders.dicom.values import AIR_HU, require_drawable
from encoders.dicom.volume import Volume
from encoders.features import Problem, Source


@dataclass(frozen=True)
class Window:
    """A grey-level window in HU, and what of a slab it shows: its mean, or its maximum (MIP)."""

    name: str
    center: float
    width: float
    projection: Literal["mean", "max"] = "mean"

    def apply(self, hu: np.ndarray) -> np.ndarray:
        """HU -> uint8, 0 at center - width / 2, 255 at center + width / 2."""
        low = self.center - self.width / 2
        return np.round(255 * np.clip((hu - low) / self.width, 0, 1)).astype(np.uint8)


Windows = tuple[Window, Window, Window]


@dataclass(frozen=True)
class ViewProfile:
    """How a volume becomes pictures.

    Attributes:
        windows: one per colour channel.
        num_views: the most pictures of one volume.
        size: pixels of a side; None keeps the slice's own, padded with black to a square.
        slab: whether a view is projected from the slices it stands for, or the nearest of them.
        scale: what the windows apply to: Hounsfield units, or 0..1 between the percentiles of the
            whole volume, or 0..1 of the grey levels that the header wants shown.
        label: what stands beside a picture in the prompt of a model that interleaves words.
    """

    name: str
    windows: Windows
    num_views: int
    size: int | None
    slab: bool = False
    scale: Literal["hu", "percentile", "header"] = "hu"
    label: str = "SLICE {number}"


LUNG = Window("lung", -600, 1500)
SOFT = Window("soft tissue", 40, 400)
BONE = Window("bone", 400, 1800)
_OURS = (LUNG, SOFT, BONE)
# a nodule or plaque of a few millimetres fades in the mean of a thick slab, not in its maximum
_BRIGHTEST = (replace(LUNG, projection="max"), SOFT, replace(BONE, projection="max"))
# MedGemma 1.5: wide [-1024, 1024], soft tissue [-135, 215], brain [0, 80] HU; 85 slices at most
_MEDGEMMA = (Window("wide", 0, 2048), Window("soft tissue", 40, 350), Window("brain", 40, 80))
_GREY = (Window("grey", 0.5, 1),) * 3
PROFILES = {
    profile.name: profile
    for profile in (
        ViewProfile("crossread-ct", _OURS, 16, 96, slab=True),
        ViewProfile("crossread-ct-mip", _BRIGHTEST, 16, 96, slab=True),
        ViewProfile("crossread-ct-thin", _BRIGHTEST, 32, 96, slab=True),
        ViewProfile("crossread-ct-fine", _BRIGHTEST, 32, 192, slab=True),
        ViewProfile("crossread-ct-large", _BRIGHTEST, 32, 224, slab=True),
        ViewProfile("medgemma-ct", _MEDGEMMA, 85, None),
        # for models that know grey pictures only: one window a picture, told in words
        ViewProfile("ct-lung", (LUNG,) * 3, 16, None, label="SLICE {number}, lung window"),
        ViewProfile("ct-soft", (SOFT,) * 3, 16, None, label="SLICE {number}, soft tissue window"),
        ViewProfile("mr", _GREY, 85, None, scale="percentile"),
        ViewProfile("cxr", _GREY, 4, None, scale="header", label="IMAGE {number}"),
    )
}


@dataclass(frozen=True)
class Views:
    """Pictures of a volume.

    Attributes:
        pixels: uint8 `[n, 3, side, side]`.
        geometry: float32 `[n, 11]`: LPS mm of the first pixel's centre from the volume's centre,
            the steps of one column and one row, the slab's thickness, and 1.
        sources: one per view.
        labels: one per view, by the profile ("SLICE 1", ...).
    """

    pixels: np.ndarray
    geometry: np.ndarray
    sources: tuple[Source, ...]
    problems: tuple[Problem, ...] = ()
    labels: tuple[str, ...] = ()


def make_views(volume: Volume, profile: ViewProfile) -> Views:
    """The views of a volume by a profile; values that are not HU are stretched to fill a window.

    Raises:
        InvalidPixels: a picture of square pixels would be of an impossible size.
    """
    values, problems = _values(volume, profile)
    voxels, to_old = _canonical(values.voxels, volume.grid)
    values = replace(values, voxels=voxels)
    affine = volume.grid @ to_old
    positions = _positions(volume)[:: 1 if to_old[0, 0] > 0 else -1]
    _, rows, columns = voxels.shape
    groups, thickness = _slabs(positions, profile)
    row_mm, column_mm = (float(np.linalg.norm(affine[:3, i])) for i in (1, 2))
    frame = _Frame(rows * row_mm, columns * column_mm, profile.size or _side(voxels, affine))
    along = _slice_offsets(affine, positions)
    centre = (
        affine[:3, 3]
        + (along[0] + along[-1]) / 2
        + affine[:3, 1:3] @ [(rows - 1) / 2, (columns - 1) / 2]
    )
    geometry = np.zeros((len(groups), 11), np.float32)
    sources = []
    for k, group in enumerate(groups):
        origin = affine[:3, 3] + along[group].mean(0) - centre
        geometry[k] = frame.geometry(origin, affine, (rows, columns), thickness[k])
        middle = int(group[len(group) // 2])
        sources.append(_source(volume, middle, group, frame, to_old, profile.name))
    labels = tuple(profile.label.format(number=k + 1) for k in range(len(groups)))
    return Views(_pictures(values, groups, frame), geometry, tuple(sources), problems, labels)


def to_rgb(hu: np.ndarray, windows: Windows) -> np.ndarray:
    """Values -> uint8 `[..., 3]`, a channel per window.

    int16 goes through one table of all 65,536 values: each voxel is read once and its three
    bytes are written at once, beside a fourth that the result, a view, leaves out.
    """
    if hu.dtype != np.int16:
        return np.stack([window.apply(hu.astype(np.float32)) for window in windows], -1)
    table, flat = _table(windows), np.ascontiguousarray(hu).view(np.uint16).reshape(-1)
    out = np.empty(flat.size, np.uint32)
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        table.take(flat[part], out=out[part], mode="wrap")
    return out.view(np.uint8).reshape(*hu.shape, 4)[..., :3]


_CHUNK = 2**18  # voxels whose table indices stay in the cache


@lru_cache(maxsize=16)
def _table(windows: Windows) -> np.ndarray:
    """The three bytes of every int16 value, packed in one uint32."""
    hu = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.float32)
    packed = np.zeros((65536, 4), np.uint8)
    for channel, window in enumerate(windows):
        packed[:, channel] = window.apply(hu)
    return packed.view(np.uint32)[:, 0]


@dataclass(frozen=True)
class _Values:
    """What is windowed: voxels, the windows, and the value of the air around a picture."""

    voxels: np.ndarray
    windows: Windows
    air: float


def _values(volume: Volume, profile: ViewProfile) -> tuple[_Values, tuple[Problem, ...]]:
    if profile.scale == "hu" and volume.calibrated:
        return _Values(volume.voxels, profile.windows, AIR_HU), ()
    robust = None if profile.scale == "hu" else profile.scale == "percentile"
    unit = unit_of(volume, voi_of(volume, robust))
    if profile.scale != "hu":
        return _Values(unit, profile.windows, 0.0), ()
    top = LUNG.center + LUNG.width / 2
    note = Problem("STRETCHED", "grey values were stretched to the lung window")
    return _Values(AIR_HU + unit * (top - AIR_HU), profile.windows, AIR_HU), (note,)


def _pictures(values: _Values, groups: list[np.ndarray], frame: _Frame) -> np.ndarray:
    rows, columns = values.voxels.shape[1:]
    single = [int(group[0]) for group in groups]
    if (frame.height, frame.width) == (rows, columns) and all(len(g) == 1 for g in groups):
        return np.moveaxis(frame.pad(to_rgb(values.voxels[single], values.windows)), -1, 1)
    pixels = np.empty((len(groups), 3, frame.size, frame.size), np.uint8)
    wanted = {window.projection for window in values.windows}
    for k, group in enumerate(groups):
        slices = values.voxels[group[0] : group[-1] + 1]
        slices = np.maximum(slices.astype(np.float32), np.float32(values.air))
        seen = {"mean": frame.resize(slices.mean(0), values.air)}
        if "max" in wanted:  # of what a pixel holds of each slice: one noisy voxel does not count
            seen["max"] = np.max([frame.resize(one, values.air) for one in slices], 0)
        pixels[k] = [window.apply(seen[window.projection]) for window in values.windows]
    return pixels


def _positions(volume: Volume) -> np.ndarray:
    """mm along the normal; where nobody knows the place, in the frame of `Volume.grid`."""
    if np.isfinite(volume.positions_mm).all():
        return volume.positions_mm
    return np.arange(len(volume.voxels)) * float(np.linalg.norm(volume.grid[:3, 0]))


def _side(voxels: np.ndarray, affine: np.ndarray) -> int:
    """Pixels of the square that keeps every row and column of a slice."""
    mm = np.linalg.norm(affine[:3, 1:3], axis=0)
    require_drawable(float(mm[0] / mm[1]))
    return round(float((np.array(voxels.shape[1:]) * mm).max() / mm.min()))


def _canonical(voxels: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels flipped and transposed to canonical axes, and the map from new to stored indices."""
    axes = dominant_axes(grid)
    in_plane = {axes[1], axes[2]}
    column_axis = 0 if 0 in in_plane else 1
    order = [0, 1, 2] if axes[2] == column_axis else [0, 2, 1]
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    flips: list[int] = []
    for new, old in enumerate(order):
        wanted = -1 if (new == 1 and axes[old] == 2) else 1
        flip = grid[axes[old], old] * wanted < 0
        to_old[old, new] = -1 if flip else 1
        if flip:
            to_old[old, 3] = voxels.shape[old] - 1
            flips.append(new)
    return np.flip(voxels.transpose(order), tuple(flips)), to_old


def _slabs(positions: np.ndarray, profile: ViewProfile) -> tuple[list[np.ndarray], np.ndarray]:
    """Slice indices of each view and the thickness it stands for; by place, not by index."""
    n = len(positions)
    gap = float(np.median(np.abs(np.diff(positions)))) if n > 1 else 1.0
    place = np.abs(positions - positions[0])
    if n <= profile.num_views or not profile.slab:
        chosen = range(n) if n <= profile.num_views else _evenly(place, profile.num_views)
        return [np.array([i]) for i in chosen], np.full(len(chosen), gap)
    edges = np.linspace(-gap / 2, place[-1] + gap / 2, profile.num_views + 1)
    bins = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, profile.num_views - 1)
    filled = np.unique(bins)  # a gap in the stack leaves a slab without slices, and no view of it
    return [np.flatnonzero(bins == k) for k in filled], np.diff(edges)[filled]


def _evenly(place: np.ndarray, count: int) -> np.ndarray:
    """The slices nearest to `count` equally distant places, none twice."""
    wanted = np.linspace(place[0], place[-1], count)
    return np.unique(np.abs(place[None] - wanted[:, None]).argmin(1))


def _slice_offsets(affine: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """LPS mm of each slice from the first, by true positions: `[slices, 3]`."""
    step = affine[:3, 0]
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    normal = normal / (np.linalg.norm(normal) or 1.0)
    rise = float(step @ normal) or 1.0
    distance = np.abs(positions - positions[0])
    return distance[:, None] * (step / abs(rise))[None]


class _Frame:
    """A square picture around a slice: padded with air in mm, then resized without aliasing."""

    def __init__(self, height_mm: float, width_mm: float, size: int) -> None:
        self.size, side = size, max(height_mm, width_mm)
        self.height = max(round(size * height_mm / side), 1)
        self.width = max(round(size * width_mm / side), 1)
        self.top, self.left = (size - self.height) // 2, (size - self.width) // 2

    def pad(self, pictures: np.ndarray) -> np.ndarray:
        """`[n, height, width, 3]` -> `[n, size, size, 3]`, black around."""
        if self.height == self.width == self.size:
            return pictures
        out = np.zeros((len(pictures), self.size, self.size, 3), np.uint8)
        out[:, self.top : self.top + self.height, self.left : self.left + self.width] = pictures
        return out

    def resize(self, hu: np.ndarray, air: float) -> np.ndarray:
        """`[rows, columns]` -> `[size, size]`; the mean over each pixel's area when shrinking."""
        import torch
        from torch.nn.functional import interpolate

        out = np.full((self.size, self.size), air, np.float32)
        inside = out[self.top : self.top + self.height, self.left : self.left + self.width]
        lowest = hu.min()  # most slices of a mask hold nothing
        if lowest == hu.max():
            inside[:] = lowest
            return out
        target = (self.height, self.width)
        source = torch.from_numpy(np.ascontiguousarray(hu))[None, None]
        if hu.shape[0] >= target[0] and hu.shape[1] >= target[1]:
            resized = interpolate(source, target, mode="area")
        else:
            resized = interpolate(source, target, mode="bilinear", antialias=True)
        inside[:] = resized[0, 0]
        return out

    def geometry(
        self, origin: np.ndarray, affine: np.ndarray, shape: tuple[int, int], thickness: float
    ) -> np.ndarray:
        """The row of `Views.geometry` for a slab whose first voxel lies at `origin`."""
        down = affine[:3, 1] * shape[0] / self.height
        right = affine[:3, 2] * shape[1] / self.width
        corner = origin - affine[:3, 1] / 2 - affine[:3, 2] / 2  # of the first voxel
        first = corner + (0.5 - self.left) * right + (0.5 - self.top) * down
        return np.concatenate([first, right, down, [thickness, 1.0]])


def _source(
    volume: Volume, middle: int, group: np.ndarray, frame: _Frame, to_old: np.ndarray, name: str
) -> Source:
    n, rows, columns = volume.voxels.shape
    transposed = to_old[1, 1] == 0
    height, width = (columns, rows) if transposed else (rows, columns)
    # picture corner (x, y) -> canonical corner -> stored corner
    sx, sy = width / frame.width, height / frame.height
    to_x = np.array([sx, 0.0, -frame.left * sx])
    to_y = np.array([0.0, sy, -frame.top * sy])
    if to_old[:3, 2].sum() < 0:
        to_x = np.array([-to_x[0], 0.0, width - to_x[2]])
    if to_old[:3, 1].sum() < 0:
        to_y = np.array([0.0, -to_y[1], height - to_y[2]])
    stored_x, stored_y = (to_y, to_x) if transposed else (to_x, to_y)
    flipped = to_old[0, 0] < 0
    index = n - 1 - middle if flipped else middle
    span = [n - 1 - int(i) if flipped else int(i) for i in group]
    pixel_map = tuple(float(v) for v in (*stored_x, *stored_y))
    return Source(
        "dicom",
        slice_index=index,
        slice_range=(min(span), max(span) + 1),
        position_mm=float(volume.positions_mm[index]) if volume.placed else None,
        window=name,
        pixel_map=(
            pixel_map[0],
            pixel_map[1],
            pixel_map[2],
            pixel_map[3],
            pixel_map[4],
            pixel_map[5],
        ),
    )
