"""One verdict on a report sentence, of what a model says of it and of what it sees in the images.

Asked whether a sentence agrees, a model errs otherwise than when it is asked for each finding by
itself, so both answers together are right more often than either. How much each counts is fitted on
studies kept for it (`ReviewWeights`). A correction changes what the verdict says is wrong and leaves
every other word of the report as it was. Knows no model: its answers come in as numbers and words.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multimodal.prompts import AGREES, ERROR_TYPES, NamedFinding, Side, parse_size_mm
from multimodal.terms import mentions

Key = tuple[str, Side | None]
Presence = Mapping[Key, float]  # probability of every finding and side that a model knows

VERDICTS = (AGREES, *ERROR_TYPES)
_LEAST = 1e-4  # no answer is taken for more certain
_FAR = math.log(1.4)  # sizes that differ by more are likelier wrong than measured badly
_SPREAD = 0.15  # of the logarithm of a measured size
_MEASURE = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)(?P<more>(?:\s*[x×*]\s*\d+(?:\.\d+)?)*)(?P<gap>\s*)(?P<unit>mm|cm|毫米|厘米)",
    re.IGNORECASE,
)
_OTHER_UNIT = {"mm": "cm", "cm": "mm", "毫米": "厘米", "厘米": "毫米"}
_SIDES = re.compile(r"\b(?:right|left)\b|[右左]", re.IGNORECASE)
_OTHER_SIDE = {"right": "left", "left": "right", "右": "左", "左": "右"}
_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?|.", re.DOTALL)
_ALIKE, _NEARLY = 0.75, 0.9  # of a word, a sentence misspelt and right, at least (difflib's ratio)


@dataclass(frozen=True)
class ReviewWeights:
    """What counts how much, as weights of logarithms of probabilities.

    Attributes:
        said: of the verdict on the sentence.
        seen: of the findings seen one by one.
        verdicts: what is added for each verdict but "agrees": reports hold few mistakes.
        left_out: of the answer to what a report leaves out, of the surest finding that it does not
            speak of (both as log odds), and what is added.
    """

    said: float
    seen: float
    verdicts: Mapping[str, float]
    left_out: tuple[float, float, float]

    @classmethod
    def read(cls, values: Mapping[str, Any] | None) -> ReviewWeights | None:
        """From a checkpoint's configuration, None where it holds none."""
        if values is None:
            return None
        said, seen, added = values["left_out"]
        return cls(values["said"], values["seen"], dict(values["verdicts"]), (said, seen, added))


def claim_of(sentence: str, names: Sequence[str]) -> NamedFinding | None:
    """The one finding that a sentence speaks of, be it to deny it; its size if one is stated."""
    named = list(mentions(sentence, names))
    if len(named) != 1:  # which of several is right nobody was asked
        return None
    measured = len(_MEASURE.findall(sentence)) == 1
    return NamedFinding(*named[0], parse_size_mm(sentence) if measured else None)


def is_denial(said: Mapping[str, float]) -> bool:
    """Whether a sentence denies a finding: its only mistake about the images is then an omission."""
    return said["omission"] > said["insertion"] + said["direction"] + said["size"]


def weigh(
    said: Mapping[str, float], claim: NamedFinding | None, presence: Presence, *,
    measured_mm: float | None, weights: ReviewWeights,
) -> dict[str, float]:  # fmt: skip
    """Probability of every verdict on a sentence.

    Args:
        said: the model's own probability of every verdict.
        claim: what the sentence speaks of.
        presence: of every finding that the model knows, asked for one by one.
        measured_mm: the size that the model states of the finding, if the sentence states one.
        weights: of the two.
    """
    seen = seen_of(said, claim, presence, measured_mm)
    scores = {
        kind: weights.said * _log(said[kind])
        + weights.seen * _log(seen[kind])
        + weights.verdicts.get(kind, 0.0)
        for kind in VERDICTS
    }
    most = max(scores.values())
    shares = {kind: math.exp(score - most) for kind, score in scores.items()}
    return {kind: share / sum(shares.values()) for kind, share in shares.items()}


def seen_of(
    said: Mapping[str, float], claim: NamedFinding | None, presence: Presence,
    measured_mm: float | None,
) -> dict[str, float]:  # fmt: skip
    """How likely every verdict is by the findings alone; even of what they tell nothing about."""
    seen = dict.fromkeys(VERDICTS, 0.5)
    here = keys_of(claim, presence) if claim else []
    if claim is None or not here:
        return seen
    absent = math.prod(1 - _bounded(presence[key]) for key in here)
    if is_denial(said):
        return seen | dict.fromkeys(("insertion", "direction", "size"), _LEAST) | {
            AGREES: absent, "omission": 1 - absent,
        }  # fmt: skip
    there = _LEAST
    if claim.side:
        other: Side = "left" if claim.side == "right" else "right"
        there = _bounded(presence.get((claim.name, other), 0.0))
    wrong_size = _wrong_size(claim.size_mm, measured_mm)
    return seen | {
        AGREES: (1 - absent) * (1 - wrong_size), "size": (1 - absent) * wrong_size,
        "direction": absent * there, "insertion": absent * (1 - there), "omission": _LEAST,
    }  # fmt: skip


