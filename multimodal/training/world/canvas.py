"""A volume to draw a body on: shapes in patient millimetres become voxels in Hounsfield units.

In: where the voxels lie (`Scan`). Out: HU and masks. A shape is worked out on the box around it
only, and where it can be as one comparison a voxel: a flat map against a number per slice. Knows no
anatomy. Axes are LPS: +x patient left, +y posterior, +z head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from multimodal.training.world.scan import Scan

AIR = -1000.0


@dataclass(frozen=True)
class Patch:
    """A mask `[z, y, x]` on a box of the canvas."""

    box: tuple[slice, slice, slice]
    mask: np.ndarray

    def within(self, whole: np.ndarray) -> Patch:
        """Only where `whole`, a mask of the canvas, is set too."""
        return Patch(self.box, self.mask & whole[self.box])

    def without(self, whole: np.ndarray) -> Patch:
        """Only where `whole` is not set."""
        return Patch(self.box, self.mask & ~whole[self.box])


class Canvas:
    """Voxels `hu` `[z, y, x]` with the patient coordinates of each: `px`, `py` flat, `z` deep."""

    def __init__(self, scan: Scan) -> None:
        z, y, x = scan.axes_mm()
        c, s = _turned(scan.tilt)
        x0, y0 = x[None] - scan.shift_mm[0], y[:, None] - scan.shift_mm[1]
        self.scan, self.z = scan, z
        self.px, self.py = c * x0 + s * y0, c * y0 - s * x0
        self.hu = np.full((len(z), len(y), len(x)), AIR, np.float32)

    @property
    def up(self) -> int:
        """Where gravity pulls along y: 1 to the back, -1 to the front of a prone patient."""
        return -1 if self.scan.position.endswith("P") else 1

    def everywhere(self) -> np.ndarray:
        """A mask of nothing, to be filled."""
        return np.zeros(self.hu.shape, bool)

    def box(self, centre: np.ndarray, reach: np.ndarray) -> tuple[slice, slice, slice]:
        """Indices of the voxels at most `reach` mm from `centre` along each axis."""
        scan = self.scan
        c, s = np.cos(scan.tilt), np.sin(scan.tilt)
        x = c * centre[0] - s * centre[1] + scan.shift_mm[0]
        y = s * centre[0] + c * centre[1] + scan.shift_mm[1]
        wide = abs(c) * reach[0] + abs(s) * reach[1], abs(s) * reach[0] + abs(c) * reach[1]
        axes = scan.axes_mm()
        around = ((axes[0], centre[2], reach[2]), (axes[1], y, wide[1]), (axes[2], x, wide[0]))
        slab, rows, columns = (
            slice(*np.searchsorted(axis, [at - r, at + r])) for axis, at, r in around
        )
        return slab, rows, columns

    def column(
        self, centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0
    ) -> np.ndarray:
        """A flat map `[y, x]` that is below 1 inside a superellipse."""
        u, v = np.abs(self.px - centre[0]) / radii[0], np.abs(self.py - centre[1]) / radii[1]
        return u * u + v * v if power == 2.0 else u**power + v**power

    def trunk(
        self, half_width: np.ndarray, half_depth: np.ndarray, y: float = 0.0, power: float = 2.4
    ) -> np.ndarray:
        """A mask of the canvas: a superellipse whose radii differ from slice to slice."""
        u, v = np.abs(self.px) ** power, np.abs(self.py - y) ** power
        radii, which = np.unique([half_width, half_depth], axis=1, return_inverse=True)
        a, b = np.power(radii, -power).astype(np.float32)[..., None, None]
        inside: np.ndarray = (u * a + v * b < 1)[which.reshape(-1)]  # many slices share radii
        return inside

    def ball(
        self,
        centre: ArrayLike,
        radii: ArrayLike,
        turn: float = 0.0,
        rough: np.ndarray | None = None,
    ) -> Patch:
        """An ellipsoid, turned in the slice by `turn`; `rough` is a small cube of bumps."""
        radii = np.asarray(radii, np.float32)
        centre = np.asarray(centre, np.float32)
        wide = 1.0 if rough is None else 1.0 + float(np.abs(rough).max())
        reach = radii if turn == 0 else np.array([max(radii[:2])] * 2 + [radii[2]])
        box = self.box(centre, reach * wide)
        dx, dy = self.px[box[1:]] - centre[0], self.py[box[1:]] - centre[1]
        c, s = _turned(turn)
        flat = ((c * dx + s * dy) / radii[0]) ** 2 + ((c * dy - s * dx) / radii[1]) ** 2
        deep = 1.0 - ((self.z[box[0]] - centre[2]) / radii[2]) ** 2
        if rough is None:
            return Patch(box, flat[None] < deep[:, None, None])
        bumps = stretch(rough, (len(deep), *flat.shape))
        return Patch(box, flat[None] < deep[:, None, None] + bumps)

    def rod(self, start: ArrayLike, stop: ArrayLike, radii: tuple[float, float]) -> Patch:
        """A round rod between two points, its radius changing from one to the other."""
        start = np.asarray(start, np.float32)
        along = np.asarray(stop, np.float32) - start
        most = max(radii)
        box = self.box(start + along / 2, np.abs(along) / 2 + most)
        z = self.z[box[0]][:, None, None]
        px, py = self.px[box[1:]][None], self.py[box[1:]][None]
        t = (px - start[0]) * along[0] + (py - start[1]) * along[1] + (z - start[2]) * along[2]
        t = np.clip(t / max(float(along @ along), 1e-6), 0, 1)
        far = (px - start[0] - t * along[0]) ** 2 + (py - start[1] - t * along[1]) ** 2
        far += (z - start[2] - t * along[2]) ** 2
        return Patch(box, far < (radii[0] + t * (radii[1] - radii[0])) ** 2)

    def tube(self, points: np.ndarray, radius: float) -> np.ndarray:
        """A mask of the canvas: rods of one radius from point to point."""
        mask = self.everywhere()
        for start, stop in pairwise(points):
            part = self.rod(start, stop, (radius, radius))
            mask[part.box] |= part.mask
        return mask

    def paint(self, shape: Patch | np.ndarray, hu: float) -> None:
        """Set the value of a shape."""
        box, mask = (shape.box, shape.mask) if isinstance(shape, Patch) else ((), shape)
        np.copyto(self.hu[box], np.float32(hu), where=mask)

    def stand(self, column: np.ndarray, hu: float, slices: np.ndarray | None = None) -> None:
        """Set the value of a flat mask in every slice, or where `slices`, a mask of them, is set."""
        rows, columns = np.nonzero(column)
        deep = np.arange(len(self.z)) if slices is None else np.flatnonzero(slices)
        self.hu[deep[:, None], rows, columns] = hu

    def add(self, shape: Patch | np.ndarray, hu: float | np.ndarray) -> None:
        """Add to the values of a shape; what lies in it stays visible."""
        box, mask = (shape.box, shape.mask) if isinstance(shape, Patch) else ((), shape)
        np.add(self.hu[box], hu, out=self.hu[box], where=mask, casting="unsafe")

    def whole(self, *parts: Patch) -> np.ndarray:
        """Patches as one mask of the canvas."""
        mask = self.everywhere()
        for part in parts:
            mask[part.box] |= part.mask
        return mask

    def texture(self, rng: np.random.Generator, cell_mm: float) -> np.ndarray:
        """A smooth random field over the canvas, of spread one, its bumps about `cell_mm` wide."""
        size = np.multiply(self.hu.shape, self.scan.spacing_mm)
        cells = np.maximum(np.rint(size / cell_mm).astype(int), 2)
        return stretch(1.6 * rng.standard_normal(cells), self.hu.shape)


def _turned(angle: float) -> tuple[np.float32, np.float32]:
    """Cosine and sine in single precision: in double they would make the maps so, too."""
    return np.float32(np.cos(angle)), np.float32(np.sin(angle))


def stretch(cube: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A small cube of numbers drawn out to `shape`, with straight lines between."""
    import torch

    if 0 in shape:
        return np.zeros(shape, np.float32)
    small = torch.from_numpy(np.ascontiguousarray(cube, np.float32))[None, None]
    big = torch.nn.functional.interpolate(small, shape, mode="trilinear", align_corners=True)
    return big[0, 0].numpy()
