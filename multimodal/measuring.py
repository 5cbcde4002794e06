"""How large a finding is: what a model says of its size and what it measures, as one distribution.

Knows no model and no report: probabilities and millimetres in, probabilities out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from multimodal.prompts import SIZES_MM

Sizes = Mapping[float, float]  # of a finding, the probability of each in mm; empty if not asked

_Of = TypeVar("_Of")

LEAST = 1e-4  # no answer is taken for more certain
_FAR = math.log(1.3)  # sizes that differ by less are the same to two readers


@dataclass(frozen=True)
class Measuring:
    """How the size that is measured counts beside what is said of it.

    Attributes:
        words: weight of the logarithms of what is said.
        spread: of every finding that has sizes, by how much the logarithm of a measure may be off: the
            root of three times the scale of its Student's t. Of others measures and words mean nothing.
    """

    words: float
    spread: Mapping[str, float]

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Measuring:
        """From a checkpoint's configuration."""
        spread = told["spread"]
        if not isinstance(spread, Mapping):  # before version 7 one for all
            spread = dict.fromkeys(told["names"], spread)
        return cls(told["words"], dict(spread))


def weigh_sizes(name: str, said: Sizes, measured_mm: float, measure: Measuring) -> Sizes:
    """Sizes of a finding by what is said and what is measured.

    A measure is off by Student's t of three degrees, now and then by much; that the words know it
    too, the weight of the words accounts for.
    """
    spread = measure.spread[name]
    return shares(
        {
            size_mm: measure.words * log(chance)
            - 2.0 * math.log1p((math.log(size_mm / measured_mm) / spread) ** 2)
            for size_mm, chance in said.items()
        }
    )


def median_mm(sizes: Sizes) -> float | None:
    """The size that the finding is as likely above as below; None of none."""
    total = 0.0
    for size_mm, chance in sorted(sizes.items()):
        total += chance
        if total >= 0.5 * sum(sizes.values()):
            return size_mm
    return None


def wrong_size(said_mm: float | None, sizes: Sizes) -> float:
    """How likely a finding has another size than is said; what is beyond all sizes is the last of them."""
    if not said_mm or not sizes:
        return LEAST
    said_mm = min(max(said_mm, SIZES_MM[0]), SIZES_MM[-1])
    far = (p for size_mm, p in sizes.items() if abs(math.log(said_mm / size_mm)) > _FAR)
    return bounded(sum(far))


def shares(scores: Mapping[_Of, float]) -> dict[_Of, float]:
    """Probabilities from logarithms of what is proportional to them."""
    most = max(scores.values(), default=0.0)
    parts = {key: math.exp(score - most) for key, score in scores.items()}
    total = sum(parts.values())
    return {key: part / total for key, part in parts.items()}


def bounded(chance: float) -> float:
    """No nearer to never and always than is known."""
    return min(max(chance, LEAST), 1 - LEAST)


def log(chance: float) -> float:
    """Finite for zero too."""
    return math.log(max(chance, LEAST**2))
