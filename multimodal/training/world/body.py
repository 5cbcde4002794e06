"""What every region has: a person's build, skin, fat and muscle, the spine, the table beneath.

A `Person` is drawn at random once and may then be scanned any number of times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from multimodal.training.world.canvas import Canvas, Patch
from multimodal.training.world.findings import Key, Lesion, Region

Masks = dict[Key, np.ndarray]
FAT, MUSCLE = -95.0, 55.0


def united(painted: Iterable[tuple[Key, np.ndarray]]) -> Masks:
    """What each finding covers, however many of it there are."""
    masks: Masks = {}
    for key, mask in painted:
        masks[key] = masks[key] | mask if key in masks else mask
    return masks


class Body(Protocol):
    """A region of one random person, with its findings."""

    @property
    def region(self) -> Region:
        """Which part of the body it is."""
        ...

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """What is wrong with it."""
        ...

    @property
    def field_mm(self) -> tuple[float, float]:
        """Least and most width of a scan's field."""
        ...

    @property
    def length_mm(self) -> tuple[float, float]:
        """Lowest and highest z of a scan."""
        ...

    def draw(self, canvas: Canvas) -> Masks:
        """Draw it; returns the mask of every finding."""
        ...


@dataclass(frozen=True)
class Person:
    """A build, and how much contrast the blood carries."""

    width: float  # half, mm, without the fat
    depth: float
    fat: float
    female: bool
    blood_hu: float
    seed: int

    @property
    def contrast(self) -> float:
        """0 without contrast, about 1 in the portal phase, more in the arterial one."""
        return max(0.0, (self.blood_hu - 45.0) / 110.0)

    @property
    def trunk_field_mm(self) -> tuple[float, float]:
        """Least and most side of a square field that shows the trunk whole."""
        side = 2 * (self.width + self.fat)
        return side + 10, side + 70


def random_person(rng: np.random.Generator) -> Person:
    """A grown-up of any build; half of them without contrast."""
    female = bool(rng.random() < 0.5)
    phase = rng.choice(3, p=[0.5, 0.3, 0.2])
    blood = (rng.uniform(36, 50), rng.uniform(120, 180), rng.uniform(200, 320))[phase]
    size = rng.normal(0.94 if female else 1.02, 0.05)
    return Person(
        160 * size * rng.uniform(0.95, 1.05), 108 * size * rng.uniform(0.94, 1.08),
        float(rng.gamma(3.0, 6.0) + 6.0), female, float(blood), int(rng.integers(2**31)),
    )  # fmt: skip


def draw_trunk(person: Person, canvas: Canvas, wider: np.ndarray) -> None:
    """Skin, fat and the muscle beneath it, then the table; `wider` is a factor a slice."""
    w, d = (person.width + person.fat) * wider, (person.depth + 0.8 * person.fat) * np.sqrt(wider)
    canvas.paint(canvas.trunk(w + 2, d + 2), 20.0)  # skin
    canvas.paint(canvas.trunk(w, d), FAT)
    canvas.paint(canvas.trunk(person.width * wider, person.depth * np.sqrt(wider)), MUSCLE)
    draw_table(canvas, float(d.max()) + 3)


def draw_table(canvas: Canvas, depth: float) -> None:
    """A hollow curved board under the patient (above one who lies prone)."""
    side = canvas.up
    sag = np.clip(depth + 26 - 0.0007 * canvas.px**2, depth + 2, None)
    below = canvas.py * side - sag
    board = (np.abs(below - 12) < 14) & (np.abs(canvas.px) < 215)
    shell = board & (np.abs(np.abs(below - 12) - 12.5) < 1.5)
    canvas.stand(board, -940.0)
    canvas.stand(shell, -250.0)


@dataclass(frozen=True)
class Spine:
    """A straight column of vertebrae: where it stands, how tall each is and where the first ends."""

    y: float
    radii: tuple[float, float]
    height: float
    start: float

    def middle(self, number: int) -> float:
        """z of a vertebra's middle; they are counted upwards from z = 0."""
        return self.start + (number + 0.5) * self.height

    def draw(self, canvas: Canvas, density: float) -> None:
        """Bodies with their rims, discs between, arch, canal and processes."""
        phase = np.mod(canvas.z - self.start, self.height) / self.height
        bone, disc = np.abs(phase - 0.5) < 0.37, np.abs(phase - 0.5) > 0.43
        body = canvas.column((0, self.y), self.radii) < 1
        core = canvas.column((0, self.y), (self.radii[0] - 2, self.radii[1] - 2)) < 1
        canvas.stand(body, density + 170)
        canvas.stand(core, density, bone)
        canvas.stand(body, 85.0, disc)
        rx, ry = self.radii
        arch = canvas.column((0, self.y + ry + 8), (15, 12)) < 1
        canal = canvas.column((0, self.y + ry + 8), (10, 8.5)) < 1
        wings = canvas.column((0, self.y + ry + 10), (rx + 17, 5)) < 1
        thorn = canvas.column((0, self.y + ry + 32), (4, 17)) < 1
        canvas.stand(wings | thorn, density + 130, bone)
        canvas.stand(arch, density + 220)
        canvas.stand(canal, 32.0)


def smooth_step(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """0 before `start`, 1 after `stop`, smooth between."""
    t = np.clip((values - start) / (stop - start), 0, 1)
    return t * t * (3 - 2 * t)


def bumps(seed: int, rough: float, cells: int = 5) -> np.ndarray:
    """A cube of bumps for `Canvas.ball`."""
    return (rough * np.random.default_rng(seed).standard_normal((cells,) * 3)).astype(np.float32)


def clump(canvas: Canvas, centre: np.ndarray, radii: np.ndarray, seed: int) -> list[Patch]:
    """Rough blobs that run into each other: the ragged shape of airspace disease."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(5):
        at = centre + rng.uniform(-0.5, 0.5, 3) * radii
        parts.append(canvas.ball(at, radii * rng.uniform(0.45, 0.8, 3), rough=bumps(
            int(rng.integers(2**31)), 0.25)))  # fmt: skip
    return parts
