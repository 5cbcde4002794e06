"""The dtype by trying: what is chosen follows from what steps cost, and is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.errors import InvalidOption
from multimodal.backends import GenerateOptions, collect, load_backend
from multimodal.engine import precision
from multimodal.engine.adaptive import Adaptive
from multimodal.engine.precision import fastest, step_seconds
from multimodal.messages import user
from tests import makers


@pytest.mark.parametrize(
    ("bfloat16_s", "is_native", "wanted"),
    [
        (0.006, True, torch.bfloat16),
        (0.0098, True, torch.float32),
        (0.02, True, torch.float32),
        (0.006, False, torch.float32),
    ],
)
def test_bfloat16_is_chosen_only_where_whole_steps_are_clearly_faster_and_not_emulated(
    bfloat16_s: float, is_native: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = makers.backbone("llama")
    tried: list[tuple[torch.dtype, int]] = []

    def seconds(copied: Any, adaptive: Adaptive, rows: int) -> float:
        tried.append((copied.dtype, rows))
        return bfloat16_s if copied.dtype == torch.bfloat16 else 0.010

    monkeypatch.setattr(precision, "step_seconds", seconds)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: is_native)
    chosen = fastest(model, Adaptive("throughput"))
    assert chosen.dtype == wanted
    assert tried == [(d, 32) for d in (torch.float32, torch.bfloat16)[: 1 + is_native]]
    assert str(chosen).startswith("the fastest in a step of 32 rows: float32 10.0 ms")
    assert model.dtype == torch.float32  # itself left alone


def test_every_objective_tries_the_steps_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = makers.backbone("llama"), []

    def seconds(_model: Any, _adaptive: Adaptive, given: int) -> float:
        rows.append(given)
        return 1.0

    monkeypatch.setattr(precision, "step_seconds", seconds)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    for objective in ("throughput", "even", "ttft"):
        fastest(model, Adaptive(objective))
    assert rows == sorted(rows)
    assert len(set(rows)) == 3


def test_a_step_of_more_rows_costs_more_and_the_trial_leaves_no_thread() -> None:
    import threading

    before = set(threading.enumerate())
    adaptive = Adaptive()
    assert step_seconds(makers.backbone("llama"), adaptive, 8) > 0
    cost = adaptive.cost()
    assert cost is not None
    assert cost.of(8) < cost.of(800)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("kind", ["deepseek_llm", "composite"])
def test_a_checkpoint_loaded_fastest_answers_in_the_dtype_that_its_doctor_tells(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    if kind == "composite":
        model, processor = makers.tiny_composite(tmp_path)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    backend = load_backend(tmp_path if kind == "composite" else checkpoint(kind), dtype="fastest")
    told = {c.what: c for c in backend.diagnose().choices}["dtype"]  # type: ignore[attr-defined]
    assert told.value == str(backend.model.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
    assert told.why.startswith("the fastest in a step of 96 rows: float32 ")
    answer = collect(backend.generate([user("hello")], GenerateOptions(max_new_tokens=3)))
    assert answer.usage.new_tokens > 0
    backend.close()


def test_nothing_is_tried_where_no_engine_runs_the_steps(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidOption, match="no steps of an engine to try"):
        load_backend(checkpoint("gemma3"), dtype="fastest")
    with pytest.raises(InvalidOption, match="in one process on one device"):
        load_backend(checkpoint("deepseek_llm"), dtype="fastest", tensor_parallel=2)
