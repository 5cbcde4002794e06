"""A checkpoint's review of reports: sentences alone, and whole reports as the pipeline judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multimodal import prompts
from multimodal.prompts import NamedFinding
from multimodal.review import (
    MAX_OMISSIONS,
    OMISSION,
    VERDICTS,
    Presence,
    ReviewWeights,
    claim_of,
    denial,
    is_spoken,
    keys_of,
    lacking,
    left_out,
    mended,
    surest_unspoken,
    weigh,
)
from multimodal.training.cases import Talk
from multimodal.training.measures import Judged, Judgement
from multimodal.training.world.dialogues import Dialogue
from multimodal.training.world.mistakes import Faulty

_UNTOLD = 0.49  # the most that a point may be said to have that is not told


@dataclass(frozen=True)
class Heeded:
    """A sentence, what a model answered about it, and the size that it measured of its finding."""

    text: str
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
        if claim and claim.size_mm and denial(sentences[number], said[number]) < 0.5
    ]
    answers = talk.ask_all([_size_of(claims[number]) for number in sized])
    sizes = {n: prompts.parse_size_mm(a.text) for n, a in zip(sized, answers, strict=True)}
    return [Heeded(sentences[n], said[n], claims[n], sizes.get(n)) for n in range(len(sentences))]


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
    chances = [_weighed(h, presence, weights) if weights else h.said for h in heeded]
    wrong = [1 - chance[prompts.AGREES] for chance in chances]
    doubted = [number for number, chance in enumerate(wrong) if chance >= 0.5]
    asked = [prompts.CHECK_SENTENCE.format(sentence=texts[number]) for number in doubted]
    said: dict[tuple[str, int], str | None] = {}
    kept: list[str | None] = list(texts)
    for number, answer in zip(doubted, talk.ask_all(asked), strict=True):
        kind = max(prompts.ERROR_TYPES, key=lambda error: chances[number][error])
        verdict = prompts.parse_verdict(answer.text)
        written = verdict.correction if verdict and verdict.error == kind else None
        better = mended(texts[number], kind, heeded[number].measured_mm, written)
        said[kind, number] = better
        kept[number] = None if kind == "insertion" else better or texts[number]
    missing = _left_out([text for text in kept if text], talk, presence, weights)
    keys = list(presence)
    for lack in missing:
        if lack.chance >= 0.5:
            said["omission", _number(lack.sentence, presence)] = lack.sentence
    right: dict[tuple[str, int], str | None] = {
        (str(line.mistake.verdict.error), number): line.mistake.verdict.correction
        for number, line in enumerate(report.lines)
        if line.mistake
    }
    for finding, sentence in zip(report.left_out, report.lacking, strict=True):
        right["omission", -1 - keys.index((finding.name, finding.side))] = sentence
    exact = tuple(
        (point[0], point in said and _plain(said[point]) == _plain(sentence))
        for point, sentence in right.items()
    )
    stated = [(line.mistake is not None, p) for line, p in zip(report.lines, wrong, strict=True)]
    stated.append((bool(report.left_out), missing[0].chance))
    sure = max(chance for _, chance in stated)
    return Judgement(report.wrong, sure, frozenset(right), frozenset(said), tuple(stated), exact)


def _weighed(heeded: Heeded, presence: Presence, weights: ReviewWeights) -> dict[str, float]:
    return weigh(
        heeded.said, heeded.claim, presence, denied=denial(heeded.text, heeded.said),
        measured_mm=heeded.measured_mm, weights=weights,
    )  # fmt: skip


@dataclass(frozen=True)
class Missing:
    """How likely a report leaves something out, and the sentence that it lacks."""

    chance: float
    sentence: str | None = None


def _left_out(
    sentences: Sequence[str], talk: Talk, presence: Presence, weights: ReviewWeights | None
) -> list[Missing]:
    """Point after point until one is unlikely, which comes last, or nothing new is named."""
    kept, found = list(sentences), list[Missing]()
    names = sorted({name for name, _ in presence})
    while len(found) < MAX_OMISSIONS:
        prompt = prompts.FIND_OMISSION.format(report=" ".join(kept))
        chance = talk.ask(prompt, OMISSION).choices["omission"]
        unspoken = surest_unspoken(presence, kept, names)
        if weights is not None:
            chance = left_out(chance, unspoken[1] if unspoken else 0.0, weights)
        found.append(Missing(chance))
        if chance < 0.5:
            break
        verdict = prompts.parse_verdict(talk.ask(prompt).text)
        missing = verdict.correction if verdict and verdict.error == "omission" else None
        if weights and unspoken and unspoken[1] >= 0.5:
            missing = lacking(unspoken[0], missing)
        elif weights and unspoken and missing and is_spoken(presence, missing, kept, names):
            found[-1] = Missing(_UNTOLD)
            break
        found[-1] = Missing(chance, missing)
        if missing is None or missing in kept:
            break
        kept.append(missing)
    return found


def _number(sentence: str | None, presence: Presence) -> int:
    """Of the finding that a lacking sentence names: below zero, another for each."""
    names = sorted({name for name, _ in presence})
    claim = claim_of(sentence, names) if sentence else None
    keys = keys_of(claim, presence) if claim else []
    return -1 - list(presence).index(keys[0]) if keys else -1 - len(presence)


def _plain(sentence: str | None) -> str:
    """Without what nobody would call another sentence: case, spaces and the full stop."""
    return " ".join((sentence or "").casefold().split()).rstrip(".。 ")
