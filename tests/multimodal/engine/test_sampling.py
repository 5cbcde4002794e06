"""Picked tokens against transformers' own logits processors, and against the chances themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from multimodal.backends import GenerateOptions
from multimodal.engine.sampling import pick
from multimodal.engine.sequence import Sequence


def _sequence(
    prompt: tuple[int, ...] = (0,), said: tuple[int, ...] = (), **options: Any
) -> Sequence:
    embeds = torch.zeros(len(prompt), 1)
    sequence = Sequence(GenerateOptions(**options), embeds, np.array(prompt), bool)
    sequence.tokens = list(said)
    return sequence


def test_greedy_takes_the_largest_and_nucleus_never_leaves_the_nucleus() -> None:
    logits = torch.tensor([[0.1, 0.6, 0.2, 0.1]]).log()
    assert pick(logits, [_sequence()])[0].token == 1
    nucleus = _sequence(temperature=1.0, top_p=0.7)
    assert {pick(logits, [nucleus])[0].token for _ in range(200)} == {1, 2}


def test_sampling_frequencies_are_the_probabilities() -> None:
    chances = torch.tensor([0.1, 0.6, 0.3])
    sequence = _sequence(temperature=1.0, seed=0)
    drawn = [pick(chances.log()[None], [sequence])[0].token for _ in range(2000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / 2000
    assert shares.tolist() == pytest.approx(chances.tolist(), abs=0.04)


@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.2, 0.7, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
)
@settings(max_examples=120)
def test_drawn_tokens_are_those_that_transformers_leaves(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """The support of our draw, hit by many chances, is what its warpers leave above -inf."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    left = warpers(torch.zeros(1, 1, dtype=torch.long), logits.clone())[0]
    allowed = set(left.isfinite().nonzero().flatten().tolist())
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    rows = [_sequence(seed=s, **options) for s in range(60)]
    drawn = {p.token for p in pick(logits.expand(60, -1), rows)}
    assert drawn <= allowed
    assert int(logits.argmax()) in drawn or float(left.softmax(-1).max()) < 0.3


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "seed": 7}
    alone = pick(logits[1:2], [_sequence(**options)])[0]
    neighbours = [_sequence(temperature=0.7, seed=1), _sequence(**options), _sequence(logprobs=2)]
    assert pick(logits, neighbours)[1] == alone


def test_repetition_is_penalised_as_transformers_does() -> None:
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(2))
    prompt, said = (3, -5, 4), (7, 7)
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 4, 7, 7]]), logits.clone())
    sequence = _sequence(prompt, said, repetition_penalty=1.7)
    assert pick(logits, [sequence])[0].token == int(wanted.argmax())
    assert int(wanted.argmax()) != int(logits.argmax()) or 7 not in (int(logits.argmax()),)


def test_presence_and_frequency_take_off_what_openai_says() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, on the answer's tokens alone."""
    logits = torch.tensor([[2.0, 1.9, 1.0]])
    picked = [
        pick(logits, [_sequence((0, 0, 0), said, presence_penalty=p, frequency_penalty=f)])[0].token
        for said, p, f in [((0,), 0.2, 0.0), ((0, 0), 0.0, 0.06), ((0,), 0.0, 0.06), ((), 2.0, 2.0)]
    ]
    assert picked == [1, 1, 0, 0]


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(3))
    rows = [_sequence(), _sequence(logprobs=3, repetition_penalty=9.0, temperature=2.0, seed=1)]
    silent, told = pick(logits, rows)
    assert (silent.logprob, silent.top) == (None, ())
    wanted = logits[1].log_softmax(-1)
    assert told.logprob == pytest.approx(float(wanted[told.token]))
    assert [t for t, _ in told.top] == wanted.topk(3).indices.tolist()


def test_without_a_seed_two_requests_draw_differently() -> None:
    logits = torch.zeros(1, 1000)
    rows = [_sequence(temperature=1.0) for _ in range(5)]
    assert len({p.token for p in pick(logits.expand(5, -1), rows)}) > 1
