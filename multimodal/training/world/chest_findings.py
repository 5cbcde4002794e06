"""What can be wrong with a chest: drawn at random for a person, then painted with its exact mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from multimodal.training.world.body import Masks, bumps, clump, united
from multimodal.training.world.canvas import Canvas
from multimodal.training.world.chest import Chest
from multimodal.training.world.findings import Key, Lesion, Shown, random_size

_FIRST_LEVEL = 7  # vertebra 0 is T7


def random_lesion(chest: Chest, key: Key, rng: np.random.Generator) -> Lesion:
    """The numbers of one finding in this person."""
    name, side = key
    sign = -1 if side == "right" else 1
    size = random_size(name, rng)
    seed = int(rng.integers(2**31))
    centre, place, level = np.zeros(3), None, 0.0
    if name in ("nodule", "mass", "consolidation", "ground-glass opacity"):
        reach = 0.70 if name == "mass" else 0.86 if name == "nodule" else 0.74
        centre = chest.inside_lung(rng, sign, reach)
        place = chest.lung(sign).lobe(centre)
        level = rng.uniform(5, 80)
        if name == "ground-glass opacity":
            level = rng.uniform(170, 380)  # added to the lung
    elif name == "pleural effusion":
        level = rng.uniform(0.16, 0.6)
    elif name == "pneumothorax":
        level = rng.uniform(0.66, 0.90)
    elif name == "rib lesion":
        centre, place = _on_a_rib(chest, rng, sign)
        level = 30.0 if rng.random() < 0.6 else 800.0
    elif name == "vertebral lesion":
        number = int(rng.integers(-4, 4))
        spine = chest.spine
        centre = np.array([rng.uniform(-7, 7), spine.y + rng.uniform(-3, 5), spine.middle(number)])
        place = f"T{_FIRST_LEVEL - number}"
        level = 25.0 if rng.random() < 0.6 else 850.0
    elif name == "pericardial effusion":
        level = rng.uniform(9, 26)  # mm of fluid
    elif name == "aortic calcification":
        level = rng.uniform(500, 1000)
    at = (float(centre[0]), float(centre[1]), float(centre[2]))
    return Lesion(Shown(name, side, size, place), at, float(level), seed)


def _on_a_rib(chest: Chest, rng: np.random.Generator, sign: int) -> tuple[np.ndarray, str]:
    wide, deep = chest.cage
    while True:
        angle = rng.uniform(-0.9, 1.25)
        z = rng.uniform(-0.6, 0.35) * chest.half
        t = float(chest.taper(np.array([z]))[0])
        r = (np.abs(np.cos(angle)) ** 2.4 + np.abs(np.sin(angle)) ** 2.4) ** (-1 / 2.4)
        x, y = sign * r * np.cos(angle) * (wide * t + 4), r * np.sin(angle) * (deep * t + 4)
        phase = float(chest.rib_phase(np.array(x), np.array(y), np.array(z)))
        if abs(phase - round(phase)) < 0.05:
            place = "posterior" if angle > 0.55 else "anterior" if angle < -0.35 else "lateral"
            return np.array([x, y, z]), place


@dataclass(frozen=True)
class _Drawing:
    """What a painter is given."""

    chest: Chest
    canvas: Canvas
    lungs: dict[str, np.ndarray]
    organs: dict[str, np.ndarray]


def draw_findings(
    chest: Chest, canvas: Canvas, lungs: dict[str, np.ndarray], organs: dict[str, np.ndarray]
) -> Masks:
    """Paint every lesion; returns its mask by (name, side)."""
    drawing = _Drawing(chest, canvas, lungs, organs)
    return united((x.key, _PAINT[x.shown.name](drawing, x)) for x in chest.lesions)


def _lung_of(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    return drawing.lungs["right" if lesion.sign < 0 else "left"]


def _round(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    """A nodule: nearly a ball; a mass: bumpy, with spikes into the lung."""
    canvas, rng = drawing.canvas, np.random.default_rng(lesion.seed)
    stretch = np.exp(rng.uniform(-0.1, 0.1, 3))
    radii = lesion.radius_mm * stretch / np.prod(stretch) ** (1 / 3)
    centre = np.array(lesion.centre)
    if lesion.shown.name == "mass":
        for _ in range(14):
            way = rng.standard_normal(3)
            tip = centre + way / np.linalg.norm(way) * radii * rng.uniform(1.15, 1.5)
            canvas.paint(
                canvas.rod(centre, tip, (3.0, 0.7)).within(_lung_of(drawing, lesion)), -80.0
            )
    part = canvas.ball(centre, radii, rough=bumps(lesion.seed, 0.06))
    mask = canvas.whole(part.within(_lung_of(drawing, lesion)))
    canvas.paint(mask, lesion.level)
    return mask


def _airspace(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    """Consolidation replaces the air but for the bronchi, ground glass only veils the lung."""
    canvas, rng = drawing.canvas, np.random.default_rng(lesion.seed)
    radii = rng.uniform(20, 42, 3)
    parts = clump(canvas, np.array(lesion.centre), radii, lesion.seed)
    mask = canvas.whole(*parts) & _lung_of(drawing, lesion)
    if lesion.shown.name == "consolidation":
        bronchi = mask & (canvas.hu < -930)
        canvas.paint(mask & ~bronchi, lesion.level - 30)
        canvas.add(mask, 45 * canvas.texture(rng, 8.0))
    else:
        lung = mask & (canvas.hu < -600)
        canvas.add(lung, lesion.level * (1 + 0.2 * canvas.texture(rng, 10.0)))
    return mask


def _effusion(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    """Fluid gathers where gravity pulls it, lowest at the base, its edge curved."""
    canvas, chest = drawing.canvas, drawing.chest
    lung, up = chest.lung(lesion.sign), canvas.up
    deep = lung.radii[1]
    edge = deep * (1 - 1.25 * lesion.level)
    curve = 0.10 * (canvas.px - lung.centre[0]) ** 2 / lung.radii[0]
    rise = 0.32 * (canvas.z + 0.55 * chest.half)[:, None, None]
    mask = _lung_of(drawing, lesion) & (up * canvas.py[None] > edge - curve[None] + rise)
    canvas.paint(mask, 8.0 + 0.4 * (lesion.seed % 40))
    return mask


def _pneumothorax(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    """Air lies on top; the lung shrinks to the hilum, bounded by a thin line."""
    canvas, chest = drawing.canvas, drawing.chest
    lung, up = chest.lung(lesion.sign), canvas.up
    whole = _lung_of(drawing, lesion)
    at = np.array(
        [lesion.sign * 0.45 * chest.cage[0], up * (1 - lesion.level) * lung.radii[1], -8.0]
    )
    radii = np.array([0.62 * chest.cage[0], 1.05 * lung.radii[1], 1.1 * chest.half]) * lesion.level
    inner = canvas.whole(canvas.ball(at, radii))
    core = canvas.whole(canvas.ball(at, radii - 1.6))
    top = whole & (up * canvas.py < 0.5 * lung.radii[1])[None]
    mask = top & ~inner
    canvas.paint(mask, -1000.0)
    canvas.paint(top & inner & ~core, -300.0)
    return mask


def _bone(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    """A hole in the bone, or a dense spot."""
    canvas = drawing.canvas
    long = (
        np.array([1.0, 1.0, 0.8])
        if lesion.shown.name == "vertebral lesion"
        else np.array([0.8, 0.8, 1.1])
    )
    radii = lesion.radius_mm * long / np.prod(long) ** (1 / 3)
    part = canvas.ball(np.array(lesion.centre), radii, rough=bumps(lesion.seed, 0.08))
    inside = canvas.whole(part)
    for lung in drawing.lungs.values():  # a rib's may bulge inwards
        lung &= ~inside
    canvas.paint(inside, lesion.level)
    return inside


def _heart(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    return drawing.organs["heart"]


def _pericardial(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    """Fluid around the heart inside its sac, thicker where it sinks to."""
    canvas = drawing.canvas
    centre, radii, turn = drawing.chest.heart()
    sunk = centre + np.array([0, canvas.up * 0.3 * lesion.level, -0.2 * lesion.level])
    outer = canvas.ball(sunk, radii + 5 + lesion.level, turn)
    wall = canvas.ball(sunk, radii + 7 + lesion.level, turn)
    inner = canvas.whole(canvas.ball(centre, radii + 4, turn))
    clear = (
        ~drawing.organs["aorta"] & (canvas.column((0, drawing.chest.spine.y), (18, 15)) >= 1)[None]
    )
    canvas.paint(wall.without(inner).within(clear), 30.0)
    fluid = canvas.whole(outer.without(inner).within(clear))
    fluid &= (canvas.z > drawing.chest.lung(1).dome[0] + 0.3 * drawing.chest.half)[:, None, None]
    canvas.paint(fluid, 9.0)
    for lung in drawing.lungs.values():
        lung &= ~canvas.whole(wall)
    return fluid


def _plaques(drawing: _Drawing, lesion: Lesion) -> np.ndarray:
    """Bright plates on the wall of arch and descending aorta."""
    canvas, chest = drawing.canvas, drawing.chest
    rng = np.random.default_rng(lesion.seed)
    deep, h, r = chest.cage[1], chest.half, 0.82 * chest.aorta_radius
    parts = []
    for _ in range(int(rng.integers(4, 9))):
        angle, z = rng.uniform(0, 2 * np.pi), rng.uniform(-0.9, 0.3) * h
        t = (0.32 * h - z) / (0.52 * h)
        middle = np.array(
            [22 - 2 * min(t, 1.0) - 4 * max(t - 1, 0), (0.36 + 0.06 * min(t, 1)) * deep]
        )
        at = np.array([middle[0] + r * np.cos(angle), middle[1] + r * np.sin(angle), z])
        size = rng.uniform(0.8, 1.6) * np.array([4.0, 4.0, 7.0])
        parts.append(canvas.ball(at, size))
    near = canvas.everywhere()
    shell = canvas.whole(*parts) & drawing.organs["aorta"]
    near |= shell
    canvas.paint(near, lesion.level)
    return near


_PAINT: dict[str, Callable[[_Drawing, Lesion], np.ndarray]] = {
    "nodule": _round,
    "mass": _round,
    "consolidation": _airspace,
    "ground-glass opacity": _airspace,
    "pleural effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "rib lesion": _bone,
    "vertebral lesion": _bone,
    "cardiomegaly": _heart,
    "pericardial effusion": _pericardial,
    "aortic calcification": _plaques,
}
