"""How a body is scanned: where the voxels lie, how the patient lies, kernel and noise.

A `Scan` is a handful of numbers; `finish` turns a drawing into what a scanner would store. Knows no
anatomy. A coarser scan of the same patient has less noise a voxel, as the mean of many has, so that
the pictures made of both look the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

MIN_SLICES = 32  # every picture of the larger view profile shows slices of its own
THICKEST_MM = 3.0  # cuts farther apart through a vessel that crosses them look like nodules
Position = Literal["HFS", "FFS", "HFP", "FFP"]
_FLIPS = {"HFS": (1, 1), "FFS": (-1, 1), "HFP": (-1, -1), "FFP": (1, -1)}  # of columns, rows


@dataclass(frozen=True)
class Scan:
    """Where the voxels lie and how the scanner sees.

    Attributes:
        shape: slices, rows, columns.
        spacing_mm: of slices, rows, columns.
        bottom_mm: patient z of the lowest slice's lower face.
        shift_mm: how far the patient lies from the middle of the field, to the left and back.
        tilt: turn of the patient about the long axis, radians.
        position: how the patient lies on the table (DICOM PatientPosition).
        head_first: whether the first stored slice is the highest.
        blur_mm: width of the kernel; below a voxel it is a sharp one.
        noise_hu: spread of the noise in a voxel.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    bottom_mm: float
    shift_mm: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0
    position: Position = "HFS"
    head_first: bool = False
    blur_mm: float = 0.5
    noise_hu: float = 12.0

    def axes_mm(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres of the voxels along z, y, x, float32."""
        n, rows, columns = self.shape
        dz, dy, dx = self.spacing_mm
        z = self.bottom_mm + (np.arange(n, dtype=np.float32) + 0.5) * np.float32(dz)
        y = (np.arange(rows, dtype=np.float32) + 0.5 - rows / 2) * np.float32(dy)
        x = (np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) * np.float32(dx)
        return z, y, x

    @property
    def affine(self) -> np.ndarray:
        """(slice, row, column) of the drawing -> LPS mm."""
        affine = np.diag([*(0.0,) * 3, 1.0])
        affine[[2, 1, 0], [0, 1, 2]] = self.spacing_mm
        affine[:3, 3] = [axis[0] for axis in self.axes_mm()[::-1]]
        return affine

    def stored(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxels (or a mask) in the order in which this scan's files hold them, and their affine."""
        across, down = _FLIPS[self.position]
        steps = np.array([-1 if self.head_first else 1, down, across])
        affine = self.affine @ np.diag([*steps, 1])
        last = (np.array(voxels.shape) - 1) * (steps < 0)
        affine[:3, 3] = (self.affine @ [*last, 1])[:3]
        return voxels[:: steps[0], :: steps[1], :: steps[2]], affine

    def coarser(self, factor: float) -> Scan:
        """The same field in fewer, larger voxels.

        Never less than `MIN_SLICES` slices, and none merged to more than `THICKEST_MM`.
        """
        n, rows, columns = self.shape
        fewest = max(MIN_SLICES, math.ceil(n * self.spacing_mm[0] / THICKEST_MM))
        slices = max(round(n / factor), min(n, fewest))
        small = (slices, round(rows / factor), round(columns / factor))
        dz, dy, dx = np.multiply(self.spacing_mm, np.divide(self.shape, small)).tolist()
        merged = np.prod(self.shape) / np.prod(small)
        blurred = max(1.0, self.blur_mm / self.spacing_mm[1])  # blurred noise averages out less
        noise = self.noise_hu * min(1.0, blurred / np.sqrt(merged))
        return replace(self, shape=small, spacing_mm=(dz, dy, dx), noise_hu=float(noise))


def random_scan(
    rng: np.random.Generator,
    field_mm: tuple[float, float],
    length_mm: tuple[float, float],
    *,
    quiet: bool = False,
) -> Scan:
    """A scan of the body between two heights, its field between two widths; 512 x 512 a slice.

    Args:
        field_mm: least and most side of the square field.
        length_mm: lowest and highest z.
        quiet: with the dose of a head scan, whose noise is a third of a body's.
    """
    side = float(np.clip(512 * rng.uniform(0.6, 0.9), *field_mm))
    thick = float(np.exp(rng.uniform(0.0, np.log(5.0))))
    bottom, top = length_mm
    n = max(int((top - bottom) / thick), MIN_SLICES)
    sharp = rng.random() < 0.4
    position: Position = ("HFS", "FFS", "HFP")[rng.choice(3, p=[0.7, 0.2, 0.1])]
    return Scan(
        (n, 512, 512), ((top - bottom) / n, side / 512, side / 512), bottom,
        shift_mm=(rng.uniform(-12, 12), rng.uniform(-12, 12)), tilt=rng.uniform(-0.08, 0.08),
        position=position, head_first=bool(rng.random() < 0.5),
        blur_mm=rng.uniform(0.1, 0.5) if sharp else rng.uniform(0.7, 1.5),
        # thin slices and sharp kernels are noisier
        noise_hu=float(rng.uniform(7, 16) * (1.7 if sharp else 1.0) * np.sqrt(3.0 / (thick + 1.0)) * (0.33 if quiet else 1.0)),
    )  # fmt: skip


def finish(hu: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
    """A drawing as the scanner stores it: noise, then the kernel's blur; int16."""
    from scipy.ndimage import gaussian_filter1d

    sigma = scan.blur_mm / scan.spacing_mm[1]
    kept = 1.0
    if sigma > 0.3:  # what the blur leaves of white noise, per axis
        taps = np.exp(-0.5 * (np.arange(-8, 9) / sigma) ** 2)
        kept = float(np.sum((taps / taps.sum()) ** 2))  # two axes, each the square root
    noisy = rng.standard_normal(hu.shape, np.float32)
    noisy *= np.float32(scan.noise_hu / kept)
    noisy += hu
    if sigma > 0.3:
        for axis in (1, 2):
            gaussian_filter1d(noisy, sigma, axis=axis, output=noisy, mode="nearest", truncate=3.0)
    np.rint(noisy, out=noisy)
    return np.clip(noisy, -1024, 3071, out=noisy).astype(np.int16)
