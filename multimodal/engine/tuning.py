"""Makes a model fast on this machine by trying: packed weights, and sparse or dense MLPs by batch.

Results stay what they were; only the way to them is chosen. Knows no request.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from multimodal.engine.packing import pack
from multimodal.sparse import SparseMLP, sparse_mlps

_TRIES = 7
_ROWS = (1, 2, 4, 8, 16)  # tokens of a step for which a sparse MLP is tried


@dataclass
class Tuned:
    """What was chosen, and the measurements that it was chosen by.

    Attributes:
        packing_gain: how much faster packed weights multiply; 1 where they were not packed.
        sparse_gain: by number of tokens, how much faster the sparse MLP is than the dense one.
        dense_above: number of tokens above which sparse MLPs run dense.
    """

    packing_gain: float = 1.0
    sparse_gain: tuple[tuple[int, float], ...] = ()
    dense_above: int = 0


class Tuner:
    """Tunes a model in place and remembers what it chose."""

    def __init__(self) -> None:
        self.tuned = Tuned()

    @torch.inference_mode()
    def __call__(self, model: Any) -> None:
        """Pack the weights where that helps, then choose where MLPs run sparse."""
        self.tuned = Tuned(pack(model))
        mlps = sparse_mlps(model)
        if mlps and mlps[0].config.sparsity > 0:
            gains = tuple((rows, _sparse_gain(mlps[0], rows, model.dtype)) for rows in _ROWS)
            above = _dense_above(gains)
            for mlp in mlps:
                mlp.dense_above = above
            self.tuned = Tuned(self.tuned.packing_gain, gains, above)


def _sparse_gain(mlp: SparseMLP, rows: int, dtype: torch.dtype) -> float:
    x = torch.randn(rows, mlp.gate_proj.in_features, device=mlp.gate_proj.weight.device).to(dtype)

    def run(dense_above: int) -> Callable[[], Any]:
        def once() -> Any:
            mlp.dense_above = dense_above
            return mlp(x)

        return once

    sparse, dense = run(rows), run(0)
    sparse(), dense()
    return statistics.median(_seconds(dense) / _seconds(sparse) for _ in range(_TRIES))


def _dense_above(gains: tuple[tuple[int, float], ...]) -> int:
    """The most tokens for which sparse was faster, with all fewer ones."""
    above = 0
    for rows, gain in gains:
        if gain < 1.0:
            break
        above = rows
    return above


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return max(time.perf_counter() - start, 1e-9)
