"""The worlds a checkpoint may be trained in and measured on, each under the name its card states.

"phantom" is that of the first checkpoint: six findings in schematic chests, plain English. "body"
has three regions, twenty findings, scans as scanners make them, and two languages. In: a random
generator. Out: a `Drawn` study with its truth; what may be said of it is its vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multimodal.prompts import NamedFinding
from multimodal.training.world import phantom
from multimodal.training.world.abdomen import random_abdomen
from multimodal.training.world.body import Body
from multimodal.training.world.canvas import Canvas
from multimodal.training.world.chest import random_chest
from multimodal.training.world.findings import KINDS, REGIONS, Key, Region, random_keys, several
from multimodal.training.world.head import random_head
from multimodal.training.world.phantom import Rendered, random_phantom
from multimodal.training.world.reports import PHANTOM, Vocabulary
from multimodal.training.world.scan import Scan, finish, random_scan

Shape = tuple[int, int, int]
PHANTOM_SHAPES = ((32, 192, 192), (40, 224, 224), (48, 256, 256))  # slices, rows, columns


@dataclass(frozen=True)
class Drawn:
    """A study: what it shows, what may be said of it, its voxels and masks, and how it was scanned.

    `scan` is None where the volume is stored as it was drawn.
    """

    truth: list[NamedFinding]
    vocabulary: Vocabulary
    rendered: Rendered
    scan: Scan | None = None


@dataclass(frozen=True)
class World:
    """A source of studies without end.

    Attributes:
        name: as cards and recipes state it.
        findings: (name, has sides), the channels of a finding head.
        vocabularies: one for each kind of study.
        draw: a random study, drawn that many times coarser than scanned, and crowded with findings
            if the last argument says so.
        truth: what a random study shows, undrawn.
        chest: a chest in so many slices, rows and columns, with certain findings or random ones.
    """

    name: str
    findings: tuple[tuple[str, bool], ...]
    vocabularies: Sequence[Vocabulary]
    draw: Callable[[np.random.Generator, float, bool], Drawn]
    truth: Callable[[np.random.Generator], tuple[list[NamedFinding], Vocabulary]]
    chest: Callable[[np.random.Generator, Shape, list[Key] | None], Drawn]


def _phantom(rng: np.random.Generator, _coarser: float, _crowded: bool) -> Drawn:
    body = random_phantom(rng)
    shape = PHANTOM_SHAPES[rng.integers(len(PHANTOM_SHAPES))]
    return Drawn(body.truth, PHANTOM, phantom.render(body, shape, rng))


def _phantom_truth(rng: np.random.Generator) -> tuple[list[NamedFinding], Vocabulary]:
    return random_phantom(rng).truth, PHANTOM


def _phantom_chest(rng: np.random.Generator, shape: Shape, keys: list[Key] | None) -> Drawn:
    body = random_phantom(rng, keys)
    return Drawn(body.truth, PHANTOM, phantom.render(body, shape, rng))


_MAKE: Mapping[Region, Callable[[np.random.Generator, list[Key]], Body]] = {
    "chest": random_chest,
    "head": random_head,
    "abdomen": random_abdomen,
}
_SHARES, _CROWDED = (0.6, 0.2, 0.2), (0.5, 0.15, 0.35)
VOCABULARIES: dict[Region, Vocabulary] = {
    region: Vocabulary(
        tuple((k.name, k.sided) for k in KINDS if k.region == region),
        {k.name: k.size_mm for k in KINDS if k.region == region and k.size_mm is not None},
        {k.name: k.weight for k in KINDS if k.region == region},
        ("en", "zh"),
        rich=True,
        region=region,
        elsewhere=tuple((k.name, k.sided) for k in KINDS if k.region != region),
    )
    for region in REGIONS
}


def random_body(
    rng: np.random.Generator,
    region: Region | None = None,
    keys: list[Key] | None = None,
    *,
    crowded: bool = False,
) -> Body:
    """A person's region with findings; what is not given is drawn at random.

    Of crowded ones more are abdomens and fewer heads, whose findings eyes learn soonest. Several of a
    kind are there of one size, which so can be told of each.
    """
    region = region or REGIONS[rng.choice(3, p=_CROWDED if crowded else _SHARES)]
    wanted = random_keys(region, rng, crowded=crowded) if keys is None else keys
    body = _MAKE[region](rng, several(wanted, rng) if crowded else wanted)
    return _alike(body) if crowded else body


def _alike(body: Any) -> Body:
    """The body with every lesion of a kind as large as the first."""
    sizes: dict[str, float | None] = {}
    lesions = []
    for lesion in body.lesions:
        size = sizes.setdefault(lesion.shown.name, lesion.shown.size_mm)
        lesions.append(replace(lesion, shown=replace(lesion.shown, size_mm=size)))
    alike: Body = replace(body, lesions=tuple(lesions))
    return alike


def scanned(body: Body, scan: Scan, rng: np.random.Generator) -> Rendered:
    """A body as a scanner shows it, in the order in which it was drawn."""
    canvas = Canvas(scan)
    masks = body.draw(canvas)
    return Rendered(finish(canvas.hu, scan, rng), masks, scan.affine)


def truth_of(body: Body) -> list[NamedFinding]:
    """What a body shows, in channel order, right before left."""
    order = [kind.name for kind in KINDS]
    shown = {lesion.key: lesion.shown for lesion in body.lesions}  # of several, one is told
    return sorted(shown.values(), key=lambda f: (order.index(f.name), f.side != "right"))


def _body(rng: np.random.Generator, coarser: float, crowded: bool) -> Drawn:
    body = random_body(rng, crowded=crowded)
    scan = random_scan(rng, body.field_mm, body.length_mm, quiet=body.region == "head")
    if coarser > 1.0:
        scan = scan.coarser(coarser)
    return _drawn(body, scan, rng)


def _body_truth(rng: np.random.Generator) -> tuple[list[NamedFinding], Vocabulary]:
    body = random_body(rng)
    return truth_of(body), VOCABULARIES[body.region]


def _body_chest(rng: np.random.Generator, shape: Shape, keys: list[Key] | None) -> Drawn:
    body = random_body(rng, "chest", keys)
    plan = random_scan(rng, body.field_mm, body.length_mm)
    field_mm = np.multiply(plan.shape, plan.spacing_mm)
    dz, dy, dx = (field_mm / shape).tolist()
    scan = replace(plan, shape=shape, spacing_mm=(dz, dy, dx))
    return _drawn(body, scan, rng)


def _drawn(body: Body, scan: Scan, rng: np.random.Generator) -> Drawn:
    """A body scanned; what lies between two slices or beside them nobody can be asked for."""
    rendered = scanned(body, scan, rng)
    seen = [f for f in truth_of(body) if rendered.masks[f.name, f.side].any()]
    return Drawn(seen, VOCABULARIES[body.region], rendered, scan)


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World("phantom", PHANTOM.findings, (PHANTOM,), _phantom, _phantom_truth, _phantom_chest),
        World(
            "body",
            tuple((k.name, k.sided) for k in KINDS),
            tuple(VOCABULARIES.values()),
            _body,
            _body_truth,
            _body_chest,
        ),
    )
}
