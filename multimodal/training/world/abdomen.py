"""An abdomen: liver, spleen, kidneys, stomach, bowel, great vessels, spine, pelvis; and findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from multimodal.training.world.body import (
    FAT,
    MUSCLE,
    Masks,
    Person,
    Spine,
    bumps,
    draw_trunk,
    random_person,
    united,
)
from multimodal.training.world.canvas import Canvas
from multimodal.training.world.findings import Key, Lesion, Region, Shown, random_size

_POLES = ("upper pole", "interpolar region", "lower pole")


@dataclass(frozen=True)
class Abdomen:
    """A person's abdomen and what is wrong with it; z = 0 lies through the kidneys' upper poles."""

    person: Person
    half: float
    bone_hu: float
    lesions: tuple[Lesion, ...] = ()
    region: Region = field(default="abdomen", init=False)

    @property
    def field_mm(self) -> tuple[float, float]:
        """The whole trunk."""
        return self.person.trunk_field_mm

    @property
    def length_mm(self) -> tuple[float, float]:
        """From the iliac crests to the domes of the diaphragm."""
        return -1.15 * self.half, 1.0 * self.half

    @property
    def inner(self) -> tuple[float, float]:
        """Half width and depth of the peritoneal space."""
        return self.person.width - 19, self.person.depth - 15

    @property
    def spine(self) -> Spine:
        """Lumbar."""
        return Spine(0.55 * self.inner[1], (23.0, 17.0), 34.0, -5.0)

    def kidney(self, sign: int) -> tuple[np.ndarray, np.ndarray]:
        """Centre and radii; the right one (-1) lies lower."""
        wide, deep = self.inner
        centre = np.array([sign * 0.47 * wide, 0.47 * deep, -28.0 - (8 if sign < 0 else 0)])
        return centre, np.array([27.0, 25.0, 54.0])

    def liver(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre and radii of its right lobe."""
        wide, deep = self.inner
        return np.array([-0.42 * wide, -0.02 * deep, 0.42 * self.half]), np.array(
            [0.54 * wide, 0.84 * deep, 0.62 * self.half]
        )

    def draw(self, canvas: Canvas) -> Masks:
        """Draw everything."""
        rng = np.random.default_rng(self.person.seed)
        wide, deep = self.inner
        draw_trunk(self.person, canvas, np.ones_like(canvas.z))
        inside = canvas.trunk(np.full_like(canvas.z, wide), np.full_like(canvas.z, deep))
        canvas.paint(inside, FAT)
        self._wall(canvas, inside)
        wet = None
        fluid = next((x for x in self.lesions if x.shown.name == "ascites"), None)
        if fluid is not None:
            wet = self._ascites(canvas, fluid, inside)
        organs = self._organs(canvas, inside, rng)
        masks = united(
            (x.key, _PAINT[x.shown.name](self, canvas, x, organs))
            for x in self.lesions
            if x is not fluid
        )
        if fluid is not None and wet is not None:
            masks[fluid.key] = wet & (np.abs(canvas.hu - 8.0) < 0.01)
        return masks

    def _wall(self, canvas: Canvas, inside: np.ndarray) -> None:
        """Spine, muscles beside it, lower ribs above, iliac wings below."""
        wide, deep = self.inner
        self.spine.draw(canvas, self.bone_hu)
        for sign in (-1, 1):
            psoas = canvas.tube(
                np.array(
                    [[sign * 28, 0.56 * deep, 10], [sign * 46, 0.42 * deep, -1.2 * self.half]]
                ),
                15.0,
            )
            canvas.paint(psoas & inside, MUSCLE)
            wing = canvas.rod(
                [sign * 0.62 * wide, 0.72 * deep, -1.0 * self.half],
                [sign * 0.98 * wide, 0.0, -1.22 * self.half],
                (8.0, 10.0),
            )
            canvas.paint(wing, self.bone_hu + 260)
        ring = (
            canvas.trunk(np.full_like(canvas.z, wide + 8), np.full_like(canvas.z, deep + 8))
            & ~inside
        )
        z, y, x = np.nonzero(ring & (canvas.z > 0)[:, None, None])
        phase = (canvas.z[z] + 40 * np.arctan2(-canvas.py[y, x], np.abs(canvas.px[y, x]))) / 27.0
        hit = (np.abs(phase - np.round(phase)) < 0.2) & (canvas.py[y, x] > -0.6 * deep)
        canvas.hu[z[hit], y[hit], x[hit]] = self.bone_hu + 280

    def _ascites(self, canvas: Canvas, lesion: Lesion, inside: np.ndarray) -> np.ndarray:
        """Water along the flanks and around the liver, before the organs are laid in."""
        wide, deep = self.inner
        clear = canvas.column((0, 0.75 * deep), (0.95 * wide, 0.42 * deep)) >= 1
        core = canvas.trunk(
            np.full_like(canvas.z, wide - lesion.level),
            np.full_like(canvas.z, deep - lesion.level),
            y=-6.0 * canvas.up,
        )
        mask = inside & ~core & clear[None]
        canvas.paint(mask, 8.0)
        return mask

    def _organs(
        self, canvas: Canvas, inside: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        wide, deep = self.inner
        contrast, blood = self.person.contrast, self.person.blood_hu
        organs = {}
        self._bowel(canvas, inside, rng)
        centre, radii = self.liver()
        liver = canvas.whole(canvas.ball(centre, radii), canvas.ball(
            [0.05 * wide, -0.42 * deep, 0.52 * self.half], [0.5 * wide, 0.4 * deep, 0.36 * self.half]))  # fmt: skip
        liver &= canvas.trunk(np.full_like(canvas.z, wide - 3), np.full_like(canvas.z, deep - 3))
        liver &= (canvas.column((0, self.spine.y), (40, 34)) >= 1)[None]
        canvas.paint(liver, 54 + 48 * contrast)
        canvas.add(liver, 3.0 * canvas.texture(rng, 12.0))
        for _ in range(9):  # portal branches
            start = np.array([-0.12 * wide, -0.05 * deep, 0.42 * self.half])
            stop = centre + radii * rng.uniform(-0.75, 0.75, 3)
            canvas.paint(canvas.rod(start, stop, (5.0, 1.5)).within(liver), 40 + 0.9 * (blood - 40))
        organs["liver"] = liver
        self._bases(canvas, inside & ~liver)
        canvas.paint(
            canvas.ball([-0.30 * wide, -0.48 * deep, -0.02 * self.half], [15, 26, 22]), 12.0
        )
        canvas.paint(
            canvas.ball([0.74 * wide, 0.34 * deep, 0.45 * self.half], [24, 42, 52], turn=0.4),
            48 + 60 * contrast,
        )
        stomach = [0.36 * wide, -0.36 * deep, 0.42 * self.half]
        canvas.paint(canvas.ball(stomach, [52, 40, 48]), 40.0)
        canvas.paint(canvas.ball(stomach, [46, 34, 42]), 15.0)
        canvas.paint(
            canvas.ball(np.array(stomach) + np.array([0, -canvas.up * 18, 6]), [38, 16, 32]), -970.0
        )
        canvas.paint(
            canvas.tube(
                np.array(
                    [
                        [-35, -0.1 * deep, -6],
                        [-8, -0.14 * deep, 8],
                        [45, 0.05 * deep, 22],
                        [80, 0.2 * deep, 34],
                    ]
                ),
                10.0,
            ),
            40 + 55 * contrast,
        )
        for side, sign in (("right", -1), ("left", 1)):
            at, size = self.kidney(sign)
            organs[side] = canvas.whole(canvas.ball(at, size, turn=sign * 0.5))
            canvas.paint(organs[side], 33 + 110 * contrast)
            hollow = canvas.ball(at - np.array([sign * 10, 3, 0]), size * [0.42, 0.5, 0.5])
            canvas.paint(hollow, FAT + 20)
            canvas.paint(
                canvas.ball(at - np.array([sign * 6, 1, 0]), size * [0.26, 0.3, 0.4]), 12.0
            )
        line = self.aorta(canvas)
        organs["aorta"] = canvas.tube(line, 10.5)
        canvas.paint(organs["aorta"], blood)
        canvas.paint(
            canvas.tube(line * [[-1.4, 1, 1]] + [[-6, 0, 0]], 10.0), 40 + 0.8 * (blood - 40)
        )
        return organs

    def _bases(self, canvas: Canvas, free: np.ndarray) -> None:
        """The lowest parts of the lungs, over the domes of the diaphragm."""
        wide, deep = self.inner
        for sign in (-1, 1):
            bow = (
                1
                - ((canvas.px - sign * 0.45 * wide) / (0.62 * wide)) ** 2
                - (canvas.py / (1.05 * deep)) ** 2
            )
            dome = (0.46 + 0.5 * bow) * self.half
            mask = (
                free
                & (canvas.z[:, None, None] > dome[None])
                & (sign * canvas.px > 0.16 * wide)[None]
            )
            canvas.paint(mask, -840.0)

    def aorta(self, canvas: Canvas) -> np.ndarray:
        """Points along it, before the spine."""
        y = self.spine.y - self.spine.radii[1] - 13
        return np.array([[9.0, y, 1.2 * self.half], [8.0, y, 0.0], [4.0, y, -1.2 * self.half]])

    def _bowel(self, canvas: Canvas, inside: np.ndarray, rng: np.random.Generator) -> None:
        """Loops of small bowel below, colon with stool and gas along the flanks."""
        wide, deep = self.inner
        for _ in range(34):
            at = rng.uniform(-1, 1, 3) * [0.62 * wide, 0.42 * deep, 0.62 * self.half] + [
                0,
                -0.3 * deep,
                -0.55 * self.half,
            ]
            way = rng.standard_normal(3) * [22, 14, 14]
            canvas.paint(
                canvas.rod(at - way, at + way, (11, 11)).within(inside),
                38 + 30 * self.person.contrast,
            )
            canvas.paint(
                canvas.rod(at - way, at + way, (8, 8)).within(inside),
                rng.choice([20.0, 30.0, 12.0, -700.0], p=[0.4, 0.3, 0.2, 0.1]),
            )
        for sign in (-1, 1):
            x = sign * 0.80 * wide
            for z in np.arange(-1.1, 0.05 if sign < 0 else 0.4, 0.16) * self.half:
                at = np.array([x, 0.1 * deep, z]) + rng.normal(0, 3, 3)
                canvas.paint(canvas.ball(at, [19, 20, 15]).within(inside), 42.0)
                canvas.paint(canvas.ball(at, [16, 17, 13], rough=bumps(int(rng.integers(2**31)), 0.2)).within(inside),
                             rng.choice([-60.0, -200.0, -850.0, 30.0]))  # fmt: skip


def random_abdomen(rng: np.random.Generator, keys: list[Key]) -> Abdomen:
    """An abdomen at random with the findings of `keys`."""
    person = random_person(rng)
    body = Abdomen(
        person, 125 * person.width / 160 * rng.uniform(0.95, 1.08), rng.uniform(110, 230)
    )
    return Abdomen(person, body.half, body.bone_hu, tuple(_lesion(body, key, rng) for key in keys))


def _lesion(body: Abdomen, key: Key, rng: np.random.Generator) -> Lesion:
    name, side = key
    sign = -1 if side == "right" else 1
    size, place, level = random_size(name, rng), None, 0.0
    centre = np.zeros(3)
    if name == "liver lesion":
        at, radii = body.liver()
        u = rng.uniform(-0.55, 0.55, 3)
        centre = at + u * radii
        level = rng.choice([8.0, 25.0])
        place = "right lobe"
    elif name in ("renal cyst", "kidney stone"):
        at, radii = body.kidney(sign)
        pole = int(rng.integers(3))
        place = _POLES[pole]
        out = 0.9 if name == "renal cyst" else 0.25
        centre = at + radii * [
            sign * out * rng.uniform(0.7, 1),
            rng.uniform(-0.3, 0.3),
            (0.62, 0.0, -0.62)[pole],
        ]
        level = 5.0 if name == "renal cyst" else rng.uniform(500, 1300)
    elif name == "ascites":
        level = rng.uniform(9, 26)  # mm of water
    elif name == "aortic aneurysm":
        centre = np.array(
            [6.0, body.spine.y - body.spine.radii[1] - 13, rng.uniform(-0.75, -0.35) * body.half]
        )
        place = "infrarenal"
    at3 = (float(centre[0]), float(centre[1]), float(centre[2]))
    return Lesion(Shown(name, side, size, place), at3, float(level), int(rng.integers(2**31)))


_Organs = dict[str, np.ndarray]


def _ball(body: Abdomen, canvas: Canvas, lesion: Lesion, organs: _Organs) -> np.ndarray:
    """A cyst, a dark lesion or a stone: nearly a ball."""
    part = canvas.ball(lesion.centre, [lesion.radius_mm] * 3, rough=bumps(lesion.seed, 0.04))
    if lesion.shown.name == "liver lesion":
        part = part.within(organs["liver"])
    mask = canvas.whole(part)
    canvas.paint(mask, lesion.level)
    return mask


def _aneurysm(body: Abdomen, canvas: Canvas, lesion: Lesion, organs: _Organs) -> np.ndarray:
    """A wide stretch of the aorta with clot along its wall; pushed forward off the spine."""
    r = lesion.radius_mm
    centre = np.array(lesion.centre) - np.array([0, r - 10.5, 0])
    sac = canvas.ball(centre, [r, r, 1.7 * r])
    canvas.paint(sac, 38.0)
    canvas.paint(
        canvas.ball(centre + np.array([0, 0.1 * r, 0]), [0.7 * r, 0.7 * r, 1.5 * r]),
        body.person.blood_hu,
    )
    return canvas.whole(sac)


_PAINT: dict[str, Callable[[Abdomen, Canvas, Lesion, _Organs], np.ndarray]] = {
    "liver lesion": _ball,
    "renal cyst": _ball,
    "kidney stone": _ball,
    "aortic aneurysm": _aneurysm,
}
