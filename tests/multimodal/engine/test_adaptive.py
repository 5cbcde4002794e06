"""Limits from step costs: the closed form of a known cost, and that a choice never changes answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import InvalidOption
from multimodal.backends import GenerateOptions, collect
from multimodal.engine.adaptive import AIMS, Adaptive, Cost, chosen
from multimodal.engine.doctor import placed
from multimodal.local import LocalBackend
from multimodal.messages import user
from tests import makers


@given(fixed_ms=st.floats(0.1, 50), row_ms=st.floats(0.01, 5))
def test_the_cost_of_a_step_is_found_again_from_steps_of_several_sizes(
    fixed_ms: float, row_ms: float
) -> None:
    adaptive = Adaptive()
    for _ in range(3):
        for rows in (1, 5, 30, 160):
            adaptive.measured(rows, (fixed_ms + row_ms * rows) / 1e3)
    cost = adaptive.cost()
    assert cost is not None
    assert cost.fixed_s == pytest.approx(fixed_ms / 1e3, rel=1e-3)
    assert cost.row_s == pytest.approx(row_ms / 1e3, rel=1e-3)


@given(
    fixed_ms=st.floats(0.0, 100), row_ms=st.floats(0.001, 10), objective=st.sampled_from([*AIMS])
)
def test_slots_spread_the_fixed_cost_and_steps_keep_the_gap(
    fixed_ms: float, row_ms: float, objective: Any
) -> None:
    cost, aim = Cost(fixed_ms / 1e3, row_ms / 1e3), AIMS[objective]
    limits = chosen(cost, aim)
    if limits.slots < 128:
        assert cost.fixed_s <= aim.overhead * cost.of(limits.slots) + 1e-12
    if limits.slots > 4:
        assert cost.fixed_s > aim.overhead * cost.of(limits.slots // 2)
    if limits.chunk > 32:
        assert cost.of(limits.slots + limits.chunk) <= aim.gap_s + 1e-12


def test_objectives_differ_as_their_names_say() -> None:
    cost = Cost(2e-3, 0.5e-3)
    ttft, even, most = (chosen(cost, AIMS[o]) for o in ("ttft", "even", "throughput"))
    assert ttft.slots > even.slots
    assert even.chunk < ttft.chunk <= most.chunk


def test_before_anything_was_measured_the_defaults_hold() -> None:
    adaptive = Adaptive("ttft")
    assert adaptive.cost() is None
    assert adaptive.choose() == adaptive.limits()


def test_an_unknown_objective_is_refused_wherever_it_comes_from(
    tiny_composite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidOption, match="'speed'; use one of ttft, throughput, even"):
        Adaptive("speed")
    monkeypatch.setenv("CROSSREAD_OBJECTIVE", "quick")
    with pytest.raises(InvalidOption, match="quick"):
        LocalBackend(*tiny_composite)


@pytest.mark.parametrize("objective", [*AIMS])
def test_the_doctor_tells_every_choice_with_its_reason_and_changes_no_answer(
    objective: str, tiny_composite: Any
) -> None:
    backend = LocalBackend(*tiny_composite, objective=objective)
    asked, options = [user("list the findings")], GenerateOptions(max_new_tokens=5)
    before = collect(backend.generate(asked, options)).text
    told = backend.diagnose()
    assert [c.what for c in told.choices] == [
        "objective", "device", "dtype", "ranks", "threads", "batching", "slots", "chunk", "room", "weights",
        "MLPs",
    ]  # fmt: skip
    assert all(choice.value and choice.why for choice in told.choices)
    assert told.choices[0].value == objective
    assert len(told.step_seconds) >= 2
    assert collect(backend.generate(asked, options)).text == before
    assert told.to_dict()["choices"][0]["what"] == "objective"
    backend.close()


@pytest.mark.parametrize(
    ("dtype", "why"), [("float32", "exact; "), ("bfloat16", "asked for (float32")]
)
def test_the_doctor_calls_only_float32_exact(dtype: str, why: str) -> None:
    model = makers.backbone("llama").to(getattr(torch, dtype))
    told = {choice.what: choice for choice in placed(model, "; and what bfloat16 gains")}
    assert told["dtype"].value == dtype
    assert told["dtype"].why.startswith(why)
    assert told["dtype"].why.endswith("; and what bfloat16 gains")
