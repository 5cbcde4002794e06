"""A head: scalp, skull, brain with its folds, ventricles, falx, eyes, sinuses; and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from multimodal.training.world.body import Masks, Person, bumps, draw_table, random_person, united
from multimodal.training.world.canvas import Canvas
from multimodal.training.world.findings import Key, Lesion, Region, Shown, random_size

_DEEP = ("thalamus", "frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe")


@dataclass(frozen=True)
class Head:
    """A person's head and what is wrong with it; z = 0 lies through the lateral ventricles."""

    person: Person
    radii: tuple[float, float, float]  # of the brain
    bone_mm: float
    bone_hu: float
    ventricles: float  # 1 of a young person
    lesions: tuple[Lesion, ...] = ()
    region: Region = field(default="head", init=False)

    @property
    def field_mm(self) -> tuple[float, float]:
        """A head's field is small."""
        return 2 * self.radii[1] + 50, 2 * self.radii[1] + 90

    @property
    def length_mm(self) -> tuple[float, float]:
        """From the foramen magnum to above the vertex."""
        return -0.98 * self.radii[2], self.radii[2] + 22

    def draw(self, canvas: Canvas) -> Masks:
        """Draw everything."""
        rng = np.random.default_rng(self.person.seed)
        a, b, c = self.radii
        up = np.clip(canvas.z / c, -1, 0.999)
        t = np.where(up > 0, np.sqrt(1 - up**2), np.sqrt(1 - 0.35 * up**2))
        brain = canvas.trunk(a * t, b * t, power=2.15)
        brain &= (canvas.z < c)[:, None, None]
        skull = self._grown(canvas, self.bone_mm)
        canvas.paint(self._grown(canvas, self.bone_mm + 6), 35.0)
        canvas.paint(self._grown(canvas, self.bone_mm + 4.5), -60.0)
        canvas.paint(skull, self.bone_hu)
        marrow = self._grown(canvas, 0.68 * self.bone_mm) & ~self._grown(
            canvas, 0.32 * self.bone_mm
        )
        canvas.paint(marrow, 0.45 * self.bone_hu)
        self._brain(canvas, brain, rng)
        self._base(canvas)
        self._face(canvas)
        draw_table(canvas, b + 40)
        return united(
            (lesion.key, _PAINT[lesion.shown.name](self, canvas, lesion, brain))
            for lesion in self.lesions
        )

    def _grown(self, canvas: Canvas, by: float) -> np.ndarray:
        """What lies within `by` mm around the brain."""
        a, b, c = (r + by for r in self.radii)
        up = np.clip(canvas.z / c, -1, 0.999)
        t = np.where(up > 0, np.sqrt(1 - up**2), np.sqrt(1 - 0.35 * up**2))
        return canvas.trunk(a * t, b * t, power=2.15) & (canvas.z < c)[:, None, None]

    def _brain(self, canvas: Canvas, brain: np.ndarray, rng: np.random.Generator) -> None:
        """White matter in a grey rind with dark furrows, ventricles, falx, cisterns."""
        a, b, c = self.radii
        folds, grain = canvas.texture(rng, 9.0), canvas.texture(rng, 16.0)
        canvas.paint(brain, 36.0 + 8 * self.person.contrast)
        up = np.clip(canvas.z / (c - 10), -1, 0.999)
        t = np.where(up > 0, np.sqrt(1 - up**2), np.sqrt(1 - 0.4 * up**2))
        core = (
            canvas.trunk((a - 11) * t, (b - 12) * t, power=2.1) & (canvas.z < c - 10)[:, None, None]
        )
        canvas.add(core & (folds < 0.5), -8.0)
        furrow = brain & ~core & (np.abs(folds) < 0.10 + 0.05 * self.ventricles)
        canvas.paint(furrow, 10.0)
        canvas.add(brain, 1.2 * grain)
        canvas.paint(self.ventricle(canvas, self.ventricles) & brain, 6.0)
        falx = (np.abs(canvas.px) < 1.4)[None] & brain & (canvas.z > 5)[:, None, None]
        falx &= (np.abs(canvas.py)[None] > 0.35 * b) | (canvas.z > 0.45 * c)[:, None, None]
        canvas.paint(falx, 52.0)
        for sign in (-1, 1):  # deep grey
            canvas.paint(canvas.ball([sign * 15, 4, 2], [8, 14, 11]), 40.0)
            canvas.paint(canvas.ball([sign * 25, -12, 2], [6, 13, 10], turn=sign * 0.3), 40.0)

    def ventricle(self, canvas: Canvas, size: float) -> np.ndarray:
        """Both lateral ventricles with their horns, the third and the fourth."""
        parts = []
        for s in (-1, 1):
            front, body, back = (
                np.array([s * 9, -32, 4]),
                np.array([s * 13, 2, 18]),
                np.array([s * 24, 38, 2]),
            )
            tip = np.array([s * 32, 8, -18])
            for start, stop, r0, r1 in (
                (front, body, 4.6, 4.8),
                (body, back, 4.8, 5.2),
                (back, tip, 5.0, 2.2),
            ):
                parts.append(canvas.rod(start, stop, (r0 * size, r1 * size)))
        parts.append(canvas.ball([0, 2, -4], [2.2 * size, 13, 10]))
        parts.append(canvas.ball([0, 32, -38], [6.0 * size, 5.0 * size, 10]))
        return canvas.whole(*parts)

    def _base(self, canvas: Canvas) -> None:
        """Petrous bones, middle skull base, brain stem in its cistern, the little brain's tent."""
        b = self.radii[1]
        for sign in (-1, 1):
            canvas.paint(
                canvas.rod([sign * 14, 8, -46], [sign * 62, 34, -42], (6, 15)), self.bone_hu
            )
            cells = canvas.ball([sign * 60, 40, -46], [9, 12, 14])
            canvas.paint(cells, -300.0)
        canvas.paint(canvas.ball([0, -0.05 * b, -62], [30, 26, 14]), 0.8 * self.bone_hu)
        canvas.paint(canvas.ball([0, 12, -44], [17, 14, 24]), 8.0)
        canvas.paint(canvas.ball([0, 14, -44], [13, 11, 26]), 34.0)

    def _face(self, canvas: Canvas) -> None:
        """Eyes in their fat, air in the sinuses and the nose."""
        a, b, _ = self.radii
        front = -b - 2
        for sign in (-1, 1):
            at = np.array([sign * 0.46 * a, front + 4, -48.0])
            canvas.paint(canvas.ball(at + np.array([0, 6, 0]), [19, 24, 18]), -80.0)
            canvas.paint(canvas.ball(at, [12, 12, 12]), 12.0)
            canvas.paint(canvas.ball(at + np.array([0, -8.5, 0]), [4.5, 2.5, 4.5]), 70.0)
            canvas.paint(
                canvas.rod(at + np.array([0, 10, 0]), at + np.array([-sign * 12, 34, -2]), (3, 3)),
                35.0,
            )
            canvas.paint(canvas.ball([sign * 12, front + 6, -22], [11, 5, 11]), -980.0)
            canvas.paint(canvas.ball([sign * 7, front + 18, -56], [5, 18, 16]), -970.0)


