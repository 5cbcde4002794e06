"""One verdict on a report sentence, of what a model says of it and of what it sees in the images.

Asked whether a sentence agrees, a model errs otherwise than when it is asked for each finding by
itself, so both answers together are right more often than either. How much each counts is fitted on
studies kept for it (`ReviewWeights`). A correction changes what the verdict says is wrong and leaves
every other word of the report as it was. Knows no model: its answers come in as numbers and words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from multimodal.measuring import (
    LEAST,
    Measuring,
    Sizes,
    bounded,
    log,
    shares,
    weigh_sizes,
    wrong_size,
)
from multimodal.prompts import (
    AGREES,
    CHECK_SENTENCE,
    ERROR_TYPES,
    FIND_OMISSION,
    NOTHING_OMITTED,
    ErrorType,
    NamedFinding,
    Side,
    correction_in,
    other_side,
    parse_size_mm,
)
from multimodal.terms import deny, is_chinese, mentions, of_both_sides, size_said

Key = tuple[str, Side | None]
Presence = Mapping[Key, float]  # probability of every finding and side that a model knows
MeasuredMm = Mapping[Key, float]  # of every finding, its size in mm as its region is seen

VERDICTS = (AGREES, *ERROR_TYPES)
OMISSION = (NOTHING_OMITTED, "omission")  # verdicts on a whole report
MAX_OMISSIONS = 8  # a model that keeps naming things is not to be listened to for ever
_UNTOLD = 0.49  # the most that a point may be said to have that is not told
_HINT = 2.0  # log odds that a sentence with such words, or without, denies
_DENIED = re.compile(
    r"\b(no|not|non|without|free of|normal|intact|unremarkable|clear|negative|absent|resolved)\b"
    r"|[未无不]|没有|正常|完整"
)


@dataclass(frozen=True)
class ReviewWeights:
    """What counts how much, as weights of logarithms of probabilities.

    Attributes:
        said: of the verdict on the sentence.
        seen: of the findings seen one by one.
        verdicts: what is added for each verdict but "agrees": reports hold few mistakes.
        left_out: of the answer to what a report leaves out, of the surest finding that it does not
            speak of (both as log odds), and what is added.
        measure: of a size; None where nothing is measured.
        sized: of how likely a stated size is wrong; None before version 7, where it counts as `seen`.
        presence: of the answer to whether a finding is there, of what the region head sees of it (both as
            log odds), and what is added; None before version 9, where the answer stands.
    """

    said: float
    seen: float
    verdicts: Mapping[str, float]
    left_out: tuple[float, float, float]
    measure: Measuring | None = None
    sized: float | None = None
    presence: tuple[float, float, float] | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any] | None) -> ReviewWeights | None:
        """From a checkpoint's configuration, None where it holds none."""
        if values is None:
            return None
        told = values.get("measure")  # checkpoints before 6 measure nothing
        measure = Measuring.read(told) if told else None
        presence = values.get("presence")
        return cls(
            values["said"], values["seen"], dict(values["verdicts"]), _three(values["left_out"]), measure,
            values.get("sized"), _three(presence) if presence else None,
        )  # fmt: skip


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    said, seen, added = values
    return said, seen, added


def claim_of(sentence: str, names: Sequence[str]) -> NamedFinding | None:
    """The one finding that a sentence speaks of, be it to deny it; its size if one is stated.

    None of a sentence about several, or about both sides together: which is right nobody was asked.
    """
    named = list(mentions(sentence, names))
    if len(named) != 1 or of_both_sides(sentence):
        return None
    return NamedFinding(*named[0], size_said(sentence))


def denial(sentence: str, said: Mapping[str, float]) -> float:
    """Probability that a sentence denies a finding: its only mistake is then an omission."""
    others = said["insertion"] + said["direction"] + said["size"]
    hint = _HINT if _DENIED.search(sentence.lower()) else -_HINT
    odds = math.log(max(said["omission"], LEAST**2)) - math.log(max(others, LEAST**2)) + hint
    return bounded(1 / (1 + math.exp(-odds)))


def both_told(claim: NamedFinding | None, report: Sequence[str]) -> bool:
    """Whether a sentence of the report says that the claimed finding is on the other side."""
    if claim is None or claim.side is None:
        return False
    opposite, either = (claim.name, other_side(claim.side)), (claim.name, None)
    return any(
        states(text, opposite) or (of_both_sides(text) and states(text, either)) for text in report
    )


