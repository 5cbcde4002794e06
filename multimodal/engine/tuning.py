"""Makes a model fast on this machine by trying: threads, packed weights, sparse or dense by batch.

Results stay what they were; only the way to them is chosen. Knows no request.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from multimodal.engine.packing import MIN_GAIN, pack
from multimodal.sparse import SparseMLP, sparse_mlps

_TRIES = 7
_STEP_ROWS = 32
_ROWS = (1, 2, 4, 8, 16)  # tokens of a step for which a sparse MLP is tried


@dataclass(frozen=True)
class Tuned:
    """What was chosen, and the measurements that it was chosen by.

    Attributes:
        is_packed: whether weights were packed.
        packing_gain: how much faster packed weights multiply; 1 where that was not tried.
        bfloat16_gain: how much faster the largest layer is in bfloat16; 1 where not tried.
        threads: of the engine's products.
        thread_seconds: of the largest layer, by number of threads.
        sparse_gain: by number of tokens, how much faster the sparse MLP is than the dense one.
        dense_above: number of tokens above which sparse MLPs run dense.
        one_by_one: why requests are not run together; empty where they are.
        num_ranks: processes that the layers are split over.
        dtype_why: what the dtype was chosen by, where it was.
    """

    is_packed: bool = False
    packing_gain: float = 1.0
    bfloat16_gain: float = 1.0
    threads: int = 0
    thread_seconds: tuple[tuple[int, float], ...] = ()
    sparse_gain: tuple[tuple[int, float], ...] = ()
    dense_above: int = 0
    one_by_one: str = ""
    num_ranks: int = 1
    dtype_why: str = ""


class Tuner:
    """Tunes a model in place and remembers what it chose."""

    def __init__(self) -> None:
        self.tuned = Tuned()

    @torch.inference_mode()
    def __call__(self, model: Any) -> None:
        """Choose threads, pack the weights where that helps, then see where MLPs run sparse."""
        largest = max(_linears(model), key=lambda layer: layer.weight.numel(), default=None)
        if largest is None or largest.weight.device.type != "cpu":
            return
        tried = _thread_seconds(largest)
        threads = min(tried, key=lambda pair: pair[1])[0]
        bfloat16_gain = _bfloat16_gain(largest)
        gain = pack(model)
        self.tuned = Tuned(gain >= MIN_GAIN, gain, bfloat16_gain, threads, tried)
        mlps = sparse_mlps(model)
        if mlps and mlps[0].config.sparsity > 0:
            gains = tuple((rows, _sparse_gain(mlps[0], rows, model.dtype)) for rows in _ROWS)
            above = _dense_above(gains)
            for mlp in mlps:
                mlp.dense_above = above
            self.tuned = replace(self.tuned, sparse_gain=gains, dense_above=above)


def _linears(model: nn.Module) -> Iterator[nn.Linear]:
    return (m for m in model.modules() if type(m) is nn.Linear)


def _thread_seconds(layer: nn.Linear) -> tuple[tuple[int, float], ...]:
    """Of a step's product, with one thread, half of those that torch has, and all."""
    most = torch.get_num_threads()
    x = _input(layer, layer.weight.dtype)
    tried = []
    for number in sorted({1, max(most // 2, 1), most}):
        torch.set_num_threads(number)
        layer(x)
        tried.append((number, statistics.median(_seconds(lambda: layer(x)) for _ in range(_TRIES))))
    torch.set_num_threads(most)
    return tuple(tried)


def _bfloat16_gain(layer: nn.Linear) -> float:
    """How much faster than in float32, whichever the layer is in."""
    whole, half = (copy.deepcopy(layer).to(dtype) for dtype in (torch.float32, torch.bfloat16))
    x, y = _input(layer, torch.float32), _input(layer, torch.bfloat16)
    half(y)
    return statistics.median(
        _seconds(lambda: whole(x)) / _seconds(lambda: half(y)) for _ in range(_TRIES)
    )


def _input(layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(_STEP_ROWS, layer.in_features).to(dtype)


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
