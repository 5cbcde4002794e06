"""Logits to tokens for many requests at once, each by its own options, chance and grammar.

A row's token depends on that row alone: neighbours change nothing. Knows no text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from multimodal.engine import sequence as seq

_NEVER = float("-inf")


def pick(logits: torch.Tensor, sequences: Sequence[seq.Sequence]) -> list[seq.Picked]:
    """A token for each row of `[rows, vocabulary]`, float32.

    Greedy at temperature 0. Else one is drawn from what top-k, min-p and nucleus (Holtzman et al.
    2020, arXiv 1904.09751: the fewest likeliest tokens that hold `top_p`) leave, in that order.
    """
    told = _log_probabilities(logits, sequences)
    bent = _bent(logits, sequences)
    tokens = bent.argmax(-1)
    drawn = [row for row, s in enumerate(sequences) if s.options.temperature > 0]
    if drawn:
        tokens[drawn] = _draw(bent[drawn].cpu(), [sequences[row] for row in drawn]).to(tokens)
    listed = tokens.tolist()
    return [
        _picked(token, told.get(row), sequences[row].options.logprobs or 0)
        for row, token in enumerate(listed)
    ]


def _bent(logits: torch.Tensor, sequences: Sequence[seq.Sequence]) -> torch.Tensor:
    """The logits after penalties and grammars; the same tensor where no row asks for any."""
    rows, columns, times, repeated = [], [], [], []
    for row, sequence in enumerate(sequences):
        options, said = sequence.options, Counter(sequence.tokens)
        for token in _penalised(sequence):
            rows.append(row)
            columns.append(token)
            times.append(
                options.frequency_penalty * said[token]
                + options.presence_penalty * (said[token] > 0)
            )
            repeated.append(options.repetition_penalty)
    constrained = [row for row, s in enumerate(sequences) if s.constraint is not None]
    if not rows and not constrained:
        return logits
    bent = logits.clone()
    if rows:
        at = (torch.tensor(rows), torch.tensor(columns))
        old, by = bent[at], torch.tensor(repeated, device=bent.device)
        new = torch.where(old > 0, old / by, old * by)
        bent[at] = new - torch.tensor(times, device=bent.device)
    for row in constrained:
        constraint = sequences[row].constraint
        assert constraint is not None
        allowed = constraint.allowed()[: bent.shape[-1]].to(bent.device)
        bent[row].masked_fill_(~allowed, _NEVER)
    return bent


def _penalised(sequence: seq.Sequence) -> set[int]:
    """The tokens whose logits a request's penalties change."""
    options = sequence.options
    if options.repetition_penalty != 1:
        # positions of media hold negative numbers in place of a token
        return {*sequence.tokens, *(t for t in sequence.content.tolist() if t >= 0)}
    return set(sequence.tokens) if options.presence_penalty or options.frequency_penalty else set()


def _draw(logits: torch.Tensor, sequences: Sequence[seq.Sequence]) -> torch.Tensor:
    """By the inverse of the cumulative distribution, at one number of each request's own chance."""
    size = logits.shape[-1]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    options = [s.options for s in sequences]
    ordered, index = (logits.double() / column([o.temperature for o in options])).sort(
        -1, descending=True
    )
    rank = torch.arange(size)[None]
    ordered = ordered.masked_fill(rank >= column([o.top_k or size for o in options]), _NEVER)
    chances = ordered.softmax(-1)
    chances = chances * (chances >= column([o.min_p for o in options]) * chances[:, :1])
    chances /= chances.sum(-1, keepdim=True)
    before = chances.cumsum(-1) - chances
    chances = chances * (before < column([o.top_p for o in options]))
    heights = chances.cumsum(-1)
    at = column([s.chance.random() for s in sequences]) * heights[:, -1:]
    # the first whose cumulated chance is above: never one of chance nothing
    place = torch.searchsorted(heights, at, right=True).clamp(max=size - 1)
    last = (chances > 0).sum(-1, keepdim=True) - 1
    return index.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _log_probabilities(
    logits: torch.Tensor, sequences: Sequence[seq.Sequence]
) -> dict[int, torch.Tensor]:
    """The model's own log-probabilities of the rows that ask for them."""
    rows = [row for row, s in enumerate(sequences) if s.options.logprobs is not None]
    return dict(zip(rows, logits[rows].log_softmax(-1), strict=True)) if rows else {}


def _picked(token: int, told: torch.Tensor | None, num: int) -> seq.Picked:
    if told is None:
        return seq.Picked(token)
    best = told.topk(min(num, len(told)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return seq.Picked(token, float(told[token]), top)