def random_head(rng: np.random.Generator, keys: list[Key]) -> Head:
    """A head at random with the findings of `keys`."""
    person = random_person(rng)
    size = rng.normal(1.0, 0.03)
    wide = ("hydrocephalus", None) in keys
    head = Head(
        person, (67 * size, 83 * size, 84 * size), rng.uniform(5, 9), rng.uniform(900, 1400),
        rng.uniform(1.9, 2.6) if wide else rng.uniform(0.8, 1.35),
    )  # fmt: skip
    lesions = tuple(_lesion(head, key, rng) for key in keys)
    return Head(head.person, head.radii, head.bone_mm, head.bone_hu, head.ventricles, lesions)


def _lesion(head: Head, key: Key, rng: np.random.Generator) -> Lesion:
    name, side = key
    sign = -1 if side == "right" else 1
    a, b, c = head.radii
    size, place, level = random_size(name, rng), None, 0.0
    centre = np.zeros(3)
    if name == "intracerebral haemorrhage":
        place = _DEEP[rng.integers(len(_DEEP))]
        middle = {
            "thalamus": (0.26, 0.05, 0.04), "frontal lobe": (0.42, -0.5, 0.3),
            "parietal lobe": (0.45, 0.3, 0.48), "temporal lobe": (0.62, -0.1, -0.25),
            "occipital lobe": (0.36, 0.66, 0.1),
        }[place]  # fmt: skip
        centre = np.array([sign * middle[0] * a, middle[1] * b, middle[2] * c]) + rng.normal(
            0, 3, 3
        )
        level = rng.uniform(58, 82)
    elif name == "subdural haematoma":
        level = rng.uniform(6, 16)  # mm of blood
    elif name == "infarct":
        centre = np.array(
            [sign * 0.62 * a, rng.uniform(-0.2, 0.3) * b, rng.uniform(-0.05, 0.4) * c]
        )
        level = rng.uniform(9, 20)  # HU below the brain's
    at = (float(centre[0]), float(centre[1]), float(centre[2]))
    return Lesion(Shown(name, side, size, place), at, float(level), int(rng.integers(2**31)))


