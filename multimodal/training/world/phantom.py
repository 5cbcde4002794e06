"""Random chest-CT phantoms in Hounsfield units, drawn from shapes in patient millimetres.

Axes are LPS: +x patient left, +y posterior, +z head. A `Phantom` is a handful of numbers; `render`
draws it on any grid, with the exact mask of every finding. Anatomy is schematic: body wall, lungs,
heart, aorta, spine, ribs, liver dome, vessels, table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from multimodal.prompts import NamedFinding, Side, sided_keys

# (name, has sides); the order is that of the finding head's channels
FINDINGS: tuple[tuple[str, bool], ...] = (
    ("nodule", True),
    ("consolidation", True),
    ("pleural effusion", True),
    ("pneumothorax", True),
    ("cardiomegaly", False),
    ("aortic calcification", False),
)
Key = tuple[str, Side | None]
_SIDES: tuple[tuple[Side, int], ...] = (("right", -1), ("left", 1))


@dataclass(frozen=True)
class Lesion:
    """A finding and the numbers that draw it: centre and radii in mm, `level` in HU or a share."""

    name: str
    side: Side | None
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radii: tuple[float, float, float] = (0.0, 0.0, 0.0)
    level: float = 0.0
    seed: int = 0

    @property
    def named(self) -> NamedFinding:
        """As a model would name it; only nodules state a size (the mean diameter)."""
        size = float(round(2 * float(np.mean(self.radii)))) if self.name == "nodule" else None
        return NamedFinding(self.name, self.side, size)


@dataclass(frozen=True)
class Phantom:
    """One random person and what is wrong with them. Lengths in mm, densities in HU."""

    half_width: float
    half_depth: float
    half_height: float
    lung_scale: float
    lung_hu: float
    heart_ratio: float
    blood_hu: float
    shift: tuple[float, float]
    tilt: float
    fov_mm: float
    noise_hu: float
    vessels: np.ndarray = field(repr=False)  # [k, 5]: x, y, z, radius, HU
    lesions: tuple[Lesion, ...] = ()

    @property
    def truth(self) -> list[NamedFinding]:
        """The findings, in the order of `FINDINGS`, right before left."""
        order = [name for name, _ in FINDINGS]
        named = [lesion.named for lesion in self.lesions]
        return sorted(named, key=lambda f: (order.index(f.name), f.side != "right"))


@dataclass(frozen=True)
class Rendered:
    """A drawn phantom: int16 HU `[z, y, x]`, masks per finding, affine (slice,row,column) -> LPS."""

    voxels: np.ndarray
    masks: dict[Key, np.ndarray]
    affine: np.ndarray


def random_phantom(rng: np.random.Generator, lesions: list[Key] | None = None) -> Phantom:
    """A person drawn at random; `lesions` fixes which findings, else 0 to 4 of them."""
    wanted = _random_keys(rng) if lesions is None else lesions
    body = Phantom(
        half_width=rng.uniform(150, 190), half_depth=rng.uniform(100, 130),
        half_height=rng.uniform(105, 135), lung_scale=rng.uniform(0.92, 1.05),
        lung_hu=rng.uniform(-880, -800),
        heart_ratio=rng.uniform(0.58, 0.66) if ("cardiomegaly", None) in wanted
        else rng.uniform(0.40, 0.49),
        blood_hu=rng.uniform(35, 50) if rng.random() < 0.5 else rng.uniform(120, 250),
        shift=(rng.uniform(-10, 10), rng.uniform(-10, 10)), tilt=rng.uniform(-0.07, 0.07),
        fov_mm=rng.uniform(350, 410), noise_hu=rng.uniform(8, 35), vessels=np.zeros((0, 5)),
    )  # fmt: skip
    vessels = _random_vessels(rng, body)
    drawn = tuple(_random_lesion(rng, body, key) for key in wanted)
    return Phantom(**{**body.__dict__, "vessels": vessels, "lesions": drawn})


def _random_keys(rng: np.random.Generator) -> list[Key]:
    keys = sided_keys(FINDINGS)
    count = rng.choice(5, p=[0.2, 0.25, 0.25, 0.2, 0.1])
    chosen = [keys[i] for i in rng.permutation(len(keys))[:count]]
    # fluid and air of one side would hide each other: keep the first of them
    kept: list[Key] = []
    for name, side in chosen:
        rival = {"pneumothorax": "pleural effusion", "pleural effusion": "pneumothorax"}.get(name)
        if (rival, side) not in kept:
            kept.append((name, side))
    return kept


def _lung(body: Phantom, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre and radii of the right (-1) or left (+1) lung's ellipsoid."""
    rx, ry = 0.40 * body.half_width * body.lung_scale, 0.72 * body.half_depth * body.lung_scale
    centre = np.array([sign * 0.46 * body.half_width, -0.02 * body.half_depth, 8.0])
    return centre, np.array([rx, ry, 0.98 * body.half_height])


