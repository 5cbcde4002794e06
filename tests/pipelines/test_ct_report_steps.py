"""A reading as it is made: steps, the model's words, findings and points in order; stopping, asking on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from encoders.dicom import Volume, load_volume
from encoders.features import Problem
from multimodal.backends import Token
from pipelines.ct_report import CtReportPipeline
from pipelines.evidence import Discrepancy, Finding, Reading
from pipelines.session import ABSTAINS, Step, follow_up
from tests.makers import FakeBackend
from tests.pipelines.test_ct_report import LEFT, RIGHT, read


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(phantom_series)


def test_streaming_gives_everything_in_order_and_the_reading_last(volume: Volume):
    backend = FakeBackend(
        answers={"effusion": "insertion: remove", "Why?": "because of it"},
        chances={"a left nodule": 0.8, "images? Left effusion": 0.1},
        regions=(RIGHT, LEFT),
    )
    made = CtReportPipeline(backend)(volume, "Left effusion.", None, "Why?", stream=True)
    events = [e for e in made if not isinstance(e, Step)]
    kinds = [type(e) for e in events]
    assert kinds == [Finding, Discrepancy, Token, Token, Token, Reading]
    last = events[-1]
    assert isinstance(last, Reading)
    assert last.findings == (events[0],)
    assert last.discrepancies == (events[1],)
    assert last == replace(
        read(backend, volume, "Left effusion.", None, "Why?"), timings_s=last.timings_s
    )


def test_steps_tell_how_far_the_work_is(volume: Volume):
    report = "Left effusion. No nodule."
    backend = FakeBackend(answers={"Why?": "because of it"})
    made = CtReportPipeline(backend)(volume, report, None, "Why?", stream=True)
    steps = [e for e in made if isinstance(e, Step)]
    stages = list(dict.fromkeys(s.stage for s in steps))
    assert stages == ["read", "look", "findings", "review", "answer", "pictures"]
    for stage in ("findings", "review"):
        counted = [s.done for s in steps if s.stage == stage]
        assert counted == sorted(set(counted))
    assert [s.total for s in steps if s.stage == "review"] == [2, 2, 2]


def test_a_correction_is_shown_while_the_model_words_it(volume: Volume):
    backend = FakeBackend(
        answers={"effusion": "direction: Right effusion."}, chances={"images? Left effusion": 0.1}
    )
    made = list(CtReportPipeline(backend)(volume, "Left effusion.", stream=True))
    said = [e.words for e in made if isinstance(e, Step) and e.stage == "review" and e.words]
    assert len(said) > 1
    assert all(longer.startswith(words) for words, longer in pairwise(said))
    assert said[-1].strip() == "direction: Right effusion."
    assert next(e for e in made if isinstance(e, Discrepancy)).correction == "Right effusion."


def test_a_closed_stream_asks_the_model_nothing_more(volume: Volume):
    backend = FakeBackend()
    made = CtReportPipeline(backend)(volume, "Left effusion. No nodule.", stream=True)
    next(e for e in made if isinstance(e, Step) and e.stage == "findings")
    asked = len(backend.asked)
    made.close()
    assert len(backend.asked) == asked
    assert next(made, None) is None


def test_a_follow_up_is_answered_about_the_same_study_or_not_at_all(volume: Volume):
    backend = FakeBackend(answers={"Why?": "because of it"})
    reading = read(backend, volume)
    *tokens, last = follow_up(backend, volume, reading, "Why?")
    assert "".join(t.text for t in tokens).strip() == last.text == "because of it"
    away = replace(reading, warnings=(Problem("OUT_OF_RANGE", "far away"),))
    asked = len(backend.asked)
    *_, last = follow_up(backend, volume, away, "Why?")
    assert last.text == ABSTAINS
    assert len(backend.asked) == asked
