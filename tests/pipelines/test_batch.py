"""One bad input never loses the rest."""

from __future__ import annotations

import logging
import threading

import pytest

from encoders.errors import Unreachable, UnreadableFile
from pipelines.batch import Failed, run_at_once, run_each
from tests.waiting import PATIENCE_S


def fragile(value: int) -> int:
    if value == 1:
        raise UnreadableFile("'scan.zip' is broken; pack it again")
    if value == 2:
        raise ZeroDivisionError("Doe^John")
    return value * 10


def test_results_come_in_order_with_failures_in_their_place(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        results = list(run_each(range(4), fragile, "numbers"))
    assert results[0] == 0
    assert results[1] == Failed(1, "UnreadableFile", "'scan.zip' is broken; pack it again")
    assert results[3] == 30
    assert "numbers 1 failed: 'scan.zip' is broken" in caplog.text


def test_an_unforeseen_failure_is_told_without_its_words(caplog: pytest.LogCaptureFixture):
    results = list(run_each([2, 3], fragile, "numbers"))
    assert isinstance(results[0], Failed)
    assert results[0].error == "ZeroDivisionError"
    assert results[1] == 30
    assert "Doe" not in results[0].message + caplog.text


def test_nothing_runs_before_it_is_asked_for():
    ran = []
    results = run_each([1, 2], ran.append, "things")
    assert ran == []
    next(results)
    assert ran == [1]


def test_an_interrupt_is_not_swallowed():
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_each([1], stop, "things"))


def test_what_is_under_way_when_a_server_goes_is_still_told():
    """The second input fails while the first is at work; a third is never begun."""
    failed, begun = threading.Event(), []

    def run(value: int) -> int:
        begun.append(value)
        if value == 2:
            failed.set()
            raise Unreachable("nobody answers")
        assert failed.wait(PATIENCE_S)
        return value

    outcomes = run_at_once([1, 2, 3], run, "things", 2)
    assert next(outcomes) == (1, 1)
    with pytest.raises(Unreachable, match="nobody answers"):
        next(outcomes)
    assert sorted(begun) == [1, 2]