def _inside_lung(rng: np.random.Generator, body: Phantom, sign: int, reach: float) -> np.ndarray:
    """A random point in the lung, away from heart and diaphragm; `reach` 0..1 of the radii."""
    centre, radii = _lung(body, sign)
    while True:
        u = rng.uniform(-1, 1, 3) * [1, 1, 0.75]
        point = centre + u * radii * reach
        medial = sign * point[0] < 0.27 * body.half_width and point[1] < 0.35 * body.half_depth
        low = point[2] < -0.45 * body.half_height
        if np.sum(u**2) < 1 and not medial and not low:
            return point


def _random_vessels(rng: np.random.Generator, body: Phantom) -> np.ndarray:
    rows = []
    for sign in (-1, 1):
        for _ in range(int(rng.integers(14, 30))):
            x, y, z = _inside_lung(rng, body, sign, 0.9)
            rows.append((x, y, z, rng.uniform(1.5, 3.6), rng.uniform(-100, 60)))
    return np.array(rows)


def _random_lesion(rng: np.random.Generator, body: Phantom, key: Key) -> Lesion:
    name, side = key
    sign = -1 if side == "right" else 1
    seed = int(rng.integers(2**31))
    if name == "nodule":
        radius = rng.uniform(5.5, 15)
        point = _inside_lung(rng, body, sign, 0.72)
        radii = tuple(radius * rng.uniform(0.9, 1.1, 3))
        return Lesion(name, side, tuple(point), radii, rng.uniform(0, 90), seed)
    if name == "consolidation":
        point = _inside_lung(rng, body, sign, 0.7)
        return Lesion(
            name, side, tuple(point), tuple(rng.uniform(20, 42, 3)), rng.uniform(-60, 40), seed
        )
    if name == "pleural effusion":
        return Lesion(
            name, side, level=rng.uniform(0.25, 0.6), radii=(rng.uniform(0, 18), 0, 0), seed=seed
        )
    if name == "pneumothorax":
        return Lesion(name, side, level=rng.uniform(0.70, 0.86), seed=seed)
    if name == "aortic calcification":
        return Lesion(name, side, level=rng.uniform(450, 900), seed=seed)
    return Lesion(name, side, seed=seed)


