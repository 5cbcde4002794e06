"""The pictures a model sees of a volume: which slices, which windows, and the way back to them.

A view shows a slab of the stack in canonical orientation (columns to patient left, rows to
posterior or feet), three windows as three channels. Each keeps its `Source`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encoders.dicom.volume import AIR_HU, Volume
from encoders.features import Problem, Source


@dataclass(frozen=True)
class Window:
    """A grey-level window in HU."""

    name: str
    center: float
    width: float

    def apply(self, hu: np.ndarray) -> np.ndarray:
        """HU -> uint8, 0 at center - width / 2, 255 at center + width / 2."""
        low = self.center - self.width / 2
        return np.round(255 * np.clip((hu - low) / self.width, 0, 1)).astype(np.uint8)


@dataclass(frozen=True)
class ViewProfile:
    """How a volume becomes pictures: three windows, how many views, their size, slab or slice."""

    name: str
    windows: tuple[Window, Window, Window]
    num_views: int
    size: int
    slab: bool = True


LUNG = Window("lung", -600, 1500)
SOFT = Window("soft tissue", 40, 400)
BONE = Window("bone", 400, 1800)
PROFILES = {
    "crossread-ct": ViewProfile("crossread-ct", (LUNG, SOFT, BONE), 16, 96),
    "crossread-ct-large": ViewProfile("crossread-ct-large", (LUNG, SOFT, BONE), 32, 224),
}


@dataclass(frozen=True)
class Views:
    """Pictures of a volume.

    Attributes:
        pixels: uint8 `[n, 3, size, size]`.
        geometry: float32 `[n, 11]`: LPS mm of the first pixel's centre from the volume's centre,
            the steps of one column and one row, the slab's thickness, and 1.
        sources: one per view.
    """

    pixels: np.ndarray
    geometry: np.ndarray
    sources: tuple[Source, ...]
    problems: tuple[Problem, ...] = ()


def make_views(volume: Volume, profile: ViewProfile) -> Views:
    """The views of a volume by a profile; values that are not HU are stretched to fill a window."""
    voxels, to_old = _canonical(volume)
    affine = volume.affine @ to_old
    positions = volume.positions_mm if to_old[0, 0] > 0 else volume.positions_mm[::-1]
    problems: list[Problem] = []
    if not volume.calibrated:
        voxels = _stretched(voxels)
        problems.append(Problem("STRETCHED", "grey values were stretched to the lung window"))
    _, rows, columns = voxels.shape
    groups, thickness = _slabs(positions, profile)
    row_mm, column_mm = (float(np.linalg.norm(affine[:3, i])) for i in (1, 2))
    frame = _Frame(rows * row_mm, columns * column_mm, profile.size)
    along = _slice_offsets(affine, positions)
    centre = (
        affine[:3, 3]
        + (along[0] + along[-1]) / 2
        + affine[:3, 1:3] @ [(rows - 1) / 2, (columns - 1) / 2]
    )
    pixels = np.empty((len(groups), 3, profile.size, profile.size), np.uint8)
    geometry = np.zeros((len(groups), 11), np.float32)
    sources = []
    for k, group in enumerate(groups):
        slab = np.maximum(voxels[group[0] : group[-1] + 1].astype(np.float32), AIR_HU).mean(0)
        picture = frame.resize(slab)
        pixels[k] = [window.apply(picture) for window in profile.windows]
        origin = affine[:3, 3] + along[group].mean(0) - centre
        geometry[k] = frame.geometry(origin, affine, (rows, columns), thickness[k])
        middle = int(group[len(group) // 2])
        sources.append(_source(volume, middle, group, frame, to_old, profile.name))
    return Views(pixels, geometry, tuple(sources), tuple(problems))


def _canonical(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Voxels flipped and transposed to canonical axes, and the map from new to stored indices."""
    axes = _dominant(volume.affine)
    in_plane = {axes[1], axes[2]}
    column_axis = 0 if 0 in in_plane else 1
    order = [0, 1, 2] if axes[2] == column_axis else [0, 2, 1]
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    flips: list[int] = []
    for new, old in enumerate(order):
        wanted = -1 if (new == 1 and axes[old] == 2) else 1
        flip = volume.affine[axes[old], old] * wanted < 0
        to_old[old, new] = -1 if flip else 1
        if flip:
            to_old[old, 3] = volume.voxels.shape[old] - 1
            flips.append(new)
    return np.flip(volume.voxels.transpose(order), tuple(flips)), to_old


def _dominant(affine: np.ndarray) -> list[int]:
    """The patient axis (x, y, z) each voxel axis runs along most, each used once."""
    weight = np.abs(affine[:3, :3]) / (np.linalg.norm(affine[:3, :3], axis=0) + 1e-12)
    axes = [-1, -1, -1]
    for _ in range(3):
        patient, voxel = np.unravel_index(int(weight.argmax()), (3, 3))
        axes[int(voxel)] = int(patient)
        weight[patient, :] = weight[:, voxel] = -1.0
    return axes


def _stretched(voxels: np.ndarray) -> np.ndarray:
    low, high = np.percentile(voxels, [0.5, 99.5])
    unit = np.clip((voxels - low) / max(high - low, 1e-6), 0, 1)
    return (LUNG.center - LUNG.width / 2 + unit * LUNG.width).astype(np.float32)


def _slabs(positions: np.ndarray, profile: ViewProfile) -> tuple[list[np.ndarray], np.ndarray]:
    """Slice indices of each view and the thickness it stands for."""
    n = len(positions)
    gap = float(np.median(np.abs(np.diff(positions)))) if n > 1 else 1.0
    if n <= profile.num_views:
        return [np.array([i]) for i in range(n)], np.full(n, gap)
    place = np.abs(positions - positions[0])
    edges = np.linspace(-gap / 2, place[-1] + gap / 2, profile.num_views + 1)
    bins = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, profile.num_views - 1)
    groups = []
    for k in range(profile.num_views):
        nearest = np.array([int(np.argmin(np.abs(place - (edges[k] + edges[k + 1]) / 2)))])
        inside = np.flatnonzero(bins == k)
        groups.append(inside if profile.slab and len(inside) else nearest)
    return groups, np.diff(edges)


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

    def resize(self, hu: np.ndarray) -> np.ndarray:
        """`[rows, columns]` HU -> `[size, size]`; the mean over each pixel's area when shrinking."""
        import torch
        from torch.nn.functional import interpolate

        target = (self.height, self.width)
        source = torch.from_numpy(np.ascontiguousarray(hu))[None, None]
        if hu.shape[0] >= target[0] and hu.shape[1] >= target[1]:
            resized = interpolate(source, target, mode="area")
        else:
            resized = interpolate(source, target, mode="bilinear", antialias=True)
        out = np.full((self.size, self.size), float(AIR_HU), np.float32)
        out[self.top : self.top + self.height, self.left : self.left + self.width] = resized[0, 0]
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
        position_mm=float(volume.positions_mm[index]),
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
