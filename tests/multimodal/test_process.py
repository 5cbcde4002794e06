"""A backend in its own process: same events, and what happens when that process dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from encoders.dicom import Volume, load_volume
from encoders.errors import InvalidMessage, ModelError, ModelNotFound, ModelUnavailable
from multimodal.backends import (
    DEMO,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Token,
    Usage,
    collect,
    load_backend,
)
from multimodal.measures import Distribution, Measured
from multimodal.messages import Study, user
from multimodal.process import NICE, BackendProcess
from tests import makers
from tests.waiting import PATIENCE_S, wait_until

MEASURED = Measured(
    {("hits", "image"): 2.0}, {("a_seconds", ""): Distribution((1.0,), (3, 1), 4.5)}
)


@dataclass
class Scripted(makers.FakeBackend):
    """Does what the prompt's first word says; made in the child. Counts prompts that were closed."""

    def __post_init__(self) -> None:
        self.closed_prompts: dict[str, float] = {}
        self.lost = False

    def generate(self, messages: Any, options: Any = None) -> Iterator[Token | Finished]:
        match messages[-1].text.split()[0]:
            case "refuse":
                raise InvalidMessage("part 3 is no picture")
            case "break":
                raise RuntimeError("patient Zebra")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "lose":
                self.lost = True
            case "endless":
                return self._endless(messages[-1].text)
        return super().generate(messages, options)

    def _endless(self, prompt: str) -> Iterator[Token | Finished]:
        try:
            while True:
                yield Token("more ")
                time.sleep(0.01)
        finally:
            self.closed_prompts[prompt] = 1

    def load(self) -> Load:
        if self.lost:
            raise ModelUnavailable("a part of the model is gone")
        return Load(running=1, counters=dict(self.closed_prompts), measured=MEASURED)


def _fails() -> Any:
    raise ModelNotFound("no model at 'nowhere'")


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(phantom_series)


@pytest.fixture(scope="module")
def process() -> Iterator[BackendProcess]:
    answers = {"nodule": "right nodule"}
    process = BackendProcess(partial(Scripted, answers=answers))
    yield process
    process.close()


def test_calls_give_what_the_backend_itself_gives(process: BackendProcess) -> None:
    alone = Scripted(answers={"nodule": "right nodule"})
    asked = [user("a nodule ?")]
    assert list(process.generate(asked)) == list(alone.generate(asked))
    assert process.capabilities() == alone.capabilities()
    assert process.estimate(asked) == alone.estimate(asked) == Estimate(3, 256)
    assert process.novelty(Study(None)) == makers.NEAR  # type: ignore[arg-type]
    assert process.pid != os.getpid()
    wait_until(lambda: process.load().running == 1, "one runs")
    assert process.load().measured == MEASURED


def test_the_child_gives_way_to_whoever_asks_it(process: BackendProcess) -> None:
    assert process.pid is not None
    mine, its = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, process.pid))
    assert its == min(mine + NICE, 19)


def test_an_error_of_one_request_crosses_and_hurts_no_other(process: BackendProcess) -> None:
    other = process.generate([user("endless")])
    assert next(other) == Token("more ")
    with pytest.raises(InvalidMessage, match="part 3 is no picture"):
        collect(process.generate([user("refuse")]))
    with pytest.raises(ModelError, match="RuntimeError") as failed:
        collect(process.generate([user("break")]))
    assert "Zebra" not in str(failed.value)
    assert next(other) == Token("more ")
    other.close()


def test_closing_an_answer_cancels_it_in_the_child_even_from_another_thread(
    process: BackendProcess,
) -> None:
    stream = process.generate([user("endless closed")])
    seen: list[Any] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    wait_until(lambda: seen, "it is seen")
    stream.close()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
    wait_until(lambda: "endless closed" in process.load().counters, "it is closed")


def test_a_dropped_answer_is_cancelled(process: BackendProcess) -> None:
    next(process.generate([user("endless dropped")]))
    wait_until(lambda: "endless dropped" in process.load().counters, "it is dropped")


