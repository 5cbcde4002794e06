"""A volume on a regular, straight grid of another spacing: on request only, never by itself.

Linear interpolation between the true slice positions along the normal; the shear of a tilted
gantry is undone. Knows voxels and geometry, nothing of files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.dicom.values import AIR_HU
from encoders.dicom.volume import Volume
from encoders.errors import InvalidPixels, IrregularGeometry
from encoders.features import Problem

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MAX_VOXELS = 2**31


def resample(volume: Volume, spacing_mm: tuple[float, float, float] | float) -> Volume:
    """The same voxels' values on a grid of this (slice, row, column) spacing.

    The grid runs along the rows, the columns and the normal of the slices, and covers them all.
    Where it is coarser than the voxels, it takes their mean (no aliasing); outside, and where the
    volume holds padding, is air (or the lowest value where there are no Hounsfield units). Values
    keep their type. A `RESAMPLED` problem tells from what.

    Raises:
        IrregularGeometry: it is not known where the voxels lie, or a spacing is not above zero.
        InvalidPixels: the result would have more than 2**31 voxels.
    """
    target = (spacing_mm,) * 3 if isinstance(spacing_mm, int | float) else tuple(spacing_mm)
    if len(target) != 3 or not all(np.isfinite(mm) and mm > 0 for mm in target):
        raise IrregularGeometry(f"a spacing is three numbers of mm above zero, not {target}")
    _, row_mm, column_mm = volume.spacing_mm
    directions, along, shifts = _layout(volume)
    count = volume.voxels.shape
    extents = (
        (along[0], along[-1]),
        (shifts[:, 0].min(), shifts[:, 0].max() + (count[1] - 1) * row_mm),
        (shifts[:, 1].min(), shifts[:, 1].max() + (count[2] - 1) * column_mm),
    )
    grids = [
        low + mm * np.arange(int(np.floor((high - low) / mm + 1e-6)) + 1)
        for (low, high), mm in zip(extents, target, strict=True)
    ]
    if np.prod([len(grid) for grid in grids], dtype=float) > MAX_VOXELS:
        raise InvalidPixels("the resampled volume would have more than 2**31 voxels; refused")
    fill = float(AIR_HU) if volume.calibrated else float(volume.voxels.min())
    values = _interpolated(volume, (along, shifts), grids, target, fill)
    if volume.voxels.dtype == np.int16:
        values = np.rint(values).astype(np.int16)
    return _described(volume, values, directions, grids, target)


def _layout(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit directions (normal, row, column; as columns), and of each slice its height along the
    normal and how far its first voxel is shifted along rows and columns: mm from the first."""
    first = volume.at((0, 0, 0))
    down, right = volume.affine[:3, 1], volume.affine[:3, 2]
    down, right = down / np.linalg.norm(down), right / np.linalg.norm(right)
    normal = np.cross(right, down)
    if normal @ volume.affine[:3, 0] < 0:
        normal = -normal
    index = np.zeros((len(volume.voxels), 3))
    index[:, 0] = np.arange(len(index))
    offsets = volume.at(index) - first
    directions = np.stack([normal, down, right], 1)
    return directions, offsets @ normal, offsets @ directions[:, 1:]


def _interpolated(
    volume: Volume, places: tuple[np.ndarray, np.ndarray], grids: list[np.ndarray],
    target: tuple[float, ...], fill: float,
) -> np.ndarray:  # fmt: skip
    """Slice by slice: in its plane first, then into every output slice that it is a part of."""
    along, shifts = places
    _, row_mm, column_mm = volume.spacing_mm
    through = weights(along, grids[0], target[0]).tocsc()
    out = np.zeros([len(grid) for grid in grids], np.float32)
    kept: dict[tuple[float, float], tuple[Any, Any]] = {}
    for k, image in enumerate(volume.voxels):
        key = (round(float(shifts[k, 0]), 6), round(float(shifts[k, 1]), 6))
        if key not in kept:
            kept = {key: (
                weights(key[0] + row_mm * np.arange(image.shape[0]), grids[1], target[1]),
                weights(key[1] + column_mm * np.arange(image.shape[1]), grids[2], target[2]),
            )}  # fmt: skip
        rows, columns = kept[key]
        flat = image.astype(np.float32) - fill
        for low, high in volume.padding_ranges:
            flat[(image >= low) & (image <= high)] = 0.0
        plane = (columns @ (rows @ flat).T).T
        for at in range(through.indptr[k], through.indptr[k + 1]):
            out[through.indices[at]] += through.data[at] * plane
    out += fill
    return out


def weights(old: np.ndarray, new: np.ndarray, cell: float) -> csr_array:
    """Linear interpolation from ascending places to others as a sparse matrix `[new, old]`.

    Where the cells of the new places are wider than the gaps of the old, the interpolation is
    averaged over each cell. Half a gap beyond the ends the end values hold, further out nothing.
    """
    from scipy.sparse import coo_array

    if len(old) == 1:
        near = (np.abs(new - old[0]) <= cell / 2).astype(np.float32)
        return coo_array(near[:, None]).tocsr()
    gaps = np.diff(old)
    finest = max(float(gaps.min()), 1e-6)
    taps = 1 if cell <= finest * 1.001 else int(np.ceil(2 * cell / finest))
    points = new[:, None] + cell * ((np.arange(taps) + 0.5) / taps - 0.5)
    piece = np.clip(np.searchsorted(old, points, side="right") - 1, 0, len(gaps) - 1)
    share = np.clip((points - old[piece]) / gaps[piece], 0, 1)
    inside = (points >= old[0] - gaps[0] / 2) & (points <= old[-1] + gaps[-1] / 2)
    number = np.broadcast_to(np.arange(len(new))[:, None], points.shape)
    data = np.concatenate([(inside * (1 - share)).ravel(), (inside * share).ravel()]) / taps
    where = (np.tile(number.ravel(), 2), np.concatenate([piece.ravel(), piece.ravel() + 1]))
    shape = (len(new), len(old))
    return coo_array((data.astype(np.float32), where), shape=shape).tocsr()


def _described(
    volume: Volume, values: np.ndarray, directions: np.ndarray, grids: list[np.ndarray],
    target: tuple[float, ...],
) -> Volume:  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(target)
    affine[:3, 3] = volume.at((0, 0, 0)) + directions @ [grid[0] for grid in grids]
    ratio = " x ".join(
        f"{new / old:.3g}" for new, old in zip(target, volume.spacing_mm, strict=True)
    )
    message = (
        f"interpolated to {' x '.join(f'{mm:g}' for mm in target)} mm, {ratio} times the spacing"
        " (slice, row, column)"
    )
    gone = ("GANTRY_TILT", "IRREGULAR_SPACING")  # a gap stays a gap: what lies in it is invented
    problems = tuple(p for p in volume.problems if p.code not in gone)
    info = replace(
        volume.info, num_slices=values.shape[0], rows=values.shape[1], columns=values.shape[2],
        spacing_mm=target,
    )  # fmt: skip
    upward = volume.positions_mm[-1] >= volume.positions_mm[0]
    positions = volume.positions_mm[0] + (grids[0] if upward else -grids[0])
    return replace(
        volume, voxels=values, affine=affine, positions_mm=positions, info=info,
        problems=(*problems, Problem("RESAMPLED", message)), padding_ranges=(), displays=(),
    )  # fmt: skip
