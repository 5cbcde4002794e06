"""A chest: wall, ribs, lungs with their vessels and airways, heart, great vessels, upper abdomen.

One random person's anatomy as numbers, and how it is drawn. What is wrong with it is drawn by
`chest_findings`, which is handed the masks of the organs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from multimodal.training.world.body import (
    FAT,
    Masks,
    Person,
    Spine,
    draw_trunk,
    random_person,
    smooth_step,
)
from multimodal.training.world.canvas import Canvas
from multimodal.training.world.findings import Key, Lesion, Region

HALF = 140.0  # mm from the middle of the lungs to their apex, of a body of usual size


@dataclass(frozen=True)
class Lung:
    """One lung: its side (-1 right), and the dome of the diaphragm under it."""

    sign: int
    centre: np.ndarray
    radii: np.ndarray
    dome: tuple[float, float]  # height of its edge, and how far it rises

    def lobe(self, point: np.ndarray) -> str:
        """Which lobe a point lies in, by the planes of the fissures."""
        if point[2] < self.oblique(np.asarray(point[1])):
            return "lower lobe"
        if self.sign < 0 and point[2] < 0.04 * self.radii[2]:
            return "middle lobe"
        return "upper lobe"

    def oblique(self, y: np.ndarray) -> np.ndarray:
        """Height of the oblique fissure: high at the back, down to the front."""
        return 0.05 * self.radii[2] + 0.85 * (y - self.centre[1])


@dataclass(frozen=True)
class Chest:
    """A person's chest and what is wrong with it."""

    person: Person
    half: float
    heart_ratio: float
    lung_hu: float
    bone_hu: float
    aorta_radius: float
    lesions: tuple[Lesion, ...] = ()
    region: Region = field(default="chest", init=False)

    @property
    def field_mm(self) -> tuple[float, float]:
        """Everything but the tips of wide shoulders is in the field."""
        return self.person.trunk_field_mm

    @property
    def length_mm(self) -> tuple[float, float]:
        """From the kidneys' upper poles to above the lungs."""
        return -1.22 * self.half, 1.12 * self.half

    @property
    def cage(self) -> tuple[float, float]:
        """Half width and depth of the inside of the ribs at their widest."""
        return self.person.width - 18, self.person.depth - 17

    @property
    def spine(self) -> Spine:
        """Thoracic; vertebra 0 stands at the middle of the lungs and is called T7."""
        return Spine(0.62 * self.cage[1], (17.0, 14.0), 0.165 * self.half, -6.0)

    def lung(self, sign: int) -> Lung:
        """Right is -1."""
        wide, deep = self.cage
        rise = 0.42 if sign < 0 else 0.34
        return Lung(
            sign, np.array([sign * 0.54 * wide, 0.0, 0.0]),
            np.array([0.44 * wide, 0.92 * deep, self.half]), (-1.02 * self.half, rise * self.half),
        )  # fmt: skip

    def taper(self, z: np.ndarray) -> np.ndarray:
        """The cage narrows to the apex of the lungs."""
        t = np.clip((z - 0.1 * self.half) / (0.93 * self.half), 0, 1)
        return np.sqrt(np.clip(1 - t**2.2, 0.02, 1))

    def inside_lung(self, rng: np.random.Generator, sign: int, reach: float) -> np.ndarray:
        """A random point in a lung, off heart, spine and diaphragm."""
        lung = self.lung(sign)
        while True:
            u = rng.uniform(-1, 1, 3)
            point = lung.centre + u * lung.radii * reach
            narrow = np.array([self.taper(point[2:3])[0], self.taper(point[2:3])[0], 1.0])
            inside = (
                np.sum(((point - np.array([0, 0, 0])) / ([*self.cage, self.half] * narrow)) ** 2)
                < reach**2
            )
            medial = sign * point[0] < 0.30 * self.cage[0]
            low = point[2] < lung.dome[0] + lung.dome[1] * (1.25 - 0.9 * (u[0] ** 2 + u[1] ** 2))
            at_heart = point[2] < 0.1 * self.half and point[1] < 0.1 * self.cage[1]
            if (
                inside
                and not medial
                and not low
                and not (at_heart and sign * point[0] < 0.62 * self.cage[0])
            ):
                return point

    def draw(self, canvas: Canvas) -> Masks:
        """Draw everything."""
        from multimodal.training.world.chest_findings import draw_findings

        rng = np.random.default_rng(self.person.seed)
        wider = 1 + 0.16 * smooth_step(canvas.z, 0.55 * self.half, 1.0 * self.half)
        draw_trunk(self.person, canvas, wider)
        if self.person.female:
            self._breasts(canvas)
        self._girdle(canvas)
        cage = self._ribs(canvas)
        lungs = self._lungs(canvas, cage, rng)
        self._below(canvas, cage, lungs)
        self.spine.draw(canvas, self.bone_hu)
        for mask in lungs.values():
            mask &= canvas.column((0, self.spine.y), (19, 16)) >= 1
        self._branches(canvas, lungs, rng)
        organs = self._mediastinum(canvas, rng)
        for mask in lungs.values():
            mask &= ~organs["middle"]
        return draw_findings(self, canvas, lungs, organs)

    def _breasts(self, canvas: Canvas) -> None:
        front = -(self.person.depth + 0.6 * self.person.fat) * 0.86
        size = 34 + 0.9 * self.person.fat
        outside = canvas.hu <= -999
        for sign in (-1, 1):
            at = np.array([sign * 0.48 * self.person.width, front, -0.25 * self.half])
            canvas.paint(canvas.ball(at, np.array([1.5, 0.9, 1.4]) * size).within(outside), FAT)
            canvas.add(canvas.ball(at + np.array([0, -0.2 * size, 0]), np.array([0.8, 0.45, 0.8]) * size,
                       rough=np.full((2, 2, 2), -0.2, np.float32)).within(outside), 90.0)  # fmt: skip

    def _girdle(self, canvas: Canvas) -> None:
        """Shoulder blades, collar bones, back muscles' fat planes, breast bone."""
        wide, deep = self.cage
        for sign in (-1, 1):
            inner = np.array([sign * 0.50 * wide, 1.06 * deep, 0.1 * self.half])
            outer = np.array([sign * 0.98 * wide, 0.70 * deep, 0.75 * self.half])
            canvas.paint(canvas.rod(inner, outer, (4.0, 6.0)), self.bone_hu + 240)
            middle = np.array([sign * 14.0, -0.62 * deep, 0.78 * self.half])
            tip = np.array([sign * 1.02 * wide, -0.10 * deep, 1.02 * self.half])
            canvas.paint(canvas.rod(middle, tip, (7.0, 6.0)), self.bone_hu + 260)
        bone = canvas.column((0, -1.02 * deep), (17, 6)) < 1
        rows = (canvas.z > -0.35 * self.half) & (canvas.z < 0.72 * self.half)
        canvas.stand(bone, self.bone_hu + 60, rows)

    def _ribs(self, canvas: Canvas) -> np.ndarray:
        """Twelve slanting bows on the cage; returns the mask of what is inside."""
        wide, deep = self.cage
        t = self.taper(canvas.z)
        inside = canvas.trunk(wide * t, deep * t)
        outside = canvas.trunk(wide * t + 7.5, deep * t + 7.5)
        ring = outside & ~inside
        fat = canvas.trunk(wide * t + 2, deep * t + 2) & ~inside
        canvas.paint(fat, -70.0)
        z, y, x = np.nonzero(ring)
        phase = self.rib_phase(canvas.px[y, x], canvas.py[y, x], canvas.z[z])
        off = np.abs(phase - np.round(phase))
        below = canvas.z[z] < 0.92 * self.half
        gristle = (canvas.py[y, x] < -0.72 * deep) & (np.abs(canvas.px[y, x]) < 0.5 * wide)
        hit = (off < 0.23) & below
        hu = np.where(off < 0.14, self.bone_hu + 40, self.bone_hu + 330)
        canvas.hu[z[hit], y[hit], x[hit]] = np.where(gristle, 110.0, hu)[hit]
        return inside

    def rib_phase(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """A whole number on the middle of a rib; ribs run down to the front."""
        return (z + 30.0 * np.arctan2(-y, np.abs(x)) + 4.0) / (0.172 * self.half)

    def _lungs(
        self, canvas: Canvas, cage: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Both lungs, darker at the front; fissures as thin lines."""
        wide, deep = self.cage
        middle = canvas.column((0, -0.1 * deep), (0.17 * wide, 1.25 * deep), 3.0) < 1
        value = self.lung_hu + 0.35 * canvas.up * canvas.py + 14.0 * canvas.texture(rng, 14.0)
        z, thick = canvas.z[:, None, None], canvas.scan.spacing_mm[0]
        masks = {}
        for side, sign in (("right", -1), ("left", 1)):
            lung = self.lung(sign)
            bow = 1 - ((canvas.px - lung.centre[0]) / (1.2 * lung.radii[0])) ** 2
            bow -= (canvas.py / (1.1 * lung.radii[1])) ** 2
            dome = (lung.dome[0] + lung.dome[1] * bow).astype(np.float32)
            flat = (sign * canvas.px > 0) & ~middle
            mask = cage & flat & (z > dome)
            np.copyto(canvas.hu, value, where=mask)
            if thick < 3.0:
                oblique = lung.oblique(canvas.py) + 5 * np.sin(canvas.px / 40)
                line = np.abs(z - oblique.astype(np.float32)) < max(0.9, 0.5 * thick)
                canvas.add(line & mask, 110.0)
            masks[side] = mask
        return masks

    def _below(self, canvas: Canvas, cage: np.ndarray, lungs: dict[str, np.ndarray]) -> None:
        """Liver under the right dome, stomach and spleen under the left, fat between."""
        wide, deep = self.cage
        contrast = self.person.contrast
        under = (
            cage & ~lungs["right"] & ~lungs["left"] & (canvas.z < -0.25 * self.half)[:, None, None]
        )
        narrow = canvas.column((0, 0), (wide - 3, deep - 3), 2.4) < 1
        under &= narrow
        canvas.paint(under, FAT)
        liver = under & ((canvas.px < 0.10 * wide) & (canvas.py < 0.78 * deep))[None]
        canvas.paint(liver, 56 + 45 * contrast)
        left = canvas.ball(
            [0.52 * wide, -0.22 * deep, -1.0 * self.half], [0.34 * wide, 0.4 * deep, 58]
        )
        canvas.paint(left.within(under), 30.0)
        air = canvas.ball(
            [0.52 * wide, -canvas.up * 0.38 * deep - 0.1 * deep, -0.95 * self.half],
            [0.26 * wide, 0.2 * deep, 40],
        )
        canvas.paint(air.within(under), -980.0)
        spleen = canvas.ball(
            [0.74 * wide, 0.38 * deep, -1.0 * self.half], [0.18 * wide, 0.36 * deep, 50], turn=0.5
        )
        canvas.paint(spleen.within(under), 48 + 60 * contrast)

    def _branches(
        self, canvas: Canvas, lungs: dict[str, np.ndarray], rng: np.random.Generator
    ) -> None:
        """Vessels that fork and thin from the hilum on, and the first airways beside them."""
        blood = self.person.blood_hu
        for side, sign in (("right", -1), ("left", 1)):
            for start, stop, radius, depth in self._tree(rng, sign):
                value = blood - 25 * depth if radius > 1.2 else -250.0
                canvas.paint(
                    canvas.rod(start, stop, (radius, 0.8 * radius)).within(lungs[side]), value
                )
                if depth < 2:
                    beside = np.array([sign * 2.0, radius + 2.5, 0.0])
                    way = canvas.rod(start + beside, stop + beside, (0.75 * radius, 0.6 * radius))
                    canvas.paint(
                        canvas.rod(
                            start + beside, stop + beside, (0.75 * radius + 1.2, 0.6 * radius + 1)
                        ),
                        20.0,
                    )
                    canvas.paint(way, -950.0)

    def _tree(
        self, rng: np.random.Generator, sign: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, float, int]]:
        """Branches as (start, stop, radius, generation)."""
        lung = self.lung(sign)
        hilum = np.array([sign * 0.26 * self.cage[0], 0.05 * self.cage[1], -0.04 * self.half])
        ways = [(hilum, np.array([sign * u, v, w]), 5.5, 0)
                for u, v, w in ((0.5, -0.5, 0.7), (0.5, 0.5, 0.6), (0.9, -0.4, -0.1), (0.4, 0.6, -0.8), (0.6, 0.1, -0.7))]  # fmt: skip
        while ways:
            start, way, radius, depth = ways.pop()
            way = way / np.linalg.norm(way)
            stop = start + way * lung.radii * np.array(
                [0.42, 0.26, 0.28]
            ) * 0.84**depth * rng.uniform(0.8, 1.2)
            yield start, stop, radius, depth
            if depth < 5:
                for turn in (-1, 1):
                    bend = turn * np.array(
                        [rng.normal(0, 0.5), rng.normal(0, 0.5), rng.normal(0, 0.5)]
                    )
                    ways.append((stop, way + bend, radius * rng.uniform(0.62, 0.76), depth + 1))

    def _mediastinum(self, canvas: Canvas, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Fat, heart in its sac, aorta, pulmonary trunk, veins, gullet and windpipe."""
        deep = self.cage[1]
        blood, h = self.person.blood_hu, self.half
        centre, radii, turn = self.heart()
        sac = canvas.ball(centre, radii + 5, turn)
        canvas.paint(canvas.ball(centre, radii + 7, turn), 25.0)
        canvas.paint(sac, FAT + 10)
        muscle = canvas.ball(centre, radii, turn)
        canvas.paint(muscle, 48 + 0.35 * (blood - 48))
        for at, size in (((0.30, -0.10, -0.1), 0.50), ((-0.45, -0.30, 0.0), 0.44),
                         ((-0.55, 0.25, 0.3), 0.40), ((0.0, 0.55, 0.35), 0.42)):  # fmt: skip
            canvas.paint(canvas.ball(centre + radii * at, radii * size, turn), blood)
        r = self.aorta_radius
        rising = np.array(
            [
                [-6, -0.22 * deep, -0.02 * h],
                [-14, -0.26 * deep, 0.18 * h],
                [-10, -0.18 * deep, 0.36 * h],
            ]
        )
        arch = np.array(
            [
                [-10, -0.18 * deep, 0.36 * h],
                [2, 0.0, 0.43 * h],
                [16, 0.22 * deep, 0.40 * h],
                [22, 0.36 * deep, 0.32 * h],
            ]
        )
        falling = np.array(
            [[22, 0.36 * deep, 0.32 * h], [20, 0.42 * deep, -0.2 * h], [12, 0.44 * deep, -1.3 * h]]
        )
        aorta = canvas.tube(np.concatenate([rising, arch[1:]]), r) | canvas.tube(falling, 0.82 * r)
        trunk = canvas.tube(
            np.array(
                [[8, -0.30 * deep, 0.02 * h], [12, -0.14 * deep, 0.16 * h], [-28, 0.02, 0.14 * h]]
            ),
            12.0,
        )
        trunk |= canvas.tube(np.array([[12, -0.14 * deep, 0.16 * h], [32, 0.02, 0.17 * h]]), 10.0)
        vein = canvas.tube(
            np.array([[-26, -0.16 * deep, 0.02 * h], [-27, -0.16 * deep, 0.75 * h]]), 9.0
        )
        neck = [canvas.tube(np.array([[x, y * deep, 0.42 * h], [1.7 * x, (y - 0.1) * deep, 1.15 * h]]), 4.5)
                for x, y in ((-12, -0.12), (4, 0.0), (13, 0.14))]  # fmt: skip
        for vessel in (aorta, trunk, vein, *neck):
            canvas.paint(vessel, blood)
        gullet = canvas.tube(
            np.array([[3, 0.42 * deep, -1.1 * h], [2, 0.36 * deep, 1.15 * h]]), 7.0
        )
        canvas.paint(gullet & ~aorta, 42.0)
        fork = np.array([0, 0.12 * deep, 0.22 * h])
        pipe = [fork, np.array([-2, 0.10 * deep, 1.15 * h])]
        mains = [(fork, fork + np.array([s * 38, 0.02 * deep, -22.0])) for s in (-1, 1)]
        for wall, value in ((2.0, 45.0), (0.0, -985.0)):
            canvas.paint(canvas.tube(np.array(pipe), 8.5 + wall), value)
            for start, stop in mains:
                canvas.paint(canvas.rod(start, stop, (7 + wall, 5.5 + wall)), value)
        middle = canvas.whole(canvas.ball(centre, radii + 7, turn)) | aorta | trunk | vein
        return {"middle": middle, "heart": canvas.whole(muscle), "aorta": aorta}

    def heart(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Centre, radii and turn: the apex points to the left and front."""
        wide, deep = self.cage
        long = self.heart_ratio * wide * 1.06
        centre = np.array([0.30 * long, -0.24 * deep, -0.30 * self.half])
        return centre, np.array([long, 0.62 * long, 0.27 * self.half + 0.30 * long]), -0.45


def random_chest(rng: np.random.Generator, keys: list[Key]) -> Chest:
    """A chest at random with the findings of `keys`."""
    from multimodal.training.world.chest_findings import random_lesion

    person = random_person(rng)
    large = ("cardiomegaly", None) in keys
    chest = Chest(
        person, HALF * person.width / 160 * rng.uniform(0.95, 1.08),
        rng.uniform(0.57, 0.68) if large else rng.uniform(0.40, 0.49),
        rng.uniform(-890, -810), rng.uniform(110, 240), rng.uniform(12.5, 16.5),
    )  # fmt: skip
    return replace(chest, lesions=tuple(random_lesion(chest, key, rng) for key in keys))
