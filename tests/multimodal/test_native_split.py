"""A language model split over processes by an option: the same answers, or a refusal by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from encoders.errors import InvalidOption, ModelUnavailable
from multimodal.backends import DEMO, GenerateOptions, collect, load_backend
from multimodal.messages import user
from multimodal.native import NativeBackend
from multimodal.native_split import _free_port, _Job, _join
from multimodal.process import BackendProcess
from tests.multimodal.test_native_answers import SHORT, reference
from tests.waiting import wait_until

ASKED = [user("Is there a nodule?")]
NUMBERS = '{"type": "array", "items": {"type": "integer"}, "minItems": 1000}'
ENDLESS = GenerateOptions(max_new_tokens=4000, json_schema=NUMBERS)


@pytest.mark.slow
def test_two_ranks_answer_as_one_and_end_with_the_backend(
    checkpoint: Callable[[str], Path], native: Callable[[str], NativeBackend]
) -> None:
    """Started as `--tensor-parallel 2` starts them; over gloo, many requests at once."""
    pytest.importorskip("accelerate")
    whole = native("deepseek_llm")
    asked = [[user(f"Is there a nodule of {n} mm?")] for n in range(4)]
    chosen = GenerateOptions(choices=("yes", "no"))
    split = load_backend(checkpoint("deepseek_llm"), tensor_parallel=2)
    assert isinstance(split, NativeBackend)
    told: dict[int, str] = {}

    def ask(index: int) -> None:
        told[index] = collect(split.generate(asked[index], SHORT)).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [told[index] for index in range(len(asked))] == [reference(whole, t) for t in asked]
    expected = collect(whole.generate(asked[0], chosen)).choices
    assert collect(split.generate(asked[0], chosen)).choices == pytest.approx(expected, abs=1e-4)
    assert split.capabilities().one_by_one == ""
    choices = {choice.what: choice for choice in split.diagnose().choices}
    assert (choices["ranks"].value, choices["batching"].value) == ("2", "continuous")
    with pytest.raises(InvalidOption, match="leads a split model already"):
        load_backend(checkpoint("deepseek_llm"), tensor_parallel=2)
    others = split.loop._merger._others  # type: ignore[union-attr]
    split.close()
    assert [other.returncode for other in others] == [0]


@pytest.mark.slow
def test_a_killed_rank_is_told_to_all_who_wait_and_the_model_comes_back(
    checkpoint: Callable[[str], Path],
) -> None:
    """kill -9 of one rank's process under load; a share alone is no model, so all ranks start again."""
    psutil = pytest.importorskip("psutil")
    process = BackendProcess(partial(load_backend, checkpoint("deepseek_llm"), tensor_parallel=2))
    wanted = collect(process.generate(ASKED, SHORT)).text
    streams = [process.generate(ASKED, ENDLESS) for _ in range(4)]
    for stream in streams:
        next(stream)
    (other,) = psutil.Process(process.pid).children()
    other.kill()
    for stream in streams:
        with pytest.raises(ModelUnavailable, match="ended"):
            collect(stream)
    wait_until(lambda: not process.alive, "it is not ready")
    wait_until(lambda: process.restarts == 1, "it is started again")
    process.wait_ready()
    assert process.alive
    assert collect(process.generate(ASKED, SHORT)).text == wanted
    leader = psutil.Process(process.pid)
    (follower,) = leader.children()
    leader.kill()  # which leaves nobody behind
    wait_until(lambda: not follower.is_running(), "the other rank has ended")
    process.close()


@pytest.mark.slow
def test_without_one_of_its_ranks_a_model_in_this_process_refuses_at_once(
    checkpoint: Callable[[str], Path],
) -> None:
    pytest.importorskip("accelerate")
    split = load_backend(checkpoint("deepseek_llm"), tensor_parallel=2)
    stream = split.generate(ASKED, ENDLESS)
    next(stream)
    split.loop._merger._others[0].kill()  # type: ignore[attr-defined]
    with pytest.raises(ModelUnavailable, match="has to be loaded again"):
        collect(stream)
    with pytest.raises(ModelUnavailable, match="has to be loaded again"):
        collect(split.generate(ASKED, SHORT))
    wait_until(lambda: _refuses(split.load), "it says so")
    split.close()


def test_a_rank_that_ends_before_it_is_there_is_not_waited_for() -> None:
    lost = threading.Event()
    lost.set()
    with pytest.raises(ModelUnavailable, match="ended"):
        _join(0, _Job("nowhere", "auto", 2, _free_port(), 0), lost)


def _refuses(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ModelUnavailable:
        return True
    return False


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [("deepseek_llm", {"tensor_parallel": 10_000}, r"is 10000, but there (is|are) \d+ (GPU|core)"),
     ("deepseek_llm", {"tensor_parallel": 2, "device": "meta"}, "leave device meta out"),
     ("llava_onevision", {"tensor_parallel": 2}, "only read; leave it out, or serve"),
     (None, {"tensor_parallel": 2}, "only read; leave it out for a composite"),
     ("http://127.0.0.1:9/v1", {"tensor_parallel": 2}, "leave out device, .* tensor_parallel")],
)  # fmt: skip
def test_ranks_that_cannot_be_are_refused_by_name(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, model: str | None,
    options: dict[str, Any], why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    named = model if model is None or model.startswith("http") else checkpoint(model)
    with pytest.raises(InvalidOption, match=why):
        load_backend(named or DEMO, **options)
