"""Attention of the newest token of many sequences: every row reads its own run of places.

`_by_torch` is the definition, for any device and dtype; `decoding_cpu` must match it and reads keys and
values at the speed of memory, where a call of torch for each row takes more than twice as long.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    pool: tuple[torch.Tensor, torch.Tensor],
    runs: np.ndarray,
    scaling: float,
) -> torch.Tensor:
    """Put each row's key and value at the end of its run, then attend to all of the run.

    Args:
        query: `[rows, heads, dim]`; heads that follow each other share those of one key.
        key: `[rows, kv_heads, dim]`.
        value: `[rows, kv_heads, dim]`.
        pool: keys and values `[kv_heads, places, dim]`.
        runs: the first place of each row's run and its length, int64 `[rows, 2]`.
        scaling: of the products of queries and keys.

    Returns:
        `[rows, heads, dim]`.
    """
    if query.device.type == "cpu" and query.dtype == torch.float32:
        from multimodal.kernels import decoding_cpu

        return decoding_cpu.decode_attention(
            query, key, value, pool=pool, runs=runs, scaling=scaling
        )
    return _by_torch(query, key, value, pool=pool, runs=runs, scaling=scaling)


def _by_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    pool: tuple[torch.Tensor, torch.Tensor],
    runs: np.ndarray,
    scaling: float,
) -> torch.Tensor:
    newest = torch.from_numpy(runs.sum(1) - 1).to(query.device)
    for whole, new in zip(pool, (key, value), strict=True):
        whole.index_copy_(1, newest, new.transpose(0, 1))
    # the heads of a group share their keys: one row of the product for each
    grouped = query.unflatten(1, (key.shape[1], -1))
    keys, values = pool
    done = []
    for q, (start, length) in zip(grouped, runs.tolist(), strict=True):
        places = slice(start, start + length)
        done.append(
            scaled_dot_product_attention(q, keys[:, places], values[:, places], scale=scaling)
        )
    return torch.stack(done).flatten(1, 2)
