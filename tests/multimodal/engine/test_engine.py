"""The engine against transformers' own `generate`, one request at a time, token for token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import ContextOverflow, InvalidPixels, ModelError
from multimodal.backends import GenerateOptions
from multimodal.engine.engine import Engine
from multimodal.engine.runner import PackedRunner, PlainRunner, why_not_packed
from multimodal.engine.scheduler import Limits
from multimodal.engine.sequence import Ended, Outcome, Picked, Scored, Sequence
from tests import makers

WAIT_S = 120
PACKED = ("llama", "qwen2", "qwen3", "phi3", "olmoe", "qwen2_moe")
PLAIN = ("gemma2", "mistral", "deepseek_v2", "deepseek_v3")


@dataclass
class Heard:
    """What was told of one request."""

    outcomes: list[Outcome] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    on_token: Callable[[int], bool] = lambda number: True

    def tell(self, outcome: Outcome) -> bool:
        self.outcomes.append(outcome)
        if not isinstance(outcome, Picked | Scored):
            self.ended.set()
        return not isinstance(outcome, Picked) or self.on_token(len(self.tokens))

    @property
    def tokens(self) -> list[int]:
        return [o.token for o in self.outcomes if isinstance(o, Picked)]

    @property
    def end(self) -> Outcome:
        assert self.ended.wait(WAIT_S), "the request never ended"
        return self.outcomes[-1]


class Bench:
    """A model with its engine and prompts; remembers what `generate` gives."""

    def __init__(
        self, kind: str, dtype: torch.dtype = torch.float32, num_places: int = 4096
    ) -> None:
        self.model = makers.backbone(kind).to(dtype)
        runner: Any = PackedRunner if kind in PACKED else PlainRunner
        arguments = (self.model, num_places) if kind in PACKED else (self.model,)
        self.limits = Limits()
        with torch.inference_mode():
            self.engine = Engine(runner(*arguments), lambda: self.limits)
        self._known: dict[tuple[Any, ...], list[int]] = {}

    def prompt(self, seed: int, length: int) -> list[int]:
        return np.random.default_rng(seed).integers(3, 96, length).tolist()

    def alone(self, prompt: list[int], num_new: int) -> list[int]:
        key = (tuple(prompt), num_new)
        if key not in self._known:
            ids = torch.tensor([prompt])
            whole = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False,
                eos_token_id=None,
            )  # fmt: skip
            self._known[key] = whole[0, len(prompt) :].tolist()
        return self._known[key]

    def ask(self, prompt: list[int], num_new: int = 6, **more: Any) -> tuple[Sequence, Heard]:
        heard = more.pop("heard", None) or Heard()
        choices = more.pop("choices", ())
        with torch.inference_mode():
            embeds = self.model.get_input_embeddings()(torch.tensor(prompt))
        options = GenerateOptions(max_new_tokens=num_new, **more)
        content = np.array(prompt, np.int64)
        sequence = Sequence(options, embeds, content, heard.tell, choices=choices)
        self.engine.submit(sequence)
        return sequence, heard


_BENCHES: dict[str, Bench] = {}


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    for bench in _BENCHES.values():
        bench.engine.close()
    _BENCHES.clear()


def bench_of(kind: str) -> Bench:
    if kind not in _BENCHES:
        _BENCHES[kind] = Bench(kind)
    return _BENCHES[kind]


def idle(bench: Bench) -> None:
    """Nobody runs or waits, and no place is held."""
    end = time.monotonic() + WAIT_S
    while (load := bench.engine.load()).running or load.waiting:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert load.kv_used == 0.0
    assert load.backlog_tokens == 0


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*PACKED, *PLAIN])
def test_every_answer_equals_plain_generate(kind: str) -> None:
    bench = bench_of(kind)
    bench.limits = Limits(slots=5, chunk=7)
    asked = [(bench.prompt(i, 1 + 5 * i), 3 + i % 5) for i in range(9)]
    heard = [bench.ask(*one)[1] for one in asked]
    for (prompt, num_new), one in zip(asked, heard, strict=True):
        assert one.end == Ended("length")
        assert one.tokens == bench.alone(prompt, num_new)
    idle(bench)


def test_answers_in_bfloat16_are_plain_passes_but_for_rounding() -> None:
    """Where two tokens are as likely to eight bits, either may come: no other."""
    bench = Bench("llama", torch.bfloat16)
    bench.limits = Limits(slots=5, chunk=7)
    asked = [bench.prompt(i, 1 + 5 * i) for i in range(6)]
    heard = [bench.ask(prompt, 6)[1] for prompt in asked]
    for prompt, one in zip(asked, heard, strict=True):
        assert one.end == Ended("length")
        with torch.inference_mode():
            logits = bench.model(torch.tensor([prompt + one.tokens])).logits[0].float()
        rows = logits[len(prompt) - 1 : -1]
        picked = rows.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
        assert bool((rows.amax(1) - picked <= 0.02 * rows.abs().amax(1)).all())
    idle(bench)
    bench.engine.close()


request = st.tuples(st.integers(0, 12), st.integers(1, 40), st.integers(1, 9), st.booleans())


@given(
    requests=st.lists(request, min_size=1, max_size=10),
    slots=st.integers(1, 6),
    chunks=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    kind=st.sampled_from(["llama", "qwen3"]),
)
@settings(max_examples=60)
def test_answers_stay_exact_whatever_slots_chunks_arrivals_and_cancels(
    requests: list[tuple[int, int, int, bool]], slots: int, chunks: list[int], kind: str
) -> None:
    """Chunks change at each step; requests come while others run, share prompts, and are cancelled."""
    bench = bench_of(kind)
    steps = iter(chunks * 10_000)
    engine = bench.engine
    engine.limits = lambda: Limits(slots, next(steps))
    asked = []
    for seed, length, num_new, cancelled in requests:
        prompt = bench.prompt(seed % 5, length)  # few seeds: beginnings are shared
        sequence, heard = bench.ask(prompt, num_new)
        asked.append((prompt, num_new, heard, cancelled))
        if cancelled:
            engine.cancel(sequence)
        elif seed % 3 == 0:
            heard.ended.wait(WAIT_S)  # the next comes when this one is through
    for prompt, num_new, heard, cancelled in asked:
        wanted = bench.alone(prompt, num_new)
        if cancelled and heard.end == Ended("cancelled"):
            assert heard.tokens == wanted[: len(heard.tokens)]
        else:
            assert heard.end == Ended("length")
            assert heard.tokens == wanted
    engine.limits = lambda: bench.limits
    idle(bench)


@pytest.mark.parametrize("kind", ["llama", "qwen2_moe", "gemma2", "deepseek_v3"])
def test_scores_of_choices_equal_plain_forward_passes_beside_other_answers(kind: str) -> None:
    bench = bench_of(kind)
    bench.limits = Limits(slots=4, chunk=9)
    choices = ((5,), (6, 7, 8), (9, 10), (6, 7, 11))
    prompt = bench.prompt(1, 21)
    beside = bench.ask(bench.prompt(2, 30), 8)[1]
    heard = bench.ask(prompt, choices=choices)[1]
    assert heard.end == Ended("stop")
    (scored,) = [o for o in heard.outcomes if isinstance(o, Scored)]
    for choice, score in zip(choices, scored.scores, strict=True):
        ids = torch.tensor([[*prompt, *choice]])
        with torch.no_grad():
            logits = bench.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        rows = logits.log_softmax(-1).gather(1, torch.tensor(choice)[:, None])
        assert score == pytest.approx(float(rows.sum()), rel=1e-4)
    assert beside.end == Ended("length")
    assert beside.tokens == bench.alone(bench.prompt(2, 30), 8)


def test_the_models_own_attention_stays_as_it_was() -> None:
    bench = bench_of("llama")
    before = bench.model.config._attn_implementation
    padded = torch.tensor([[1, 1, 1, 5, 6], [7, 8, 9, 10, 11]])
    mask = (padded != 1).long()
    fresh = makers.backbone("llama")
    with torch.no_grad():
        own = bench.model(input_ids=padded, attention_mask=mask).logits
        wanted = fresh(input_ids=padded, attention_mask=mask).logits
    assert before != bench.engine.runner.model.config._attn_implementation  # type: ignore[attr-defined]
    assert torch.equal(own, wanted)


def test_models_that_cannot_be_packed_are_told_apart_by_their_reason() -> None:
    reasons = {kind: why_not_packed(makers.backbone(kind)) for kind in (*PACKED, *PLAIN)}
    assert {kind for kind, reason in reasons.items() if not reason} == set(PACKED)
    assert "MLA" in reasons["deepseek_v2"]
    assert "sliding" in reasons["gemma2"]


def test_a_model_whose_packed_passes_differ_is_found_by_trying() -> None:
    """A decoder that looks like any other but turns its keys by the row they come in."""
    from encoders.errors import IncompatibleModel

    model = makers.backbone("llama")
    attention = type(model.model.layers[0].self_attn)
    plain = attention.forward

    def odd(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        rows = torch.arange(hidden_states.shape[1])[None, :, None]
        return plain(self, hidden_states * (1 + rows), *args, **kwargs)

    attention.forward = odd
    try:
        with pytest.raises(IncompatibleModel, match="differs by"), torch.inference_mode():
            PackedRunner(model, 256)
    finally:
        attention.forward = plain


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_prompt_that_begins_like_a_finished_one_runs_only_its_own_end(kind: str) -> None:
    """For several beginnings in turn, as several studies under discussion give."""
    bench = Bench(kind)
    studies = [bench.prompt(100 + i, 60) for i in range(3)]
    for study in studies:
        bench.ask([*study, 4, 5])[1].end  # noqa: B018
    for question in ([7, 8, 9], [10, 11], [12]):
        for study in studies:
            before = bench.engine.counters.prompt_tokens
            prompt = [*study, *question]
            heard = bench.ask(prompt)[1]
            assert heard.end == Ended("length")
            assert heard.tokens == bench.alone(prompt, 6)
            assert bench.engine.counters.prompt_tokens - before == len(question)
    bench.engine.close()


def test_the_next_turn_of_a_conversation_runs_only_what_is_new() -> None:
    bench = Bench("llama")
    prompt = bench.prompt(5, 30)
    answer = bench.ask(prompt)[1]
    assert answer.end == Ended("length")
    before = bench.engine.counters.prompt_tokens
    turn = [*prompt, *answer.tokens, 8, 9]
    heard = bench.ask(turn)[1]
    assert heard.end == Ended("length")
    assert heard.tokens == bench.alone(turn, 6)
    assert bench.engine.counters.prompt_tokens - before == 3  # the last answered token was not run
    bench.engine.close()


def test_tenants_share_nothing() -> None:
    bench = Bench("llama")
    prompt = bench.prompt(6, 40)
    for tenant, reused in (("a", 0), ("b", 0), ("a", 39), ("b", 39)):
        sequence, heard = bench.ask(prompt, tenant=tenant)
        assert heard.end == Ended("length")
        assert sequence.reused == reused
        assert heard.tokens == bench.alone(prompt, 6)
    bench.engine.close()


def test_more_than_memory_holds_at_once_waits_and_still_comes_out_exact() -> None:
    bench = Bench("llama", num_places=120)
    asked = [(bench.prompt(i, 30 + 5 * i), 8) for i in range(8)]
    heard = [bench.ask(*one)[1] for one in asked]
    for (prompt, num_new), one in zip(asked, heard, strict=True):
        assert one.end == Ended("length")
        assert one.tokens == bench.alone(prompt, num_new)
    idle(bench)
    with pytest.raises(ContextOverflow, match="take 121 tokens, but there is memory for 120"):
        bench.ask(bench.prompt(0, 100), 22)
    bench.engine.close()


# --- isolation -----------------------------------------------------------------------------------


def test_the_poisoned_fail_alone_and_their_neighbours_stay_exact() -> None:
    """Of 24: NaN that arises within, embeddings of another width, a forward that raises, a cancel."""
    bench = Bench("llama")

    def trap(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        embeds = kwargs["inputs_embeds"]
        if bool((embeds[0, :, 0] == 1234.0).any()):
            raise RuntimeError("this one breaks the forward pass")
        ill = (embeds[..., :1] == 4321.0).expand_as(embeds)
        return args, {**kwargs, "inputs_embeds": embeds.masked_fill(ill, float("nan"))}

    bench.engine.runner.model.register_forward_pre_hook(trap, with_kwargs=True)  # type: ignore[attr-defined]
    bench.limits = Limits(slots=6, chunk=16)
    healthy, sick = [], []
    for i in range(24):
        prompt = bench.prompt(i, 10 + i)
        if i in (3, 9, 15):
            with torch.inference_mode():
                embeds = bench.model.get_input_embeddings()(torch.tensor(prompt)).clone()
                if i == 3:
                    embeds[4, 0] = 4321.0
                elif i == 9:
                    embeds = torch.zeros(len(prompt), 5)
                else:
                    embeds[2, 0] = 1234.0
            heard = Heard()
            content = np.array(prompt) + 1000 * i
            bench.engine.submit(Sequence(GenerateOptions(), embeds, content, heard.tell))
            sick.append(heard)
        elif i == 20:
            sequence, heard = bench.ask(prompt, 500)
            bench.engine.cancel(sequence)
            cancelled = heard
        else:
            healthy.append((prompt, bench.ask(prompt, 7)[1]))
    for prompt, heard in healthy:
        assert heard.end == Ended("length")
        assert heard.tokens == bench.alone(prompt, 7)
    assert isinstance(sick[0].end, InvalidPixels)
    assert isinstance(sick[1].end, RuntimeError)
    assert "breaks the forward" in str(sick[2].end)
    assert cancelled.end == Ended("cancelled")
    idle(bench)
    assert bench.engine.counters.failed == 3
    pool = bench.engine.runner.pool  # type: ignore[attr-defined]
    for run in pool._kept:
        for keys, values in pool._layers.values():
            places = slice(run.start, run.start + len(run.content))
            assert bool(keys[:, places].isfinite().all() and values[:, places].isfinite().all())
    bench.engine.close()


def test_what_is_not_finite_or_does_not_fit_is_refused_at_the_door() -> None:
    bench = bench_of("llama")
    embeds = torch.zeros(4, 32)
    embeds[1, 1] = float("nan")
    with pytest.raises(InvalidPixels, match="NaN or infinite embeddings"):
        bench.engine.submit(Sequence(GenerateOptions(), embeds, np.arange(4), bool))
    with pytest.raises(InvalidPixels, match="3 embeddings were made for a prompt of 4 tokens"):
        bench.engine.submit(Sequence(GenerateOptions(), torch.zeros(3, 32), np.arange(4), bool))


def test_a_failed_requests_places_are_wiped() -> None:
    bench = Bench("llama")

    def break_at_two(number: int) -> bool:
        if number == 2:
            raise ValueError("the listener breaks")
        return True

    heard = bench.ask(bench.prompt(1, 20), heard=Heard(on_token=break_at_two))[1]
    assert isinstance(heard.end, ValueError)
    idle(bench)
    pool = bench.engine.runner.pool  # type: ignore[attr-defined]
    assert pool.num_runs == (0, 0)
    assert all(not layer[0][:, :20].any() for layer in pool._layers.values())
    after = bench.ask(bench.prompt(2, 20))[1]
    assert after.end == Ended("length")
    assert after.tokens == bench.alone(bench.prompt(2, 20), 6)
    bench.engine.close()


# --- ends ----------------------------------------------------------------------------------------


def test_a_request_that_waits_or_runs_too_long_ends_as_timeout() -> None:
    bench = Bench("llama")
    bench.limits = Limits(slots=1)
    go = threading.Event()
    first = Heard(on_token=lambda number: go.wait(WAIT_S))
    bench.ask(bench.prompt(1, 5), 3, heard=first)
    waiting = bench.ask(bench.prompt(2, 5), queue_s=1e-3)[1]
    late = bench.ask(bench.prompt(3, 5), deadline_s=1e-3)[1]
    patient = bench.ask(bench.prompt(4, 5), queue_s=1e6, deadline_s=1e6)[1]
    end = time.monotonic() + 0.01
    while time.monotonic() < end:
        pass
    go.set()
    assert [h.end for h in (first, waiting, late, patient)] == [
        Ended("length"), Ended("timeout"), Ended("timeout"), Ended("length"),
    ]  # fmt: skip
    asked: list[Sequence] = []

    def let_time_pass(number: int) -> bool:
        go.wait(WAIT_S)
        if number == 3:
            asked[0].asked_s -= 1e9
        return True

    go.clear()
    sequence, running = bench.ask(
        bench.prompt(4, 5), 4000, deadline_s=1e6, heard=Heard(on_token=let_time_pass)
    )
    asked.append(sequence)
    go.set()
    assert running.end == Ended("timeout")
    assert len(running.tokens) == 3
    idle(bench)
    bench.engine.close()


def test_closing_ends_everyone_as_cancelled_and_takes_no_more() -> None:
    bench = Bench("llama")
    bench.limits = Limits(slots=1)
    slow = Heard(on_token=lambda number: not threading.Event().wait(0.02))
    heard = [
        bench.ask(bench.prompt(i, 5), 3000, heard=h)[1] for i, h in enumerate([slow, None, None])
    ]
    bench.engine.close()
    assert [h.end for h in heard] == [Ended("cancelled")] * 3
    with pytest.raises(ModelError, match="closed"):
        bench.ask([5, 6])


def test_load_counts_who_runs_waits_and_what_is_left() -> None:
    bench = Bench("llama")
    bench.limits = Limits(slots=2, chunk=64)
    go, began = threading.Event(), threading.Event()

    def hold(number: int) -> bool:
        began.set()
        return go.wait(WAIT_S)

    heard = [bench.ask(bench.prompt(1, 10), 4, heard=Heard(on_token=hold))[1]]
    heard += [bench.ask(bench.prompt(i, 10), 4)[1] for i in range(2, 5)]
    assert began.wait(WAIT_S)
    load = bench.engine.load()
    assert (load.running + load.waiting, load.slots) == (4, 2)
    assert load.backlog_tokens >= 20
    assert load.kv_used > 0
    go.set()
    assert all(h.end == Ended("length") for h in heard)
    idle(bench)
    load = bench.engine.load()
    assert load.tokens_per_s > 0
    assert load.counters["new_tokens"] == 16
    bench.engine.close()