def test_when_the_process_is_killed_everyone_waiting_is_told_and_it_comes_back() -> None:
    process = BackendProcess(Scripted)
    streams = [process.generate([user("endless")]) for _ in range(5)]
    for stream in streams:
        assert next(stream) == Token("more ")
    assert process.pid is not None
    first = process.pid
    os.kill(first, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(ModelUnavailable, match="started again"):
            collect(stream)
    wait_until(lambda: process.restarts == 1, "it is started again")
    process.wait_ready(PATIENCE_S)
    assert process.alive
    assert process.pid != first
    assert collect(process.generate([user("list")])).text == "no findings"
    with pytest.raises(ModelUnavailable, match="started again"):  # a request that kills it
        collect(process.generate([user("die")]))
    process.close()
    assert not process.alive


def test_a_backend_that_cannot_say_how_busy_it_is_is_started_again_with_its_process() -> None:
    """As one of several ranks does whose neighbour died: its process lives and can answer nobody."""
    process = BackendProcess(Scripted)
    other = process.generate([user("endless")])
    assert next(other) == Token("more ")
    with suppress(ModelUnavailable):  # it may be gone before its answer is through
        collect(process.generate([user("lose")]))
    with pytest.raises(ModelUnavailable, match="started again"):
        collect(other)
    wait_until(lambda: process.restarts == 1, "it is started again")
    process.wait_ready(PATIENCE_S)
    assert collect(process.generate([user("list")])).text == "no findings"
    process.close()


def test_a_process_that_stands_still_is_not_alive() -> None:
    process = BackendProcess(Scripted, silent_s=1.0)
    wait_until(lambda: process.alive, "it lives")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: not process.alive, "it is dead")
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: process.alive, "it lives")
    process.close()


def test_requests_under_way_end_as_cancelled_when_it_is_closed() -> None:
    process = BackendProcess(Scripted)
    stream = process.generate([user("endless")])
    next(stream)
    process.close()
    assert collect(stream) == Finished("", "cancelled", Usage(0, 0, 0))
    with pytest.raises(ModelUnavailable):
        process.generate([user("list")])


def test_a_model_that_cannot_be_loaded_is_told_at_once_and_not_tried_again() -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        BackendProcess(_fails)
    process = BackendProcess(_fails, wait=False)
    with pytest.raises(ModelNotFound, match="nowhere"):
        process.wait_ready(PATIENCE_S)
    assert process.restarts == 0


def test_what_cannot_be_sent_to_another_process_is_refused_rather_than_waited_for() -> None:
    with pytest.raises(ModelError, match="cannot be sent to another process"):
        BackendProcess(lambda: makers.FakeBackend())


@pytest.mark.slow
def test_a_killed_engine_tells_all_who_wait_and_answers_again_as_before(volume: Volume) -> None:
    """The demo in its process: a study, a picture of it and text at once, then SIGKILL."""
    load = partial(load_backend, DEMO, device="cpu")
    here, process = load(), BackendProcess(load)
    asked = [[user(Study(volume), "List the findings.")], [user("Is there a nodule?")]]
    options = GenerateOptions(max_new_tokens=24)
    wanted = [collect(here.generate(one, options)).text for one in asked]
    assert [collect(s).text for s in [process.generate(a, options) for a in asked]] == wanted
    assert process.estimate(asked[0], options) == here.estimate(asked[0], options)
    numbers = '{"type": "array", "items": {"type": "integer"}, "minItems": 1000}'
    endless = GenerateOptions(max_new_tokens=700, json_schema=numbers)
    streams = [process.generate(asked[1], endless) for _ in range(12)]
    for stream in streams:
        next(stream)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(ModelUnavailable, match="started again"):
            collect(stream)
    wait_until(lambda: process.restarts == 1, "it is started again")
    process.wait_ready(PATIENCE_S)
    assert [collect(process.generate(one, options)).text for one in asked] == wanted
    here.close()
    process.close()
