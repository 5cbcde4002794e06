"""A checkpoint's review of reports: sentences alone, and whole reports as the pipeline judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from multimodal import prompts
from multimodal.measuring import Sizes, median_mm
from multimodal.mending import mended
from multimodal.prompts import NamedFinding
from multimodal.review import (
    VERDICTS,
    Missing,
    Presence,
    ReviewWeights,
    as_spoken,
    both_told,
    claim_of,
    denial,
    keys_of,
    measure_of,
    omissions,
    sizes_of,
    weigh,
    worst_of,
)
from multimodal.training.cases import Talk
from multimodal.training.measures import Judged, Judgement, Mended
from multimodal.training.world.dialogues import Dialogue
from multimodal.training.world.mistakes import Faulty

NEAR_MM, NEAR_SHARE = 2.0, 0.1  # that a size may be off by: the bar for the size measured


@dataclass(frozen=True)
class Heeded:
    """A sentence, what a model answered about it, the sizes its finding may have and the one measured."""

    text: str
    said: Mapping[str, float]
    claim: NamedFinding | None
    sizes: Mapping[str, float]
    measured_mm: float | None


def heed(sentences: Sequence[str], talk: Talk, names: Sequence[str]) -> list[Heeded]:
    """Ask for the verdict on every sentence, and for the sizes of what one gives a size of."""
    asked = [prompts.CHECK_SENTENCE.format(sentence=text) for text in sentences]
    said = [answer.choices for answer in talk.ask_all(asked, VERDICTS)]
    claims = [claim_of(text, names) for text in sentences]
    sized = [
        number
        for number, claim in enumerate(claims)
        if claim and claim.size_mm and denial(sentences[number], said[number]) < 0.5
    ]
    answers = talk.ask_all([_size_of(claims[number]) for number in sized], prompts.SIZES)
    sizes = {n: a.choices for n, a in zip(sized, answers, strict=True)}
    return [
        Heeded(text, said[n], claim, sizes.get(n, {}), _measured(claim, talk))
        for n, (text, claim) in enumerate(zip(sentences, claims, strict=True))
    ]


def _size_of(claim: NamedFinding | None) -> str:
    assert claim is not None
    return prompts.ask_size(claim.name, claim.side)


def _measured(claim: NamedFinding | None, talk: Talk) -> float | None:
    return measure_of(claim.name, claim.side, talk.measured) if claim else None


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


def without_typos(report: Faulty) -> Faulty:
    """The report as it can be dictated."""
    lines = tuple(
        replace(line, text=line.mistake.verdict.correction or line.text, mistake=None)
        if line.mistake and line.mistake.verdict.error == "typo"
        else line
        for line in report.lines
    )
    return replace(report, lines=lines)


def judge_report(
    report: Faulty,
    talk: Talk,
    presence: Presence,
    weights: ReviewWeights | None,
    *,
    surely: Sequence[float] | None = None,
) -> Judgement:
    """A whole report judged as the pipeline does: sentence by sentence, then what it leaves out.

    The sentences of one that was dictated are as they were heard, `surely` how likely each was said so.
    """
    names = sorted({name for name, _ in presence})
    texts = [line.text for line in report.lines]
    heeded = heed(texts, talk, names)
    chances = [_weighed(h, texts, presence, weights) if weights else h.said for h in heeded]
    doubted = [number for number, c in enumerate(chances) if 1 - c[prompts.AGREES] >= 0.5]
    spoken = chances
    if surely is not None:
        spoken = [as_spoken(chance, sure) for chance, sure in zip(chances, surely, strict=True)]
    wrong = [1 - chance[prompts.AGREES] for chance in spoken]
    asked = [prompts.CHECK_SENTENCE.format(sentence=texts[number]) for number in doubted]
    said: dict[tuple[str, int], str | None] = {}
    kept: list[str | None] = list(texts)
    for number, answer in zip(doubted, talk.ask_all(asked), strict=True):
        misheard = wrong[number] < 0.5
        kind = worst_of((chances if misheard else spoken)[number])
        written = prompts.correction_in(answer.text, kind)
        measured_mm = median_mm(sizes_heeded(heeded[number], weights)) if weights else None
        better = mended(texts[number], kind, measured_mm, written)
        if not misheard:
            said[kind, number] = better
        inserted = kind == "insertion" and not misheard
        kept[number] = None if inserted else better or texts[number]
    missing = _missing(
        [text for text in kept if text], talk, presence, weights, like=" ".join(texts)
    )
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
    corrected = tuple(
        Mended(
            point[0],
            point in said and _plain(said[point]) == _plain(sentence),
            point in said and _near(said[point], sentence, names),
        )
        for point, sentence in right.items()
    )
    stated = [(line.mistake is not None, p) for line, p in zip(report.lines, wrong, strict=True)]
    stated.append((bool(report.left_out), missing[0].chance))
    sure = max(chance for _, chance in stated)
    return Judgement(
        report.wrong, sure, frozenset(right), frozenset(said), tuple(stated), corrected
    )


def _weighed(
    heeded: Heeded, report: Sequence[str], presence: Presence, weights: ReviewWeights
) -> dict[str, float]:
    return weigh(
        heeded.said, heeded.claim, presence, denied=denial(heeded.text, heeded.said),
        sizes=sizes_heeded(heeded, weights), weights=weights, both=both_told(heeded.claim, report),
    )  # fmt: skip


def sizes_heeded(heeded: Heeded, weights: ReviewWeights) -> Sizes:
    """The sizes that the finding of a sentence may have."""
    if heeded.claim is None:
        return {}
    return sizes_of(heeded.claim.name, heeded.sizes, heeded.measured_mm, weights)


def _missing(
    sentences: Sequence[str],
    talk: Talk,
    presence: Presence,
    weights: ReviewWeights | None,
    *,
    like: str,
) -> list[Missing]:
    """What sentences leave out, each question answered as it comes."""
    asking, found = omissions(sentences, presence, weights, like=like), list[Missing]()
    event = next(asking, None)
    while event is not None:
        if isinstance(event, Missing):
            found.append(event)
            event = next(asking, None)
        else:
            event = asking.send(talk.ask(event.prompt, event.choices))
    return found


def _number(sentence: str | None, presence: Presence) -> int:
    """Of the finding that a lacking sentence names: below zero, another for each."""
    names = sorted({name for name, _ in presence})
    claim = claim_of(sentence, names) if sentence else None
    keys = keys_of(claim, presence) if claim else []
    return -1 - list(presence).index(keys[0]) if keys else -1 - len(presence)


def _near(said: str | None, right: str | None, names: Sequence[str]) -> bool:
    """Whether two sentences are the same but for a size that two readers may well give."""
    if _plain(said) == _plain(right):
        return True
    claims = [claim_of(text, names) for text in (said, right) if text]
    sizes = [claim.size_mm for claim in claims if claim and claim.size_mm]
    if said is None or right is None or len(sizes) < 2:
        return False
    given, true = sizes
    alike = [_plain(mended(text, "size", true, None) or text) for text in (said, right)]
    return abs(given - true) <= max(NEAR_MM, NEAR_SHARE * true) and alike[0] == alike[1]


def _plain(sentence: str | None) -> str:
    """Without what nobody would call another sentence: case, spaces and the full stop."""
    return " ".join((sentence or "").casefold().split()).rstrip(".。 ")
