"""An engine for a model as this machine runs it best: packed passes where they are exact, tuned, adaptive."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch

from encoders.errors import IncompatibleModel
from multimodal.engine.adaptive import MOST_SLOTS, Adaptive
from multimodal.engine.doctor import Diagnosis, diagnose
from multimodal.engine.engine import Engine
from multimodal.engine.memory import num_places
from multimodal.engine.runner import PackedRunner, PlainRunner, Runner
from multimodal.engine.tuning import Tuned, Tuner
from multimodal.sparse import sparse_mlps

Way = Callable[[], Hashable]


@dataclass(frozen=True)
class Assembled:
    """An engine with what chose its ways."""

    engine: Engine
    model: Any
    adaptive: Adaptive
    tuned: Tuned

    @property
    def one_by_one(self) -> str:
        """Why requests are not run together; empty where they are."""
        return self.tuned.one_by_one

    def diagnose(self) -> Diagnosis:
        """What was chosen on this machine, and why; runs a few steps to see."""
        return diagnose(self.engine, self.model, self.adaptive, self.tuned)


def objective_of(wanted: str | None = None) -> Adaptive:
    """Limits for an objective; None is `CROSSREAD_OBJECTIVE`, else "even".

    Raises:
        InvalidOption: an unknown one.
    """
    return Adaptive(wanted or os.environ.get("CROSSREAD_OBJECTIVE") or "even")


def assemble(
    model: Any,
    longest: int,
    adaptive: Adaptive,
    way: Way = lambda: None,
    *,
    dtype_why: str = "",
) -> Assembled:
    """A running engine for a causal language model.

    Args:
        model: the language model.
        longest: positions that it was made for.
        adaptive: chooses the limits of each step.
        way: says how the model computes just now; what was computed otherwise is not reused.
        dtype_why: what its dtype was chosen by, to be told.
    """
    with torch.inference_mode():
        runner, tuned = _runner(model, longest, way)
        engine = Engine(runner, adaptive.limits, adaptive.measured, threads=tuned.threads)
    for mlp in sparse_mlps(model):  # what was tried just now nobody asked for
        mlp.tally.neurons = mlp.tally.run = 0
    return Assembled(engine, model, adaptive, replace(tuned, dtype_why=dtype_why))


def _runner(model: Any, longest: int, way: Way) -> tuple[Runner, Tuned]:
    tuner = Tuner()
    try:
        runner = PackedRunner(model, num_places(model, longest, MOST_SLOTS), way, tuner)
    except IncompatibleModel as error:
        return PlainRunner(model, way), Tuned(one_by_one=str(error))
    return runner, tuner.tuned
