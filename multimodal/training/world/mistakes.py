"""Mistakes planted in report sentences: the six types of MedErr-CT (arXiv 2506.19217).

Every mistake knows what a reader should answer: its type and the corrected sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multimodal.prompts import ErrorType, NamedFinding, Side, Verdict
from multimodal.training.world.reports import Sentence, absent_keys, deny, format_size, say

SENTENCE_MISTAKES: tuple[ErrorType, ...] = (
    "insertion", "direction", "size", "unit", "typo", "omission",
)  # fmt: skip


@dataclass(frozen=True)
class Mistake:
    """A wrong sentence and the verdict a careful reader gives of it."""

    text: str
    verdict: Verdict


def plant(
    kind: ErrorType, truth: Sequence[NamedFinding], rng: np.random.Generator
) -> Mistake | None:
    """A sentence with one mistake about a study; None where the study allows no such mistake."""
    return _PLANT[kind](truth, rng)


def _insertion(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Mistake | None:
    """A finding that is not there; of a finding seen on one side only, never its other side."""
    names = {f.name for f in truth}
    absent = [key for key in absent_keys(truth) if key[0] not in names]
    if not absent:
        return None
    name, side = absent[rng.integers(len(absent))]
    size = float(rng.integers(11, 30)) if name == "nodule" else None
    return Mistake(say(NamedFinding(name, side, size), rng).text, Verdict("insertion"))


def _direction(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Mistake | None:
    present = {(f.name, f.side) for f in truth}
    swappable = [f for f in truth if f.side and (f.name, _other(f.side)) not in present]
    if not swappable:
        return None
    right = say(swappable[int(rng.integers(len(swappable)))], rng)
    assert right.about.side is not None
    wrong = right.said_of(replace(right.about, side=_other(right.about.side)))
    return Mistake(wrong.text, Verdict("direction", right.text))


def _size(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Mistake | None:
    right = _sized(truth, rng)
    if right is None or right.about.size_mm is None:
        return None
    factor = rng.uniform(1.7, 3.0) ** (1 if rng.random() < 0.5 else -1)
    # a wrong size is itself a usual size, or the number alone would betray it
    wrong_mm = float(round(right.about.size_mm * factor))
    if not 10 <= wrong_mm <= 32:
        wrong_mm = float(round(right.about.size_mm / factor))
    if not 10 <= wrong_mm <= 32:
        return None
    wrong = right.said_of(replace(right.about, size_mm=wrong_mm))
    return Mistake(wrong.text, Verdict("size", right.text))


def _unit(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Mistake | None:
    right = _sized(truth, rng)
    if right is None:
        return None
    said = format_size(right.about.size_mm, right.style[1])
    number, unit = said.split()
    wrong = f"{number} {'mm' if unit == 'cm' else 'cm'}"
    return Mistake(right.text.replace(said, wrong), Verdict("unit", right.text))


def _typo(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Mistake | None:
    right = say(truth[int(rng.integers(len(truth)))], rng) if truth else _denial(truth, rng)
    words = list(re.finditer(r"[A-Za-z]{5,}", right.text))
    if not words:
        return None
    word = words[rng.integers(len(words))]
    wrong = misspell(word[0], rng)
    return Mistake(
        right.text[: word.start()] + wrong + right.text[word.end() :], Verdict("typo", right.text)
    )


def _omission(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Mistake | None:
    """A finding that is there, denied."""
    if not truth:
        return None
    finding = truth[int(rng.integers(len(truth)))]
    others = [f for f in truth if f is not finding]
    wrong = deny(finding.name, finding.side, others, rng)
    return Mistake(wrong.text, Verdict("omission", said_plainly(finding)))


def said_plainly(finding: NamedFinding) -> str:
    """The one wording a correction uses for a finding that the report lacks."""
    return Sentence(finding).text


def misspell(word: str, rng: np.random.Generator) -> str:
    """The word with two neighbouring letters swapped, or one letter lost or doubled."""
    while True:
        i = int(rng.integers(1, len(word) - 1))
        way = int(rng.integers(3))
        if way == 0:
            wrong = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        elif way == 1:
            wrong = word[:i] + word[i + 1 :]
        else:
            wrong = word[:i] + word[i] + word[i:]
        if wrong != word:
            return wrong


def _denial(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Sentence:
    absent = absent_keys(truth)
    return deny(*absent[rng.integers(len(absent))], truth, rng)


def _sized(truth: Sequence[NamedFinding], rng: np.random.Generator) -> Sentence | None:
    sized = [f for f in truth if f.size_mm is not None]
    return say(sized[rng.integers(len(sized))], rng) if sized else None


def _other(side: Side) -> Side:
    return "left" if side == "right" else "right"


_PLANT = {
    "insertion": _insertion,
    "direction": _direction,
    "size": _size,
    "unit": _unit,
    "typo": _typo,
    "omission": _omission,
}