def render(body: Phantom, shape: tuple[int, int, int], rng: np.random.Generator) -> Rendered:
    """Draw a phantom on `[slices, rows, columns]` voxels over its field of view.

    Canonical axial order: columns to patient left, rows to posterior, slices to the head.
    """
    n, rows, columns = shape
    step = np.array([2 * body.half_height / n, body.fov_mm / rows, body.fov_mm / columns])
    z = ((np.arange(n) + 0.5) * step[0] - body.half_height).astype(np.float32)
    y = ((np.arange(rows) + 0.5) * step[1] - body.fov_mm / 2).astype(np.float32)
    x = ((np.arange(columns) + 0.5) * step[2] - body.fov_mm / 2).astype(np.float32)
    c, s = np.cos(body.tilt), np.sin(body.tilt)
    x0, y0 = x[None, :] - body.shift[0], y[:, None] - body.shift[1]
    px, py = (c * x0 + s * y0).astype(np.float32), (c * y0 - s * x0).astype(np.float32)
    canvas = _Canvas(px, py, z)
    masks = _draw(body, canvas)
    voxels = canvas.hu + _noise(rng, shape, body.noise_hu)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = [0, 0, step[0]], [0, step[1], 0], [step[2], 0, 0]
    affine[:3, 3] = [x[0], y[0], z[0]]
    return Rendered(np.clip(np.round(voxels), -1024, 3071).astype(np.int16), masks, affine)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], level: float) -> np.ndarray:
    """Gaussian noise with a little in-plane correlation, as a reconstruction kernel leaves."""
    white = rng.standard_normal(shape, dtype=np.float32)
    soft = white + 0.6 * (np.roll(white, 1, 1) + np.roll(white, 1, 2))
    return soft * (level / 1.31)


