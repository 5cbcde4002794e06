"""In which numbers a language model runs fastest here: whole steps of an engine, tried in each.

A model in, a dtype and what it was chosen by out. Knows no request and no towers.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch

from multimodal.engine.adaptive import Adaptive
from multimodal.engine.assembly import assemble
from multimodal.engine.doctor import exercise
from multimodal.loading import multiplies_bfloat16

logger = logging.getLogger(__name__)

FASTEST = "fastest"  # in a dtype's place: to be chosen here
# of the steps that an objective is about: a prompt, answers, answers with a piece of a prompt
_ROWS = {"ttft": 256, "throughput": 32, "even": 96}
_LONGEST = 1024  # positions of the trial
_MARGIN = 0.95  # rounding is not bought for less


@dataclass(frozen=True)
class Precision:
    """What was chosen, and the seconds of a step of `rows` by the names of the dtypes."""

    dtype: torch.dtype
    rows: int = 0
    seconds: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """Why."""
        if not self.seconds:
            return "the checkpoint's"
        tried = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in self.seconds)
        return f"the fastest in a step of {self.rows} rows: {tried}"


def fastest(model: Any, adaptive: Adaptive) -> Precision:
    """float32, or bfloat16 where a processor multiplies in it and whole steps are faster so.

    On a GPU the model's own, untried. The model stays as it is; a copy of it is held meanwhile.

    Args:
        model: a causal language model.
        adaptive: its objective says which steps count.
    """
    if model.device.type != "cpu":
        return Precision(model.dtype)
    rows, dtypes = _ROWS[adaptive.objective], [torch.float32]
    if multiplies_bfloat16():
        dtypes.append(torch.bfloat16)
    tried = [
        step_seconds(copy.deepcopy(model).to(dtype), Adaptive(adaptive.objective), rows)
        for dtype in dtypes
    ]
    best = dtypes[-1] if tried[-1] < _MARGIN * tried[0] else torch.float32
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    chosen = Precision(best, rows, tuple(zip(names, tried, strict=True)))
    logger.info("computing in %s, %s", names[dtypes.index(best)], chosen)
    return chosen


def step_seconds(model: Any, adaptive: Adaptive, rows: int) -> float:
    """Seconds of a step of so many rows, by an engine made for this and ended again."""
    made = assemble(model, _LONGEST, adaptive)
    try:
        exercise(made.engine, model)
    finally:
        made.engine.close()
    cost = adaptive.cost()
    assert cost is not None, "prompts of several sizes were run"
    return cost.of(rows)
