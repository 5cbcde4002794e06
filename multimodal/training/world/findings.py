"""What the generated world can show: the findings of each region, and the numbers that draw one.

The order is that of a finding head's channels. Knows no words beyond the canonical names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from multimodal.prompts import NamedFinding, Side, sided_keys

Region = Literal["chest", "head", "abdomen"]
Key = tuple[str, Side | None]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: where it occurs, whether it has sides, and its usual sizes if stated.

    Attributes:
        weight: how often, beside the others of its region.
        many: the most of one side in a crowded body.
    """

    name: str
    region: Region
    sided: bool
    size_mm: tuple[float, float] | None = None
    weight: float = 1.0
    many: int = 1


KINDS: tuple[Kind, ...] = (
    Kind("nodule", "chest", True, (6.0, 30.0), 1.6, many=12),
    Kind("mass", "chest", True, (32.0, 65.0)),
    Kind("consolidation", "chest", True),
    Kind("ground-glass opacity", "chest", True),
    Kind("pleural effusion", "chest", True),
    Kind("pneumothorax", "chest", True),
    Kind("rib lesion", "chest", True, (12.0, 28.0), many=8),
    Kind("cardiomegaly", "chest", False, None, 1.5),
    Kind("pericardial effusion", "chest", False, None, 1.5),
    Kind("aortic calcification", "chest", False, None, 1.5),
    Kind("vertebral lesion", "chest", False, (10.0, 22.0), 1.5, many=4),
    Kind("intracerebral haemorrhage", "head", True, (12.0, 50.0), many=2),
    Kind("subdural haematoma", "head", True),
    Kind("infarct", "head", True),
    Kind("hydrocephalus", "head", False, None, 1.5),
    Kind("liver lesion", "abdomen", False, (10.0, 50.0), 1.5, many=6),
    Kind("renal cyst", "abdomen", True, (12.0, 55.0), many=2),
    Kind("kidney stone", "abdomen", True, (5.0, 14.0), many=6),
    Kind("ascites", "abdomen", False, None, 1.5),
    Kind("aortic aneurysm", "abdomen", False, (35.0, 65.0), 1.5),
)
REGIONS: tuple[Region, ...] = ("chest", "head", "abdomen")
KIND_OF = {kind.name: kind for kind in KINDS}
# of one side, one of these would hide the other or change what it looks like
_RIVALS = (
    {"pneumothorax", "pleural effusion"}, {"infarct", "intracerebral haemorrhage"},
    {"cardiomegaly", "pericardial effusion"}, {"hydrocephalus", "subdural haematoma"},
    {"consolidation", "mass"}, {"consolidation", "ground-glass opacity"},
)  # fmt: skip


@dataclass(frozen=True)
class Shown(NamedFinding):
    """A finding as the words may tell it: `place` is the lobe or level, without the side."""

    place: str | None = None


@dataclass(frozen=True)
class Lesion:
    """A finding and the numbers that draw it; lengths in mm.

    Attributes:
        shown: what it is called.
        centre: its middle in the patient's frame, where it has one.
        level: HU or a share, by kind.
        seed: for everything else about its shape.
    """

    shown: Shown
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    level: float = 0.0
    seed: int = 0

    @property
    def key(self) -> Key:
        """(name, side)."""
        return self.shown.name, self.shown.side

    @property
    def sign(self) -> int:
        """The side as the sign of patient x."""
        return {"right": -1, "left": 1, None: 0}[self.shown.side]

    @property
    def radius_mm(self) -> float:
        """Half the stated size."""
        assert self.shown.size_mm is not None
        return self.shown.size_mm / 2


def keys_of(regions: Sequence[Region] = REGIONS) -> list[Key]:
    """Every (finding, side) of some regions, in channel order, right before left."""
    return sided_keys((k.name, k.sided) for k in KINDS if k.region in regions)


def random_keys(region: Region, rng: np.random.Generator, *, crowded: bool = False) -> list[Key]:
    """None to four findings of a region, right as often as left, none hiding another.

    A crowded one has up to half of all that its region can show.
    """
    pool = keys_of([region])
    weights = np.array([KIND_OF[name].weight for name, _ in pool])
    if crowded:
        count = int(rng.integers(2, len(pool) // 2 + 2))
    else:
        count = int(rng.choice(5, p=[0.2, 0.25, 0.25, 0.2, 0.1]))
    order = rng.choice(len(pool), len(pool), replace=False, p=weights / weights.sum())
    kept: list[Key] = []
    for key in (pool[i] for i in order):
        if len(kept) < count and not any(_hide(key, other) for other in kept):
            kept.append(key)
    return kept


def several(keys: Sequence[Key], rng: np.random.Generator) -> list[Key]:
    """Keys repeated at random: eyes learn from each of a dozen nodules, drawn at the cost of one."""
    return [key for key in keys for _ in range(int(rng.integers(KIND_OF[key[0]].many)) + 1)]


def random_size(name: str, rng: np.random.Generator) -> float | None:
    """A usual size of a kind in whole mm, small ones more often; None if none is stated."""
    usual = KIND_OF[name].size_mm
    if usual is None:
        return None
    return float(round(np.exp(rng.uniform(*np.log(usual)))))


def _hide(a: Key, b: Key) -> bool:
    return {a[0], b[0]} in _RIVALS and (a[1] == b[1] or None in (a[1], b[1]))
