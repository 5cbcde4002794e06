"""Mistakes planted in report sentences: the six types of MedErr-CT (arXiv 2506.19217).

Every mistake knows what a reader should answer: its type and the corrected sentence. What the
images must decide (insertion, direction, size, omission) is drawn so that words alone betray
nothing; a wrong unit and a misspelt word are seen in the text, as in life.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multimodal.prompts import ErrorType, NamedFinding, Verdict, other_side
from multimodal.terms import MEANT
from multimodal.training.world.reports import Sentence, Writer, absent_keys, format_size

SENTENCE_MISTAKES: tuple[ErrorType, ...] = (
    "insertion", "direction", "size", "unit", "typo", "omission",
)  # fmt: skip
NEED_IMAGES: tuple[ErrorType, ...] = ("insertion", "direction", "size", "omission")
_Change = Callable[[Sentence, Writer], "Mistake | None"]
_FACTOR = 1.7  # a size is wrong by at least this factor


@dataclass(frozen=True)
class Mistake:
    """A wrong sentence, the verdict a careful reader gives of it, and what the sentence claims."""

    text: str
    verdict: Verdict
    about: NamedFinding


@dataclass(frozen=True)
class Line:
    """A sentence as a report holds it, what it claims, and the mistake in it, if there is one."""

    text: str
    about: NamedFinding
    denied: bool = False
    mistake: Mistake | None = None


@dataclass(frozen=True)
class Faulty:
    """A report with none to two mistakes.

    Attributes:
        lines: as the report holds them.
        left_out: findings that no line speaks of.
        lacking: the sentences that would.
    """

    lines: tuple[Line, ...]
    left_out: tuple[NamedFinding, ...]
    lacking: tuple[str, ...] = ()

    @property
    def wrong(self) -> bool:
        """Whether anything should be changed."""
        return bool(self.left_out) or any(line.mistake for line in self.lines)


def plant(kind: ErrorType, writer: Writer) -> Mistake | None:
    """A sentence with one mistake about a study; None where the study allows no such mistake."""
    return _PLANT[kind](writer)


def faulty_report(writer: Writer) -> Faulty:
    """A report in which up to two sentences are wrong, too many or missing."""
    said, rng = writer.report(), writer.rng
    lines = {i: Line(s.text, s.about, s.denied) for i, s in enumerate(said)}
    left_out = []
    for _ in range(int(rng.integers(3))):
        kind = SENTENCE_MISTAKES[rng.integers(len(SENTENCE_MISTAKES))]
        untouched = [i for i, line in lines.items() if not line.denied and line.mistake is None]
        if kind == "insertion":
            mistake = _insertion(writer)
            spoken = {(line.about.name, line.about.side) for line in lines.values()}
            if mistake and (mistake.about.name, mistake.about.side) not in spoken:
                lines[len(said) + len(lines)] = Line(mistake.text, mistake.about, mistake=mistake)
        elif untouched:
            at = untouched[rng.integers(len(untouched))]
            if kind == "omission" and rng.random() < 0.5:
                left_out.append(lines.pop(at).about)
            elif mistake := _ALTER[kind](said[at], writer):
                lines[at] = Line(mistake.text, mistake.about, kind == "omission", mistake)
    lacking = tuple(writer.plainly(finding) for finding in left_out)
    return Faulty(tuple(lines.values()), tuple(left_out), lacking)


def _insertion(writer: Writer) -> Mistake | None:
    """A finding that is not there; of a finding seen on one side only, never its other side."""
    names = {f.name for f in writer.truth}
    absent = [key for key in absent_keys(writer.truth, writer.vocabulary) if key[0] not in names]
    if not absent:
        return None
    said = writer.invent(absent)
    return Mistake(said.text, Verdict("insertion"), said.about)


def _direction(writer: Writer) -> Mistake | None:
    return _one_of([f for f in writer.truth if f.side], _wrong_side, writer)


def _wrong_side(right: Sentence, writer: Writer) -> Mistake | None:
    side = right.about.side
    present = {(f.name, f.side) for f in writer.truth}
    if side is None or (right.about.name, other_side(side)) in present:
        return None
    wrong = right.said_of(replace(right.about, side=other_side(side)))
    if "middle" in right.text or "中叶" in right.text:  # on the left it would read otherwise
        return None
    return Mistake(wrong.text, Verdict("direction", right.text), wrong.about)


def _size(writer: Writer) -> Mistake | None:
    return _one_of([f for f in writer.truth if f.size_mm is not None], _wrong_size, writer)


def _wrong_size(right: Sentence, writer: Writer) -> Mistake | None:
    if right.about.size_mm is None:
        return None
    usual = writer.vocabulary.sizes_mm[right.about.name]
    wrong_mm = wrong_size(right.about.size_mm, usual, writer.rng)
    if wrong_mm is None:
        return None
    wrong = right.said_of(replace(right.about, size_mm=wrong_mm))
    return Mistake(wrong.text, Verdict("size", right.text), wrong.about)


def wrong_size(
    right_mm: float, usual_mm: tuple[float, float], rng: np.random.Generator
) -> float | None:
    """Another usual size, far from the right one; over many studies as common as right ones.

    A size near the middle of the usual ones is far from few others, so it is drawn more often
    where it can be: else extremes would betray a mistake. None where no usual size is far enough.
    """
    low, high = np.log(usual_mm)
    sizes = np.linspace(low, high, 64)
    far = np.abs(sizes - np.log(right_mm)) >= np.log(_FACTOR)
    if not far.any():
        return None
    span = np.log(_FACTOR)
    room = (np.maximum(sizes - span - low, 0) + np.maximum(high - sizes - span, 0)) / (high - low)
    weights = far / np.maximum(room, 0.05)
    return float(round(np.exp(rng.choice(sizes, p=weights / weights.sum()))))


def _unit(writer: Writer) -> Mistake | None:
    return _one_of([f for f in writer.truth if f.size_mm is not None], _wrong_unit, writer)


def _wrong_unit(right: Sentence, writer: Writer) -> Mistake | None:
    if right.about.size_mm is None:
        return None
    said = format_size(right.about.size_mm, right.style[1])
    number, unit = said.split()
    wrong = right.text.replace(said, f"{number} {'mm' if unit == 'cm' else 'cm'}")
    return Mistake(wrong, Verdict("unit", right.text), right.about)


def _typo(writer: Writer) -> Mistake | None:
    if not writer.truth:
        return _misspelt(writer.deny_absent(), writer)
    return _one_of(writer.truth, _misspelt, writer)


def _misspelt(right: Sentence, writer: Writer) -> Mistake | None:
    words = list(re.finditer(r"[A-Za-z]{5,}|[一-鿿]{3,}", right.text))
    if not words:
        return None
    word = words[writer.rng.integers(len(words))]
    wrong = misspell(word[0], writer.rng)
    text = right.text[: word.start()] + wrong + right.text[word.end() :]
    return Mistake(text, Verdict("typo", right.text), right.about)


def _omission(writer: Writer) -> Mistake | None:
    return _one_of(writer.truth, _deny_it, writer)


def _one_of(pool: Sequence[NamedFinding], change: _Change, writer: Writer) -> Mistake | None:
    """A true sentence about one of `pool`, changed."""
    return change(writer.say(pool[int(writer.rng.integers(len(pool)))]), writer) if pool else None


def _deny_it(right: Sentence, writer: Writer) -> Mistake:
    """A finding that is there, denied."""
    there = right.about
    others = [f for f in writer.truth if (f.name, f.side) != (there.name, there.side)]
    wrong = writer.deny((there.name, there.side), others)
    return Mistake(wrong.text, Verdict("omission", writer.plainly(there)), wrong.about)


def misspell(word: str, rng: np.random.Generator) -> str:
    """The word with two neighbouring letters swapped, or one letter lost or doubled.

    None is lost that carries a meaning by itself: what is left would be another true or false sentence.
    """
    while True:
        i = int(rng.integers(1, len(word) - 1))
        way = int(rng.integers(3))
        if way == 0:
            wrong = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        elif way == 1:
            wrong = word if word[i] in MEANT else word[:i] + word[i + 1 :]
        else:
            wrong = word[:i] + word[i] + word[i:]
        if wrong != word:
            return wrong


_ALTER: dict[ErrorType, _Change] = {
    "direction": _wrong_side,
    "size": _wrong_size,
    "unit": _wrong_unit,
    "typo": _misspelt,
    "omission": _deny_it,
}
_PLANT: dict[ErrorType, Callable[[Writer], Mistake | None]] = {
    "insertion": _insertion,
    "direction": _direction,
    "size": _size,
    "unit": _unit,
    "typo": _typo,
    "omission": _omission,
}
