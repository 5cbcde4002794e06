"""What a decoder does beside its matrix products, in float32 on a CPU, compiled by numba at first use.

`decode_attention` reads a row's keys once for all heads that share them; `rms_norm`, `rotate` and
`swish_product` do in one pass what torch does in several. All let go of the interpreter's lock, so that
rows are shared out among as many threads as torch has.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
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

    lengths = runs[:, 1]
    _share_out(attend, len(runs), int(lengths.sum()) * k[0].size, lengths)
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Each row of `[..., n]` over the root of its mean square, times `weight [n]`."""
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows, normed = x.view(-1, width).numpy(), out.view(-1, width).numpy()
    by = weight.detach().numpy()

    def norm(at: slice) -> None:
        _norm(rows[at], by, np.float32(epsilon), normed[at])

    _share_out(norm, len(rows), rows.size)
    return out


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Turn each half of `[rows, heads, dim]` with the other, in place, by angles `[rows, dim]`."""
    rows, cosines, sines = x.numpy(), cosine.numpy(), sine.numpy()

    def turn(at: slice) -> None:
        _rotate(rows[at], cosines[at], sines[at])

    _share_out(turn, len(rows), rows.size)


def swish_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Swish of `gate` (Ramachandran et al. 2017, arXiv 1710.05941) times `up`, in place of `gate`."""
    gates, ups = gate.view(-1).numpy(), up.view(-1).numpy()

    def multiply(at: slice) -> None:
        _swish_product(gates[at], ups[at])

    _share_out(multiply, len(gates), len(gates))
    return gate


def _share_out(
    run: Callable[[slice], None], num: int, cost: int, costs: np.ndarray | None = None
) -> None:
    """Let threads run parts of `num` rows that cost about as much; alike without `costs`."""
    threads = min(torch.get_num_threads(), 1 + cost // _SHARE)
    if threads == 1:
        run(slice(num))
        return
    total = np.arange(1, num + 1) if costs is None else costs.cumsum()
    cuts = np.searchsorted(total, total[-1] * np.arange(1, threads) / threads).tolist()
    bounds = sorted({0, *cuts, num})
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    list(_helpers(threads, os.getpid()).map(run, parts))


@cache
def _helpers(num: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(num, "decoding")


def _compiled(function: Callable[..., Any], fast: Collection[str] = _FAST) -> Callable[..., Any]:
    options: Any = {"fastmath": {*fast}, "error_model": "numpy", "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is nowhere to keep it: each process compiles anew
        return numba.njit(**options)(function)


# terms in the order in which they are written: the rest of `x` is exact only so
@partial(_compiled, fast=("contract",))
def _exp(x: Any) -> Any:
    """To 2e-7 of its value, vectorised, which a call of `np.exp` for each number is not.

    2**n times a polynomial for the rest, within half of log 2 (Moshier's Cephes, expf).
    """
    x = np.float32(-87) if x < np.float32(-87) else x  # a comparison that lets NaN through
    x = np.float32(88) if x > np.float32(88) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - n * np.float32(0.693359375)
    x = x - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * x + np.float32(1.3981999507e-3)
    p = p * x + np.float32(8.3334519073e-3)
    p = p * x + np.float32(4.1665795894e-2)
    p = p * x + np.float32(1.6666665459e-1)
    p = p * x + np.float32(5.0000001201e-1)
    p = p * x * x + x + np.float32(1)
    return p * np.int32((np.int32(n) + 127) << 23).view(np.float32)


@_compiled
def _softmax(scores: Any) -> None:
    top, total = scores[0], np.float32(0)
    for score in scores:
        top = max(top, score)
    for at in range(len(scores)):
        scores[at] = _exp(scores[at] - top)
        total += scores[at]
    scores /= total


@_compiled
def _swish_product(gate: Any, up: Any) -> None:
    for at in range(len(gate)):
        gate[at] = gate[at] / (np.float32(1) + _exp(-gate[at])) * up[at]


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
            k, v = keys[head, start : start + length], values[head, start : start + length]
            k[-1], v[-1] = key[row, head], value[row, head]
            _score(query[row, heads], k, scaling, scores)
            for group in range(groups):
                _softmax(scores[group, :length])
            _sum_up(scores, v, out[row, heads])


@_compiled
def _score(query: Any, keys: Any, scaling: Any, scores: Any) -> None:
    """Four keys at a time, so that a query is read once for them."""
    groups, width = query.shape
    fours = len(keys) - len(keys) % 4
    for at in range(0, fours, 4):
        for group in range(groups):
            a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for i in range(width):
                a += query[group, i] * keys[at, i]
                b += query[group, i] * keys[at + 1, i]
                c += query[group, i] * keys[at + 2, i]
                d += query[group, i] * keys[at + 3, i]
            scores[group, at], scores[group, at + 1] = a * scaling, b * scaling
            scores[group, at + 2], scores[group, at + 3] = c * scaling, d * scaling
    for at in range(fours, len(keys)):
        for group in range(groups):
            a = np.float32(0)
            for i in range(width):
                a += query[group, i] * keys[at, i]
            scores[group, at] = a * scaling


@_compiled
def _sum_up(shares: Any, values: Any, out: Any) -> None:
    """Four values at a time, so that a sum is read and written once for them."""
    groups, width = out.shape
    fours = len(values) - len(values) % 4
    out[:] = 0
    for at in range(0, fours, 4):
        for group in range(groups):
            a, b = shares[group, at], shares[group, at + 1]
            c, d = shares[group, at + 2], shares[group, at + 3]
            for i in range(width):
                out[group, i] += (
                    a * values[at, i] + b * values[at + 1, i]
                    + c * values[at + 2, i] + d * values[at + 3, i]
                )  # fmt: skip
    for at in range(fours, len(values)):
        for group in range(groups):
            for i in range(width):
                out[group, i] += shares[group, at] * values[at, i]


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