def keys_of(claim: NamedFinding, presence: Presence) -> list[Key]:
    """The known findings that a claim is about: both sides where it names none."""
    return [
        key
        for key in presence
        if key[0] == claim.name and (claim.side is None or key[1] in (claim.side, None))
    ]


def surest_unspoken(
    presence: Presence, sentences: Sequence[str], names: Sequence[str]
) -> tuple[Key, float] | None:
    """The finding surest to be there of those that no sentence speaks of."""
    named = [mention for sentence in sentences for mention in mentions(sentence, names)]
    spoken = {key for mention in named for key in keys_of(NamedFinding(*mention), presence)}
    left = [(key, chance) for key, chance in presence.items() if key not in spoken]
    return max(left, key=lambda pair: pair[1], default=None)


def left_out(said: float, unspoken: float, weights: ReviewWeights) -> float:
    """Probability that a report leaves a finding out.

    Args:
        said: the model's own.
        unspoken: of the surest finding that the report does not speak of.
        weights: of the two.
    """
    words, sight, added = weights.left_out
    return 1 / (1 + math.exp(-(words * log_odds(said) + sight * log_odds(unspoken) + added)))


def lacking(key: Key, written: str | None) -> str:
    """The sentence that a report lacks: as the model would have it if that speaks of this finding."""
    name, side = key
    if written is not None and (name, side) in mentions(written, [name]):
        return written
    words = " ".join(word for word in (side, name) if word)
    return f"{words[:1].upper()}{words[1:]}."


def log_odds(chance: float) -> float:
    """Bounded, so that no answer outweighs all others."""
    return math.log(_bounded(chance) / (1 - _bounded(chance)))


def mended(sentence: str, kind: str, measured_mm: float | None, written: str | None) -> str | None:
    """The sentence as it should be, with nothing changed but what is wrong; None if nobody knows.

    Args:
        sentence: of the report.
        kind: what is wrong with it.
        measured_mm: the size that the model states, None where it was not asked.
        written: the sentence as the model would have it, None where it says something else.
    """
    if kind == "insertion":
        return None
    changed = written
    if kind == "direction":
        changed = _other_side_said(sentence) or written
    elif kind == "unit":
        changed = _measure_said(sentence, None) or written
    elif kind == "size" and measured_mm is not None:
        changed = _measure_said(sentence, measured_mm) or written
    elif kind == "typo" and written is not None:
        changed = _spelt(sentence, written)
    return None if changed == sentence else changed


def _other_side_said(sentence: str) -> str | None:
    sides = {_OTHER_SIDE[word.lower()] for word in _SIDES.findall(sentence)}
    if len(sides) != 1:  # of two sides nobody knows which is meant
        return None
    (side,) = sides
    return _SIDES.sub(lambda m: side.capitalize() if m[0][0].isupper() else side, sentence)


def _measure_said(sentence: str, size_mm: float | None) -> str | None:
    """With another size, or with None the same number of the other unit."""
    found = list(_MEASURE.finditer(sentence))
    if len(found) != 1 or (found[0]["more"] and size_mm is not None):
        return None
    number, unit = found[0]["number"] + found[0]["more"], found[0]["unit"]
    if size_mm is None:
        unit = _OTHER_UNIT[unit.lower()]
    else:
        number = f"{size_mm / 10:.1f}" if unit.lower() in ("cm", "厘米") else f"{size_mm:.0f}"
    start, stop = found[0].span()
    return f"{sentence[:start]}{number}{found[0]['gap']}{unit}{sentence[stop:]}"


def _spelt(sentence: str, written: str) -> str | None:
    """The sentence with such words of what was written as are nearly its own."""
    ours, theirs = _TOKEN.findall(sentence), _TOKEN.findall(written)
    if len(ours) == len(theirs):
        return "".join(map(_nearer, ours, theirs))
    return written if _alike(sentence, written) >= _NEARLY else None  # a word written as two


def _nearer(word: str, other: str) -> str:
    near = _alike(word, other) >= _ALIKE or sorted(word) == sorted(other)  # letters swapped
    return other if word.isalpha() and near else word


def _alike(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, word, other, autojunk=False).ratio()


def _wrong_size(said_mm: float | None, measured_mm: float | None) -> float:
    if not said_mm or not measured_mm:
        return _LEAST
    off = abs(math.log(said_mm / measured_mm))
    return _bounded(1 / (1 + math.exp((_FAR - off) / _SPREAD)))


def _bounded(chance: float) -> float:
    return min(max(chance, _LEAST), 1 - _LEAST)


def _log(chance: float) -> float:
    return math.log(max(chance, _LEAST**2))
