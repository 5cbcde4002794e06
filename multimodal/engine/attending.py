"""How the rows of a packed pass attend: each to the run of places that its sequence owns.

The rows of answers come first, one a sequence, then the rows of prompts and of choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from encoders.errors import IncompatibleModel
from multimodal.engine.cache import Pool
from multimodal.engine.sequence import Segment
from multimodal.kernels.attention import decode_attention

ATTENTION = "crossread_packed"


@dataclass(frozen=True)
class Part:
    """Rows of a pass that belong to one sequence, and the places that they attend to.

    Attributes:
        rows: of the pass.
        asked: which of the queries are theirs; fewer than rows where not all attend.
        new: places of the rows' own keys and values.
        places: all that may be attended to.
        mask: bool `[asked, places]`; None where they attend to all, or to what stands before them.
        is_causal: whether that holds for rows that are all there is.
    """

    rows: slice
    asked: slice
    new: slice
    places: slice
    mask: torch.Tensor | None
    is_causal: bool


@dataclass(frozen=True)
class Plan:
    """How a packed pass attends; handed through the model to `attend`.

    Attributes:
        runs: of the first rows, one row a sequence: the first place of each and how many it reads.
        parts: all rows behind them.
        wanted: the rows that a last layer runs to the end, as nobody predicts from the others;
            None for all.
        last: how these attend.
    """

    pool: Pool
    runs: np.ndarray
    parts: tuple[Part, ...]
    wanted: torch.Tensor | None = None
    last: Plan | None = None


def plan_of(segments: Sequence[Segment], pool: Pool, device: torch.device) -> Plan:
    """The plan of a pass that runs these segments in this order."""
    runs: list[tuple[int, int]] = []
    parts: list[Part] = []
    at, wanted, rest = 0, list[int](), list[Part]()
    for segment in segments:
        start, done, count = segment.sequence.place.start, segment.sequence.done, segment.count
        if count == 1 and not parts:
            runs.append((start, done + 1))
            wanted.append(at)
        else:
            rows, num = slice(at, at + count), max(segment.num_logits, 1)
            mask = _mask(done, count, segment.groups) if done or segment.groups else None
            part = Part(
                rows, rows, slice(start + done, start + done + count),
                slice(start, start + done + count), None if mask is None else mask.to(device),
                mask is None,
            )  # fmt: skip
            parts.append(part)
            asked = slice(len(wanted), len(wanted) + num)
            if num < count:  # of a prompt, of which only the last row may be predicted from
                assert num == 1
                part = replace(part, asked=asked, mask=None, is_causal=False)
            rest.append(replace(part, asked=asked))
            wanted += range(at + count - num, at + count)
        at += count
    plan = Plan(pool, np.array(runs, np.int64).reshape(-1, 2), tuple(parts))
    if len(wanted) == at:
        return plan
    kept = torch.tensor(wanted, dtype=torch.int64, device=device)
    return replace(plan, wanted=kept, last=replace(plan, parts=tuple(rest)))


def attend(
    plan: Plan, layer: int, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], scaling: float
) -> torch.Tensor:
    """Attention of all queries, `[queries, heads, dim]`; keys and values go into the pool.

    `rows` are queries `[queries, heads, dim]`, keys and values `[rows, kv_heads, dim]`.
    """
    query, key, value = rows
    pool, single = plan.pool.layer(layer, key, value), len(plan.runs)
    first = query.new_empty(0)
    if single:
        first = decode_attention(
            query[:single], key[:single], value[:single],
            pool=pool, runs=plan.runs, scaling=scaling,
        )  # fmt: skip
    if not plan.parts:
        return first
    out = query.new_empty(*query.shape[:2], value.shape[-1])
    if single:
        out[:single] = first
    keys, values = pool
    for part in plan.parts:
        keys[:, part.new] = key[part.rows].transpose(0, 1)
        values[:, part.new] = value[part.rows].transpose(0, 1)
        done = scaled_dot_product_attention(
            query[None, part.asked].transpose(1, 2), keys[None, :, part.places],
            values[None, :, part.places], part.mask, is_causal=part.is_causal, scale=scaling,
            enable_gqa=query.shape[1] > key.shape[1],
        )  # fmt: skip
        out[part.asked] = done[0].transpose(0, 1)
    return out


def register() -> None:
    """Let transformers know this attention by the name `ATTENTION`."""
    AttentionInterface.register(ATTENTION, _attend_as_asked)


def _attend_as_asked(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: Plan,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` as transformers calls it, with `[1, heads, rows, dim]`."""
    unknown = [n for n in ("softcap", "s_aux", "position_bias") if others.get(n) is not None]
    if unknown:
        raise IncompatibleModel(f"attention with {unknown[0]} cannot be packed")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    return attend(plan, module.layer_idx, rows, scaling)[None], None


def _mask(done: int, count: int, groups: Sequence[int]) -> torch.Tensor:
    """Bool `[count, done + count]`: all that is done, and what stands before within the group."""
    mask = torch.ones(count, done + count, dtype=torch.bool).tril(done)
    at = 0
    for size in groups:
        mask[at + size :, done + at : done + at + size] = False
        at += size
    return mask