def _bleed(head: Head, canvas: Canvas, lesion: Lesion, brain: np.ndarray) -> np.ndarray:
    """Bright blood with a dark rim of swelling."""
    rng = np.random.default_rng(lesion.seed)
    stretch = np.exp(rng.uniform(-0.15, 0.15, 3))
    radii = lesion.radius_mm * stretch / np.prod(stretch) ** (1 / 3)
    rough = bumps(lesion.seed, 0.08)
    rim = canvas.ball(lesion.centre, radii + rng.uniform(3, 8), rough=rough).within(brain)
    canvas.paint(rim, 22.0)
    mask = canvas.whole(canvas.ball(lesion.centre, radii, rough=rough).within(brain))
    canvas.paint(mask, lesion.level)
    return mask


def _subdural(head: Head, canvas: Canvas, lesion: Lesion, brain: np.ndarray) -> np.ndarray:
    """A sickle under the skull of one side."""
    rng = np.random.default_rng(lesion.seed)
    a, b, c = head.radii
    shifted = np.array([-lesion.sign * lesion.level, rng.uniform(-6, 6), -0.4 * lesion.level])
    inner = canvas.whole(canvas.ball(shifted + np.array([0, 0, -10]), [a + 1, b + 8, c + 10]))
    mask = brain & ~inner & (lesion.sign * canvas.px > 4)[None]
    mask &= (canvas.z > -0.35 * c)[:, None, None]
    canvas.paint(mask, 50.0 + lesion.seed % 25)
    return mask


def _infarct(head: Head, canvas: Canvas, lesion: Lesion, brain: np.ndarray) -> np.ndarray:
    """A dark wedge that reaches the surface, its furrows gone."""
    rng = np.random.default_rng(lesion.seed)
    a, b, c = head.radii
    radii = np.array([0.42 * a, rng.uniform(0.22, 0.42) * b, rng.uniform(0.2, 0.36) * c])
    mask = canvas.whole(
        canvas.ball(lesion.centre, radii, rough=bumps(lesion.seed, 0.15)).within(brain)
    )
    mask &= (lesion.sign * canvas.px > 0.24 * a)[None]
    canvas.paint(mask, 34.0 - lesion.level)
    return mask


def _hydrocephalus(head: Head, canvas: Canvas, lesion: Lesion, brain: np.ndarray) -> np.ndarray:
    return head.ventricle(canvas, head.ventricles) & brain


_PAINT: dict[str, Callable[[Head, Canvas, Lesion, np.ndarray], np.ndarray]] = {
    "intracerebral haemorrhage": _bleed,
    "subdural haematoma": _subdural,
    "infarct": _infarct,
    "hydrocephalus": _hydrocephalus,
}
