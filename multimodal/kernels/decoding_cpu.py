"""What a decoder does beside its matrix products, in float32 on a CPU, compiled by numba at first use.

`decode_attention` reads a row's keys once for all heads that share them; `rms_norm` and `rotate` do in
one pass what torch does in a dozen. All let go of the interpreter's lock, so that rows are shared out
among as many threads as torch has.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch

# sums in any order, so that they are vectorised; NaN stays NaN
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_SHARE = 1 << 16  # numbers that are worth a thread


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    pool: tuple[torch.Tensor, torch.Tensor],
    runs: np.ndarray,
    scaling: float,
) -> torch.Tensor:
    """See `attention.decode_attention`."""
    out = query.new_empty(*query.shape[:2], value.shape[-1])
    q, k, v, o = (
        t.numpy() for t in (query.contiguous(), key.contiguous(), value.contiguous(), out)
    )
    keys, values = (whole.numpy() for whole in pool)

    def attend(at: slice) -> None:
        _attend(q[at], k[at], v[at], keys, values, runs[at], np.float32(scaling), o[at])

    _share_out(attend, runs[:, 1] * keys.shape[0] * keys.shape[2])
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Each row of `[..., n]` over the root of its mean square, times `weight [n]`."""
    out = torch.empty_like(x)
    rows, normed, by = x.flatten(0, -2).numpy(), out.flatten(0, -2).numpy(), weight.detach().numpy()

    def norm(at: slice) -> None:
        _norm(rows[at], by, np.float32(epsilon), normed[at])

    _share_out(norm, np.full(*rows.shape))
    return out


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Turn each half of `[rows, heads, dim]` with the other, in place, by angles `[rows, dim]`."""
    rows, cosines, sines = x.numpy(), cosine.numpy(), sine.numpy()

    def turn(at: slice) -> None:
        _rotate(rows[at], cosines[at], sines[at])

    _share_out(turn, np.full(len(rows), x[0].numel()))


def _share_out(run: Callable[[slice], None], costs: np.ndarray) -> None:
    """Let threads run parts of the rows that cost about as much."""
    total = costs.cumsum()
    num = min(torch.get_num_threads(), 1 + int(total[-1]) // _SHARE)
    if num == 1:
        run(slice(len(costs)))
        return
    cuts = np.searchsorted(total, total[-1] * np.arange(1, num) / num).tolist()
    bounds = sorted({0, *cuts, len(costs)})
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    list(_helpers(num, os.getpid()).map(run, parts))


@cache
def _helpers(num: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(num, "decoding")


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    options: Any = {"fastmath": _FAST, "error_model": "numpy", "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is nowhere to keep it: each process compiles anew
        return numba.njit(**options)(function)


@_compiled
def _softmax(scores: Any) -> None:
    top, total = scores[0], np.float32(0)
    for score in scores:
        top = max(top, score)
    for at in range(len(scores)):
        scores[at] = np.exp(scores[at] - top)
        total += scores[at]
    scores /= total


@_compiled
def _attend(
    query: Any, key: Any, value: Any, keys: Any, values: Any, runs: Any, scaling: Any, out: Any
) -> None:
    groups = query.shape[1] // keys.shape[0]
    scores = np.empty((groups, runs[:, 1].max()), np.float32)
    for row in range(len(runs)):
        start, length = runs[row]
        for head in range(keys.shape[0]):
            heads = slice(head * groups, (head + 1) * groups)
            q, o = query[row, heads], out[row, heads]
            k, v = keys[head, start : start + length], values[head, start : start + length]
            k[-1], v[-1] = key[row, head], value[row, head]
            for at in range(length):
                for group in range(groups):
                    product = np.float32(0)
                    for d in range(q.shape[1]):
                        product += q[group, d] * k[at, d]
                    scores[group, at] = product * scaling
            for group in range(groups):
                _softmax(scores[group, :length])
            o[:] = 0
            for at in range(length):
                for group in range(groups):
                    for d in range(o.shape[1]):
                        o[group, d] += scores[group, at] * v[at, d]


@_compiled
def _norm(x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    width = x.shape[1]
    for row in range(len(x)):
        total = np.float32(0)
        for at in range(width):
            total += x[row, at] * x[row, at]
        scale = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
        for at in range(width):
            out[row, at] = x[row, at] * scale * weight[at]


@_compiled
def _rotate(x: Any, cosine: Any, sine: Any) -> None:
    half = x.shape[2] // 2
    for row in range(x.shape[0]):
        for head in range(x.shape[1]):
            for at in range(half):
                a, b = x[row, head, at], x[row, head, half + at]
                x[row, head, at] = a * cosine[row, at] - b * sine[row, at]
                x[row, head, half + at] = b * cosine[row, half + at] + a * sine[row, half + at]
