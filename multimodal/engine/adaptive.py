"""How many sequences run together and how much prompt a step takes, from what steps were measured to cost.

A step costs a fixed part and a part for each row. Many slots and long chunks spread the fixed part;
few and short ones let the next token of everyone come sooner. Knows no model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from encoders.errors import InvalidOption
from multimodal.engine.scheduler import Limits

Objective = Literal["ttft", "throughput", "even"]
_NEWEST = 0.1  # share of the newest step in what steps of its size cost
_EVERY = 32  # steps between two choices
_SLOTS = (4, 8, 16, 32, 64, 128)
MOST_SLOTS = _SLOTS[-1]
_CHUNKS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Aim:
    """What an objective asks for.

    Attributes:
        overhead: most of a step of answers alone that its fixed part may be.
        gap_s: longest step, which is the longest gap between two tokens of an answer.
    """

    overhead: float
    gap_s: float


# shares and gaps by which the burst of benchmarks/serving.py comes out as the objective's name says
AIMS: dict[Objective, Aim] = {
    "ttft": Aim(0.05, 0.5),
    "throughput": Aim(0.1, 1.0),
    "even": Aim(0.1, 0.25),
}


@dataclass(frozen=True)
class Cost:
    """Seconds of a step: `fixed_s` and `row_s` for each of its rows."""

    fixed_s: float
    row_s: float

    def of(self, rows: int) -> float:
        """Of a step of so many rows."""
        return self.fixed_s + self.row_s * rows


class Adaptive:
    """Gives the limits of the next step; told of every step, it chooses anew now and then.

    Args:
        objective: "ttft" (first tokens soon), "throughput", or "even" (all alike, at short gaps).

    Raises:
        InvalidOption: another objective.
    """

    def __init__(self, objective: str = "even") -> None:
        if objective not in AIMS:
            known = ", ".join(get_args(Objective))
            raise InvalidOption(f"the objective is {objective!r}; use one of {known}")
        self.objective: Objective = objective
        self._lock = threading.Lock()
        self._seconds: dict[int, tuple[float, float]] = {}  # of steps of about 2**k rows
        self._steps = 0
        self._limits = Limits()

    def limits(self) -> Limits:
        """For the next step."""
        return self._limits

    def measured(self, rows: int, seconds: float) -> None:
        """Take note of a step."""
        with self._lock:
            bucket = rows.bit_length()
            old = self._seconds.get(bucket, (float(rows), seconds))
            self._seconds[bucket] = (
                old[0] + _NEWEST * (rows - old[0]), old[1] + _NEWEST * (seconds - old[1])
            )  # fmt: skip
            self._steps += 1
            if self._steps % _EVERY == 0:
                self.choose()

    def cost(self) -> Cost | None:
        """The line through the measured steps; None before steps of two sizes were seen."""
        if len(self._seconds) < 2:
            return None
        rows, seconds = np.array(list(self._seconds.values())).T
        # relative errors count, else the largest steps alone would decide
        weights = 1 / seconds
        matrix = np.stack([weights, rows * weights], 1)
        fixed_s, row_s = np.linalg.lstsq(matrix, np.ones(len(rows)), rcond=None)[0]
        return Cost(max(float(fixed_s), 0.0), max(float(row_s), 1e-9))

    def choose(self) -> Limits:
        """Choose by what was measured so far."""
        cost = self.cost()
        if cost is not None:
            self._limits = chosen(cost, AIMS[self.objective])
        return self._limits

    def costs(self) -> dict[int, float]:
        """Measured seconds of a step by its rows."""
        with self._lock:
            return {round(rows): seconds for rows, seconds in sorted(self._seconds.values())}


def chosen(cost: Cost, aim: Aim) -> Limits:
    """The fewest slots that spread the fixed part well enough, the longest chunk within the gap."""
    slots = next((s for s in _SLOTS if cost.fixed_s <= aim.overhead * cost.of(s)), _SLOTS[-1])
    fitting = [c for c in _CHUNKS if cost.of(slots + c) <= aim.gap_s]
    return Limits(slots, max(fitting, default=_CHUNKS[0]))
