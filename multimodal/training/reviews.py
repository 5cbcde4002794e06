"""A checkpoint's review of reports: sentences alone, and whole reports as the pipeline judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multimodal import prompts
from multimodal.prompts import NamedFinding
from multimodal.review import (
    VERDICTS,
    Presence,
    ReviewWeights,
    claim_of,
    is_denial,
    lacking,
    left_out,
    mended,
    surest_unspoken,
    weigh,
)
from multimodal.training.cases import OMISSION, Talk
from multimodal.training.measures import Judged, Judgement
from multimodal.training.world.dialogues import Dialogue
from multimodal.training.world.mistakes import Faulty


@dataclass(frozen=True)
class Heeded:
    """What a model answered about one sentence: verdicts' probabilities, claim, size it measured."""

    said: Mapping[str, float]
    claim: NamedFinding | None
    measured_mm: float | None


def heed(sentences: Sequence[str], talk: Talk, names: Sequence[str]) -> list[Heeded]:
    """Ask for the verdict on every sentence, and for the size of what one gives a size of."""
    asked = [prompts.CHECK_SENTENCE.format(sentence=text) for text in sentences]
    said = [answer.choices for answer in talk.ask_all(asked, VERDICTS)]
    claims = [claim_of(text, names) for text in sentences]
    sized = [
        number
        for number, claim in enumerate(claims)
        if claim and claim.size_mm and not is_denial(said[number])
    ]
    answers = talk.ask_all([_size_of(claims[number]) for number in sized])
    sizes = {n: prompts.parse_size_mm(a.text) for n, a in zip(sized, answers, strict=True)}
    return [Heeded(said[n], claims[n], sizes.get(n)) for n in range(len(sentences))]


def _size_of(claim: NamedFinding | None) -> str:
    assert claim is not None
    return prompts.ask_size(claim.name, claim.side)


def judge(questions: Sequence[Dialogue], talk: Talk) -> list[Judged]:
    """Sentences checked one by one: the surest verdict, and the answer as it is written."""
    asked = [q.question for q in questions]
    found = []
    for question, verdict, answer in zip(
        questions, talk.ask_all(asked, VERDICTS), talk.ask_all(asked), strict=True
    ):
        chances = verdict.choices
        kind, wrong = max(chances, key=lambda k: chances[k]), 1 - chances[prompts.AGREES]
        found.append(Judged(question.label, kind, wrong, answer.text == question.answer))
    return found


def judge_report(
    report: Faulty, talk: Talk, presence: Presence, weights: ReviewWeights | None
) -> Judgement:
    """A whole report judged as the pipeline does: sentence by sentence, then what it leaves out."""
    names = sorted({name for name, _ in presence})
    texts = [line.text for line in report.lines]
    heeded = heed(texts, talk, names)
    chances = [
        weigh(h.said, h.claim, presence, measured_mm=h.measured_mm, weights=weights)
        if weights
        else h.said
        for h in heeded
    ]
    wrong = [1 - chance[prompts.AGREES] for chance in chances]
    doubted = [number for number, chance in enumerate(wrong) if chance >= 0.5]
    asked = [prompts.CHECK_SENTENCE.format(sentence=texts[number]) for number in doubted]
    said: dict[tuple[str, int], str | None] = {}
    kept: list[str | None] = list(texts)
    for number, answer in zip(doubted, talk.ask_all(asked), strict=True):
        kind = max(prompts.ERROR_TYPES, key=lambda error: chances[number][error])
        verdict = prompts.parse_verdict(answer.text)
        written = verdict.correction if verdict and verdict.error == kind else None
        right = mended(texts[number], kind, heeded[number].measured_mm, written)
        said[kind, number] = right
        kept[number] = None if kind == "insertion" else right or texts[number]
    missing = _left_out([text for text in kept if text], talk, presence, names, weights)
    if missing.chance >= 0.5:
        said["omission", -1] = missing.sentence
    return _judgement(report, said, wrong, missing.chance)


@dataclass(frozen=True)
class Missing:
    """How likely a report leaves something out, and the sentence that it lacks."""

    chance: float
    sentence: str | None = None


def _left_out(
    kept: Sequence[str], talk: Talk, presence: Presence, names: Sequence[str],
    weights: ReviewWeights | None,
) -> Missing:  # fmt: skip
    prompt = prompts.FIND_OMISSION.format(report=" ".join(kept))
    chance = talk.ask(prompt, OMISSION).choices["omission"]
    unspoken = surest_unspoken(presence, kept, names)
    if weights is not None:
        chance = left_out(chance, unspoken[1] if unspoken else 0.0, weights)
    if chance < 0.5:
        return Missing(chance)
    verdict = prompts.parse_verdict(talk.ask(prompt).text)
    missing = verdict.correction if verdict else None
    return Missing(chance, lacking(unspoken[0], missing) if weights and unspoken else missing)


def _judgement(
    report: Faulty, said: Mapping[tuple[str, int], str | None], wrong: Sequence[float],
    missing: float,
) -> Judgement:  # fmt: skip
    right: dict[tuple[str, int], tuple[str | None, ...]] = {
        (str(line.mistake.verdict.error), number): (line.mistake.verdict.correction,)
        for number, line in enumerate(report.lines)
        if line.mistake
    }
    if report.left_out:
        right["omission", -1] = report.lacking
    mended_so = tuple(
        (point[0], point in said and _plain(said[point]) in map(_plain, sentences))
        for point, sentences in right.items()
    )
    stated = [(line.mistake is not None, p) for line, p in zip(report.lines, wrong, strict=True)]
    stated.append((bool(report.left_out), missing))
    sure = max(chance for _, chance in stated)
    return Judgement(
        report.wrong, sure, frozenset(right), frozenset(said), tuple(stated), mended_so
    )


def _plain(sentence: str | None) -> str:
    """Without what nobody would call another sentence: case, spaces and the full stop."""
    return " ".join((sentence or "").casefold().split()).rstrip(".。 ")