class _Canvas:
    """HU on a grid, and the patient coordinates of its voxels."""

    def __init__(self, px: np.ndarray, py: np.ndarray, z: np.ndarray) -> None:
        self.px, self.py, self.z = px[None], py[None], z[:, None, None]
        self.hu = np.full((len(z), *px.shape), -1000.0, np.float32)

    def ellipse(
        self, centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0
    ) -> np.ndarray:
        """A cylinder along z as `[1, y, x]`: below 1 inside."""
        u = np.abs((self.px - centre[0]) / radii[0])
        v = np.abs((self.py - centre[1]) / radii[1])
        return u**power + v**power if power != 2.0 else u * u + v * v

    def ball(self, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """An ellipsoid as a boolean `[z, y, x]`."""
        flat = ((self.px - centre[0]) / radii[0]) ** 2 + ((self.py - centre[1]) / radii[1]) ** 2
        return flat + ((self.z - centre[2]) / radii[2]) ** 2 < 1

    def stamp(
        self, centre: np.ndarray, radii: np.ndarray, hu: float, where: np.ndarray | None
    ) -> np.ndarray:
        """Fill a small ellipsoid, working only on the slices it crosses; returns its mask."""
        mask = np.zeros(self.hu.shape, bool)
        near = np.flatnonzero(np.abs(self.z[:, 0, 0] - centre[2]) < radii[2])
        if len(near):
            part = slice(near[0], near[-1] + 1)
            flat = ((self.px - centre[0]) / radii[0]) ** 2 + ((self.py - centre[1]) / radii[1]) ** 2
            inside = flat + ((self.z[part] - centre[2]) / radii[2]) ** 2 < 1
            if where is not None:
                inside &= where[part]
            mask[part] = inside
            self.hu[part][inside] = hu
        return mask


def _draw(body: Phantom, canvas: _Canvas) -> dict[Key, np.ndarray]:
    lesions = {(lesion.name, lesion.side): lesion for lesion in body.lesions}
    masks: dict[Key, np.ndarray] = {}
    w, d = body.half_width, body.half_depth
    skin = canvas.ellipse((0, 0), (w, d), 2.5)
    canvas.hu[:] = np.where(skin < 1, -100.0, canvas.hu)
    canvas.hu[:] = np.where(canvas.ellipse((0, 0), (0.93 * w, 0.90 * d), 2.5) < 1, 45.0, canvas.hu)
    bed = (canvas.py > d + 6) & (canvas.py < d + 18) & (np.abs(canvas.px) < 190)
    canvas.hu[:] = np.where(bed, -650.0, canvas.hu)
    _ribs(body, canvas)
    lungs = {}
    for sign, side in ((-1, "right"), (1, "left")):
        lungs[side] = _draw_lung(body, canvas, sign)
    for x, y, z, radius, hu in body.vessels:
        side = "left" if x > 0 else "right"
        stretch = np.array([radius, radius, 4.0 * radius])
        canvas.stamp(np.array([x, y, z]), stretch, hu, lungs[side])
    masks |= _draw_pleura(body, canvas, lungs, lesions)
    masks |= _draw_parenchyma(canvas, lungs, lesions)
    masks |= _draw_mediastinum(body, canvas, lesions, lungs)
    return masks


def _ribs(body: Phantom, canvas: _Canvas) -> None:
    ring = canvas.ellipse((0, 0), (0.87 * body.half_width, 0.84 * body.half_depth), 2.4)
    wall = (ring < 1) & (ring > 0.86)
    angle = np.arctan2(canvas.py, np.abs(canvas.px))
    # ribs run down to the front: which angle meets bone depends on the height
    phase = (canvas.z + 28.0 * angle) / 24.0
    bone = wall & (np.abs(phase - np.round(phase)) < 0.22)
    canvas.hu[:] = np.where(bone, 420.0, canvas.hu)
    back = 0.62 * body.half_depth
    spine = canvas.ellipse((0, back), (19, 17)) < 1
    canvas.hu[:] = np.where(spine, 230.0, canvas.hu)
    arch = (canvas.ellipse((0, back + 26), (7, 16)) < 1) | (
        canvas.ellipse((0, back + 14), (30, 5)) < 1
    )
    canvas.hu[:] = np.where(arch, 350.0, canvas.hu)
    sternum = canvas.ellipse((0, -0.86 * body.half_depth), (17, 6)) < 1
    canvas.hu[:] = np.where(sternum, 250.0, canvas.hu)


def _draw_lung(body: Phantom, canvas: _Canvas, sign: int) -> np.ndarray:
    centre, radii = _lung(body, sign)
    lung = canvas.ball(centre, radii)
    lung &= canvas.ellipse((0, 0), (0.85 * body.half_width, 0.82 * body.half_depth), 2.4) < 1
    # mediastinum keeps the middle free; the diaphragm's dome closes the base
    lung &= sign * canvas.px > 0.10 * body.half_width
    top = -0.42 * body.half_height + (8.0 if sign < 0 else -4.0)
    bow = ((canvas.px - centre[0]) / radii[0]) ** 2 + ((canvas.py - centre[1]) / radii[1]) ** 2
    lung &= canvas.z > top - 45.0 * bow
    canvas.hu[:] = np.where(lung, body.lung_hu, canvas.hu)
    if sign < 0:  # liver: denser than the muscle around it
        dome = (canvas.z <= top - 45.0 * bow) & (bow < 1.0)
        canvas.hu[:] = np.where(dome, 62.0, canvas.hu)
    return lung


def _draw_pleura(
    body: Phantom, canvas: _Canvas, lungs: dict[str, np.ndarray], lesions: dict[Key, Lesion]
) -> dict[Key, np.ndarray]:
    masks: dict[Key, np.ndarray] = {}
    for side, sign in _SIDES:
        centre, radii = _lung(body, sign)
        fluid = lesions.get(("pleural effusion", side))
        if fluid is not None:  # layers at the back of the base, with a curved upper edge
            back = centre[1] + radii[1] * (1.0 - fluid.level)
            curve = 0.10 * (canvas.px - centre[0]) ** 2 / radii[0]
            rise = 0.30 * (canvas.z + 0.42 * body.half_height)
            mask = lungs[side] & (canvas.py > back - curve + rise)
            canvas.hu[mask] = fluid.radii[0]
            masks["pleural effusion", side] = mask
        air = lesions.get(("pneumothorax", side))
        if air is not None:  # the lung shrinks towards the hilum and the back
            inner_centre = centre + np.array(
                [-sign * 0.10 * radii[0], (1 - air.level) * radii[1], -6.0]
            )
            inner = canvas.ball(inner_centre, radii * air.level)
            mask = lungs[side] & ~inner & (canvas.py < centre[1] + 0.45 * radii[1])
            edge = lungs[side] & ~mask & ~canvas.ball(inner_centre, radii * air.level - 3.0)
            canvas.hu[edge & (canvas.py < centre[1] + 0.45 * radii[1])] = -250.0
            canvas.hu[mask] = -1000.0
            masks["pneumothorax", side] = mask
    return masks


def _draw_parenchyma(
    canvas: _Canvas, lungs: dict[str, np.ndarray], lesions: dict[Key, Lesion]
) -> dict[Key, np.ndarray]:
    masks: dict[Key, np.ndarray] = {}
    for side in ("right", "left"):
        patch = lesions.get(("consolidation", side))
        if patch is not None:
            rng = np.random.default_rng(patch.seed)
            mask = np.zeros_like(lungs[side])
            for _ in range(6):  # a clump of blobs has the ragged edge of airspace disease
                offset = rng.uniform(-0.45, 0.45, 3) * patch.radii
                blob = np.array(patch.radii) * rng.uniform(0.45, 0.75, 3)
                mask |= canvas.stamp(
                    np.array(patch.centre) + offset, blob, patch.level, lungs[side]
                )
            grain = rng.normal(0, 45, int(mask.sum())).astype(np.float32)
            canvas.hu[mask] += grain
            masks["consolidation", side] = mask
        nodule = lesions.get(("nodule", side))
        if nodule is not None:
            masks["nodule", side] = canvas.stamp(
                np.array(nodule.centre), np.array(nodule.radii), nodule.level, None
            )
    return masks


def _draw_mediastinum(
    body: Phantom, canvas: _Canvas, lesions: dict[Key, Lesion], lungs: dict[str, np.ndarray]
) -> dict[Key, np.ndarray]:
    masks: dict[Key, np.ndarray] = {}
    thorax = 0.85 * body.half_width
    width = body.heart_ratio * thorax
    heart_centre = np.array([0.32 * width, -0.22 * body.half_depth, -0.22 * body.half_height])
    radii = np.array(
        [width, 0.45 * body.half_depth + 0.12 * width, 0.30 * body.half_height + 0.25 * width]
    )
    heart = canvas.ball(heart_centre, radii)
    heart &= canvas.ellipse((0, 0), (thorax, 0.80 * body.half_depth), 2.4) < 1
    canvas.hu[:] = np.where(heart, body.blood_hu, canvas.hu)
    if ("cardiomegaly", None) in lesions:
        masks["cardiomegaly", None] = heart
    trachea = (canvas.ellipse((0, -0.02 * body.half_depth), (9, 9)) < 1) & (canvas.z > 25)
    canvas.hu[:] = np.where(trachea, -1000.0, canvas.hu)
    # descending aorta left of the spine, ascending aorta right of the midline, the arch above
    down = canvas.ellipse((24, 0.34 * body.half_depth), (13, 13))
    up = canvas.ellipse((-12, -0.30 * body.half_depth), (15, 15))
    arch = (np.abs(canvas.z - 52) < 9) & (canvas.ellipse((8, 0.03 * body.half_depth), (24, 36)) < 1)
    arch &= ~trachea
    aorta_down = (down < 1) & (canvas.z < 52)
    aorta = aorta_down | ((up < 1) & (canvas.z > 0) & (canvas.z < 52)) | arch
    canvas.hu[:] = np.where(aorta, body.blood_hu + 5, canvas.hu)
    plaques = lesions.get(("aortic calcification", None))
    if plaques is not None:
        rng = np.random.default_rng(plaques.seed)
        mask = np.zeros(canvas.hu.shape, bool)
        for _ in range(int(rng.integers(3, 6))):
            turn, height = rng.uniform(0, 2 * np.pi), rng.uniform(-0.7 * body.half_height, 45)
            at = np.array(
                [24 + 12 * np.cos(turn), 0.34 * body.half_depth + 12 * np.sin(turn), height]
            )
            mask |= canvas.stamp(
                at, np.array([4.5, 4.5, 11.0]) * rng.uniform(0.8, 1.4), plaques.level, None
            )
        masks["aortic calcification", None] = mask
    return masks