def weigh(
    said: Mapping[str, float], claim: NamedFinding | None, presence: Presence, *,
    denied: float, sizes: Sizes, weights: ReviewWeights, both: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Probability of every verdict on a sentence.

    Args:
        said: the model's own probability of every verdict.
        claim: what the sentence speaks of.
        presence: of every finding that the model knows, asked for one by one.
        denied: probability that the sentence denies it.
        sizes: that the finding may have, if the sentence states one.
        weights: of the two.
        both: whether it is `both_told`: a side is then no mistake for the other one.
    """
    seen = seen_of(claim, presence, denied=denied, both=both)
    sized = sized_of(claim, presence, sizes=sizes)
    how_sized = weights.seen if weights.sized is None else weights.sized
    scores = {
        kind: weights.said * log(said[kind])
        + weights.seen * log(seen[kind])
        + how_sized * log(sized[kind])
        + weights.verdicts.get(kind, 0.0)
        for kind in VERDICTS
        if not (both and kind == "direction")
    }
    return {"direction": 0.0} | shares(scores)


def as_spoken(chances: Mapping[str, float], surely: float) -> dict[str, float]:
    """Verdicts on a dictated sentence that was heard `surely`, a probability.

    Nobody misspells what he says, so a misspelt word was misheard; and what was not said is no
    mistake of who dictated.
    """
    wrong = {kind: surely * chances.get(kind, 0.0) for kind in ERROR_TYPES if kind != "typo"}
    return {AGREES: 1.0 - sum(wrong.values()), "typo": 0.0} | wrong


def worst_of(chances: Mapping[str, float]) -> ErrorType:
    """What is wrong with a doubted sentence."""
    return max(ERROR_TYPES, key=lambda error: chances.get(error, 0.0))


def sized_of(claim: NamedFinding | None, presence: Presence, *, sizes: Sizes) -> dict[str, float]:
    """How likely a finding that is there has the stated size under every verdict."""
    known = claim and keys_of(claim, presence)
    wrong = wrong_size(claim.size_mm, sizes) if claim and known else 0.5
    return dict.fromkeys(VERDICTS, 1.0) | {AGREES: 1 - wrong, "size": wrong}


def seen_of(
    claim: NamedFinding | None, presence: Presence, *, denied: float, both: bool = False
) -> dict[str, float]:
    """How likely every verdict is by the findings alone, sizes aside; even of what they tell nothing about.

    Where it is `both_told`, what is seen on the other side is what another sentence states.
    """
    seen = dict.fromkeys(VERDICTS, 0.5)
    here = keys_of(claim, presence) if claim else []
    if claim is None or not here:
        return seen
    absent = math.prod(1 - bounded(presence[key]) for key in here)
    there = LEAST
    if claim.side and not both:
        there = bounded(presence.get((claim.name, other_side(claim.side)), 0.0))
    stated = 1 - denied
    return seen | {
        AGREES: denied * absent + stated * (1 - absent),
        "omission": denied * (1 - absent),
        "size": stated * (1 - absent),
        "direction": stated * absent * there,
        "insertion": stated * absent * (1 - there),
    }


def keys_of(claim: NamedFinding, known: Mapping[Key, float]) -> list[Key]:
    """The known findings that a claim is about: both sides where it names none."""
    return [
        key
        for key in known
        if key[0] == claim.name and (claim.side is None or key[1] in (claim.side, None))
    ]


def surest_unspoken(
    presence: Presence, sentences: Sequence[str], names: Sequence[str]
) -> tuple[Key, float] | None:
    """The finding surest to be there of those that no sentence speaks of."""
    spoken = _spoken(presence, sentences, names)
    left = [(key, chance) for key, chance in presence.items() if key not in spoken]
    return max(left, key=lambda pair: pair[1], default=None)


def _spoken(presence: Presence, sentences: Sequence[str], names: Sequence[str]) -> set[Key]:
    named = [mention for sentence in sentences for mention in mentions(sentence, names)]
    return {key for mention in named for key in keys_of(NamedFinding(*mention), presence)}


def is_spoken(
    presence: Presence, written: str, sentences: Sequence[str], names: Sequence[str]
) -> bool:
    """Whether a sentence names nothing that the others do not speak of."""
    said = _spoken(presence, [written], names)
    return bool(said) and said <= _spoken(presence, sentences, names)


def left_out(said: float, unspoken: float, weights: ReviewWeights) -> float:
    """Probability that a report leaves a finding out.

    Args:
        said: the model's own.
        unspoken: of the surest finding that the report does not speak of.
        weights: of the two.
    """
    return _together(said, unspoken, weights.left_out)


def believed(said: float, seen: float | None, weights: ReviewWeights | None) -> float:
    """Probability that a finding is there.

    Args:
        said: the model's own, asked for it.
        seen: what the region head makes of it; None where there is none.
        weights: of the two; without any the model is taken at its word.
    """
    if seen is None or weights is None or weights.presence is None:
        return said
    return _together(said, seen, weights.presence)


def _together(said: float, seen: float, weights: tuple[float, float, float]) -> float:
    words, sight, added = weights
    return 1 / (1 + math.exp(-(words * log_odds(said) + sight * log_odds(seen) + added)))


def states(written: str, key: Key) -> bool:
    """Whether a sentence says that a finding is there."""
    name, side = key
    return not _DENIED.search(written.lower()) and any(
        side in (None, said) for _, said in mentions(written, [name])
    )


def _says(written: str | None, key: Key, like: str | None = None) -> bool:
    """Whether a sentence says that a finding is there, in the language of a report if one is given."""
    if written is None or (like is not None and is_chinese(written) != is_chinese(like)):
        return False
    return states(written, key)


def lacking(key: Key, written: str | None) -> str:
    """The sentence that a report lacks: as the model would have it if that states this finding."""
    if written is not None and states(written, key):
        return written
    words = " ".join(word for word in reversed(key) if word)
    return f"{words[:1].upper()}{words[1:]}."


@dataclass(frozen=True)
class Question:
    """Asked of a model: how likely each of the choices is, or without any for its own words."""

    prompt: str
    choices: tuple[str, ...] = ()


class Answer(Protocol):
    """To a `Question`: its words, and the probabilities of its choices where a model knows them."""

    @property
    def text(self) -> str:
        """The likeliest choice, or the words."""
        ...

    @property
    def choices(self) -> Mapping[str, float]:
        """Probabilities; none of what is asked without choices."""
        ...


@dataclass(frozen=True)
class Missing:
    """How likely a report leaves something out, from a half on told, and the sentence that it lacks."""

    chance: float
    sentence: str | None = None


def omissions(
    sentences: Sequence[str], presence: Presence, weights: ReviewWeights | None, *, like: str
) -> Generator[Question | Missing, Answer | None, None]:
    """What sentences leave out, point after point until one is not told, which comes last.

    Questions are put to whoever runs it and answered by `send`. What is missing is worded in the
    language of `like`.
    """
    kept, names = list(sentences), sorted({name for name, _ in presence})
    for _ in range(MAX_OMISSIONS):
        whole = FIND_OMISSION.format(report=" ".join(kept))
        chance = 1.0 - _likely(NOTHING_OMITTED, (yield Question(whole, OMISSION)))
        unspoken = None
        if weights is not None:
            unspoken = surest_unspoken(presence, kept, names)
            chance = left_out(chance, unspoken[1] if unspoken else 0.0, weights)
        if chance < 0.5:
            yield Missing(chance)
            return
        written = _omitted((yield Question(whole)))
        if unspoken is not None and unspoken[1] >= 0.5:
            if not _says(written, unspoken[0], like):
                denial_of_it = CHECK_SENTENCE.format(sentence=deny(*unspoken[0], like))
                again = _omitted((yield Question(denial_of_it)))  # it corrects the denial
                if again and (_says(again, unspoken[0], like) or not _says(written, unspoken[0])):
                    written = again
            written = lacking(unspoken[0], written)
        spoken = unspoken is not None and written and is_spoken(presence, written, kept, names)
        if spoken or written in kept:
            yield Missing(_UNTOLD)
            return
        yield Missing(chance, written)
        if written is None:
            return
        kept.append(written)


def _likely(choice: str, answer: Answer | None) -> float:
    assert answer is not None, "a question wants an answer"
    return (answer.choices or {answer.text: 1.0}).get(choice, 0.0)


def _omitted(answer: Answer | None) -> str | None:
    assert answer is not None, "a question wants an answer"
    return correction_in(answer.text, "omission")


def log_odds(chance: float) -> float:
    """Bounded, so that no answer outweighs all others."""
    return math.log(bounded(chance) / (1 - bounded(chance)))


def sizes_of(
    name: str,
    chances: Mapping[str, float],
    measured_mm: float | None,
    weights: ReviewWeights | None,
) -> Sizes:
    """From the probability of each of `prompts.SIZES` and the size that is measured, if any.

    None of a finding that has no size. A measure is off by Student's t of three degrees, now and then
    by much; that the words know it too, the weight of the words accounts for.
    """
    measure = weights.measure if weights else None
    if measure and name not in measure.spread:
        return {}
    read = ((parse_size_mm(words), chance) for words, chance in chances.items())
    said = {size_mm: chance for size_mm, chance in read if size_mm}
    if measured_mm is None or measure is None:
        return said
    return weigh_sizes(name, said, measured_mm, measure)


def measure_of(name: str, side: Side | None, measured: MeasuredMm) -> float | None:
    """The size in mm of a finding; None of what has none, or of one of two sides."""
    keys = keys_of(NamedFinding(name, side), measured)
    return measured[keys[0]] if len(keys) == 1 else None
