"""A whole report as the card counts it: every planted mistake once, found or not, mended or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from multimodal import prompts
from multimodal.heard import Piece
from multimodal.measuring import Measuring
from multimodal.prompts import SIZES, NamedFinding, Verdict
from multimodal.review import VERDICTS, Key, ReviewWeights
from multimodal.training.cases import Talk
from multimodal.training.measures import Mended
from multimodal.training.reviews import judge_report, without_typos
from multimodal.training.world.mistakes import Faulty, Line, Mistake, faulty_report
from multimodal.training.world.reports import Writer
from multimodal.training.world.worlds import WORLDS

WEIGHTS = ReviewWeights(1.0, 0.3, {}, (0.7, 0.7, 0.0))
NODULE, EFFUSION = ("nodule", "right"), ("pleural effusion", "left")


class Oracle:
    """Knows the truth of a report and answers as a perfect model would, or doubts everything."""

    seen: Mapping[Key, float] = MappingProxyType({})
    believed = Talk.believed

    def __init__(
        self,
        report: Faulty,
        sure: float,
        truth: Sequence[NamedFinding] = (),
        measured: Mapping[Key, float] = MappingProxyType({}),
    ) -> None:
        self.sure, self.truth = sure, truth
        self.right = {
            line.text: line.mistake.verdict if line.mistake else Verdict(None)
            for line in report.lines
        }
        self.report = report
        self.measured = measured

    def ask_all(self, asked: Sequence[str], choices: tuple[str, ...] = ()) -> list[Any]:
        return [self.ask(prompt, choices) for prompt in asked]

    def ask(self, prompt: str, choices: tuple[str, ...] = ()) -> Any:
        if prompt.startswith(prompts.FIND_OMISSION.partition("{")[0]):
            missing = [text for text in self.report.lacking if text not in prompt]
            out, answer = bool(missing), f"omission: {missing[0]}" if missing else "nothing"
            return self._said(answer, prompts.NOTHING_OMITTED, "omission", out, choices)
        if prompt.startswith("How large"):
            sized = {prompts.ask_size(f.name, f.side): f.size_mm for f in self.truth}
            return SimpleNamespace(text=f"{sized.get(prompt) or 14.0:.0f} mm", choices={})
        sentence = prompt.removeprefix(prompts.CHECK_SENTENCE.format(sentence=""))
        verdict = self.right[sentence]
        return self._said(
            prompts.format_verdict(verdict), prompts.AGREES, str(verdict.error),
            verdict.error is not None, choices,
        )  # fmt: skip

    def _said(
        self, text: str, right: str, wrong: str, is_wrong: bool, choices: tuple[str, ...]
    ) -> Any:
        likely = wrong if is_wrong else right
        rest = (1 - self.sure) / max(len(choices) - 1, 1)
        return SimpleNamespace(
            text=text, choices={c: self.sure if c == likely else rest for c in choices}
        )


def _presence(truth: Sequence[NamedFinding], findings: Any) -> dict[Any, float]:
    there = {(f.name, f.side) for f in truth}
    keys = [(n, s) for n, sided in findings for s in (("right", "left") if sided else (None,))]
    return {key: 0.999 if key in there else 0.001 for key in keys}


@pytest.mark.parametrize("seed", range(40))
def test_a_model_that_knows_all_finds_and_mends_every_mistake(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, vocabulary = WORLDS["body"].truth(rng)
    report = faulty_report(Writer(truth, rng, vocabulary))
    found = judge_report(
        report, Oracle(report, 0.999, truth), _presence(truth, vocabulary.findings), None  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.said == found.true
    assert found.wrong == report.wrong == bool(found.true)
    assert all(point.exact for point in found.mended)
    assert len(found.stated) == len(report.lines) + 1


def _planted() -> Faulty:
    """A nodule said to be left is right; an effusion that is there is not spoken of."""
    said, meant = (
        "There is a 14 mm nodule in the left lung.",
        "There is a 14 mm nodule in the right lung.",
    )
    mistake = Mistake(said, Verdict("direction", meant), NamedFinding("nodule", "left", 14.0))
    line = Line(said, mistake.about, mistake=mistake)
    missing = NamedFinding(*EFFUSION)  # type: ignore[arg-type]
    return Faulty((line,), (missing,), ("There is a left pleural effusion.",))


def test_what_is_seen_finds_what_the_words_leave_open() -> None:
    report = _planted()
    seen = {
        NODULE: 0.99,
        ("nodule", "left"): 0.01,
        EFFUSION: 0.98,
        ("pleural effusion", "right"): 0.01,
    }
    undecided = Oracle(report, 1 / len(VERDICTS))
    found = judge_report(report, undecided, seen, ReviewWeights(1.0, 1.0, {}, (0.0, 1.0, 0.0)))  # type: ignore[arg-type]
    assert found.said == found.true == {("direction", 0), ("omission", -3)}
    assert set(found.mended) == {Mended("direction", True, True), Mended("omission", True, True)}
    nothing = dict.fromkeys(seen, 0.5)
    blind = judge_report(report, undecided, nothing, WEIGHTS)  # type: ignore[arg-type]
    assert ("direction", 0) not in blind.said


def test_a_measure_decides_what_the_words_leave_open_as_in_the_pipeline() -> None:
    said, meant = (f"There is a {mm} mm nodule in the right lung." for mm in (40, 20))
    mistake = Mistake(said, Verdict("size", meant), NamedFinding("nodule", "right", 40.0))
    report = Faulty((Line(said, mistake.about, mistake=mistake),), ())

    class Even(Oracle):
        def ask(self, prompt: str, choices: tuple[str, ...] = ()) -> Any:
            if prompt.startswith("How large"):
                return SimpleNamespace(text="", choices=dict.fromkeys(SIZES, 1 / len(SIZES)))
            return super().ask(prompt, choices)

    seen = {NODULE: 0.999, ("nodule", "left"): 0.001}
    measuring = replace(WEIGHTS, seen=1.0, measure=Measuring(1.0, {"nodule": 0.02}))
    even = Even(report, 1 / len(VERDICTS), measured={NODULE: 20.0})
    found = judge_report(report, even, seen, measuring)  # type: ignore[arg-type]
    assert found.said == {("size", 0)}
    assert found.mended == (Mended("size", True, True),)
    even.measured = {NODULE: 40.0}
    agreeing = judge_report(report, even, seen, measuring)  # type: ignore[arg-type]
    assert ("size", 0) not in agreeing.said


def test_a_mistake_that_is_not_found_is_not_mended() -> None:
    report = _planted()
    wrong = Oracle(Faulty((Line(report.lines[0].text, report.lines[0].about),), ()), 0.99)
    found = judge_report(report, wrong, {NODULE: 0.9, EFFUSION: 0.1}, None)  # type: ignore[arg-type]
    assert found.said == frozenset()
    assert found.mended == (Mended("direction", False, False), Mended("omission", False, False))


@pytest.mark.parametrize(
    ("measured", "exact", "near"),
    [
        ("20 mm", True, True),
        ("22 mm", False, True),
        ("23 mm", False, False),
        ("17 mm", False, False),
    ],
)
def test_a_size_within_two_millimetres_or_a_tenth_is_told_from_an_exact_one(
    measured: str, exact: bool, near: bool
) -> None:
    said, meant = (f"There is a {mm} nodule in the right lung." for mm in ("40 mm", "20 mm"))
    mistake = Mistake(said, Verdict("size", meant), NamedFinding("nodule", "right", 40.0))
    report = Faulty((Line(said, mistake.about, mistake=mistake),), ())
    seen = {NODULE: 0.999, ("nodule", "left"): 0.001}

    class Measures(Oracle):
        def ask(self, prompt: str, choices: tuple[str, ...] = ()) -> Any:
            if prompt.startswith("How large"):
                return SimpleNamespace(text="", choices={f"{measured} mm": 1.0})
            return super().ask(prompt, choices)

    found = judge_report(report, Measures(report, 0.999), seen, WEIGHTS)  # type: ignore[arg-type]
    assert found.mended == (Mended("size", exact, near),)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_the_model_does_not_word_itself_it_is_asked_for_by_a_denial(language: str) -> None:
    """It is sure that something is left out, and names something else."""
    lines, lack = {
        "en": ("No pericardial effusion.", "There is a 9 mm left kidney stone."),
        "zh": ("未见腹水。", "左肾结石，大小约9 mm。"),
    }[language]
    denial = {"en": "No left kidney stone.", "zh": "左肾未见结石。"}[language]
    stone = NamedFinding("kidney stone", "left", 9.0)
    report = Faulty((Line(lines, NamedFinding("ascites")),), (stone,), (lack,))

    class NamesAnother(Oracle):
        def ask(self, prompt: str, choices: tuple[str, ...] = ()) -> Any:
            if prompt == prompts.CHECK_SENTENCE.format(sentence=denial):
                return SimpleNamespace(text=f"omission: {lack}", choices={})
            told = super().ask(prompt, choices)
            if told.text.startswith("omission"):
                told.text = "omission: There is ascites."
            return told

    seen = {
        ("kidney stone", "left"): 0.99,
        ("kidney stone", "right"): 0.01,
        ("ascites", None): 0.01,
    }
    found = judge_report(report, NamesAnother(report, 0.999), seen, WEIGHTS)  # type: ignore[arg-type]
    assert found.mended == (Mended("omission", True, True),)


def test_a_report_is_dictated_without_its_misspellings_and_judged_for_all_else() -> None:
    """What is heard wrongly looks misspelt: a model that says so is not heeded."""
    meant = "There is a 14 mm nodule in the right lung."
    about = NamedFinding("nodule", "right", 14.0)
    typo = Mistake("There is a 14 mm noduel in the right lung.", Verdict("typo", meant), about)
    planted = _planted()
    report = replace(planted, lines=(Line(typo.text, about, mistake=typo), *planted.lines))
    spoken = without_typos(report)
    assert [line.text for line in spoken.lines] == [meant, planted.lines[0].text]
    assert [line.mistake for line in spoken.lines] == [None, planted.lines[0].mistake]

    misheard = replace(spoken, lines=(replace(spoken.lines[0], text=typo.text), *planted.lines))
    knows = Oracle(report, 0.99)  # and holds all else for as likely
    seen = {NODULE: 0.9, EFFUSION: 0.9}
    as_typed = judge_report(misheard, knows, seen, None)  # type: ignore[arg-type]
    heard = judge_report(misheard, knows, seen, None, surely=[1.0, 1.0])  # type: ignore[arg-type]
    assert as_typed.said == {("typo", 0), ("direction", 1), ("omission", -2)}
    assert heard.said == heard.true == {("direction", 1), ("omission", -2)}
    assert [wrong for wrong, _ in heard.stated] == [False, True, True]
    lines = tuple(replace(line, mistake=None) for line in misheard.lines[:1])
    alone = replace(misheard, lines=lines, left_out=(), lacking=())
    right = judge_report(alone, knows, {NODULE: 0.9}, WEIGHTS, surely=[1.0])  # type: ignore[arg-type]
    assert not right.said  # nor does it leave out what it was meant to say
    assert [chance >= 0.5 for _, chance in heard.stated] == [False, True, True]


@pytest.mark.parametrize(("surely", "told"), [(1.0, True), (0.6, True), (0.4, False)])
def test_what_was_hardly_said_so_is_no_mistake_of_a_dictated_report(
    surely: float, told: bool
) -> None:
    """The side that is wrong may have been misheard; nor is the finding taken for left out then."""
    planted = _planted()
    report = replace(planted, left_out=(), lacking=())
    knows, seen = Oracle(report, 0.999), {NODULE: 0.001, EFFUSION: 0.999}
    judged = judge_report(report, knows, seen, None, surely=[surely])  # type: ignore[arg-type]
    assert (("direction", 0) in judged.said) == told
    assert judged.stated[0][1] == pytest.approx(0.999 * surely, abs=0.01)


def test_dictating_is_measured_on_what_is_heard_of_the_report_as_it_should_be_spelt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from multimodal.training import evaluation
    from multimodal.training.world import dictation

    planted = _planted()
    meant, noduel = "There is a left pleural effusion.", "There is a left pleural efusion."
    about = NamedFinding(*EFFUSION)  # type: ignore[arg-type]
    typo = Mistake(noduel, Verdict("typo", meant), about)
    report = Faulty((Line(noduel, about, mistake=typo), *planted.lines), ())
    oracle: Any = Oracle(report, 0.999)
    oracle.right[meant] = Verdict(None)
    seen = {NODULE: 0.99, EFFUSION: 0.99}
    oracle.presence = lambda keys: {
        k: SimpleNamespace(choices={"yes": seen.get(k, 0.01)}) for k in keys
    }
    findings = (("nodule", True), ("pleural effusion", True))
    vocabulary = replace(WORLDS["body"].vocabularies[0], findings=findings, elsewhere=())
    case = SimpleNamespace(report=report, vocabulary=vocabulary)
    config = SimpleNamespace(review_weights=None)
    backend = SimpleNamespace(model=SimpleNamespace(config=config))
    monkeypatch.setattr(evaluation, "_backend", lambda _model: backend)
    monkeypatch.setattr(evaluation, "_cases", lambda _model, _seeds: [case])
    monkeypatch.setattr(evaluation, "Talk", lambda _backend, _case: oracle)
    spoken: list[str] = []
    monkeypatch.setattr(dictation, "synthesise", lambda text, _voice, _rng: spoken.append(text))

    def measured(hears: str, surely: float = 1.0) -> list[Any]:
        """Typed and dictated, where the first sentence is heard as that."""
        sure = iter([surely, 1.0])
        heard = iter([hears, planted.lines[0].text])

        def write_down(_backend: Any, _speech: Any, _rate_hz: int) -> Any:
            text = next(heard)
            return SimpleNamespace(text=text), (Piece(text, math.log(next(sure))),)

        monkeypatch.setattr(evaluation, "write_down", write_down)
        ways = evaluation.dictated_reports(None, range(1))  # type: ignore[arg-type]
        return [scores.reports for scores in ways]

    (typed,), (dictated,) = measured(meant)
    assert spoken == [meant, planted.lines[0].text]  # nobody says a misspelling
    assert typed.said == dictated.said == typed.true == dictated.true == {("direction", 1)}
    (typed,), (dictated,) = measured(noduel)
    assert dictated.said == typed.said  # what was misheard is none of the report's mistakes
    (typed,), (dictated,) = measured(planted.lines[0].text)
    assert dictated.said != typed.said  # another meaning is
    (typed,), (dictated,) = measured(planted.lines[0].text, 0.3)
    assert dictated.said == typed.said  # unless the model doubts that it was said
