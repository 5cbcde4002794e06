"""The correction of a report sentence: what is wrong is changed, every other word stays.

Another side or unit is known from the sentence itself, a size from what is measured, a spelling from what the
model writes. Knows no model: its words come in as text.
"""

from __future__ import annotations

import re
from collections import Counter

from multimodal.terms import MEANT, measure_in

_OTHER_UNIT = {"mm": "cm", "cm": "mm", "毫米": "厘米", "厘米": "毫米"}
_SIDES = re.compile(r"\b(?:right|left)\b|(?<!左)右|左(?!右)", re.IGNORECASE)
_OTHER_SIDE = {"right": "left", "left": "right", "右": "左", "左": "右"}
_ONE_SIDED = re.compile(r"\bmiddle\b|中叶", re.IGNORECASE)  # places that the other side lacks
_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?|.", re.DOTALL)
_LETTERS = {True: 4, False: 3}  # of a word in Latin letters, or another, that may be misspelt
_DOUBLED = re.compile(r"([一-鿿])\1")


def mended(sentence: str, kind: str, measured_mm: float | None, written: str | None) -> str | None:
    """The sentence as it should be, with nothing changed but what is wrong; None if nobody knows.

    Args:
        sentence: of the report.
        kind: what is wrong with it.
        measured_mm: the size that the finding has, None where nobody asked.
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
    elif kind == "typo":
        changed = _spelt(sentence, written or "")
    return None if changed == sentence else changed


def _other_side_said(sentence: str) -> str | None:
    sides = _SIDES.findall(sentence)
    if len(sides) != 1 or _ONE_SIDED.search(sentence):  # of two nobody knows which is meant
        return None
    return _SIDES.sub(lambda m: _as_written(_OTHER_SIDE[m[0].lower()], m[0]), sentence)


def _as_written(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word.capitalize() if like[0].isupper() else word[:1].lower() + word[1:]


def _measure_said(sentence: str, size_mm: float | None) -> str | None:
    """With another size, or with None the same number of the other unit."""
    found = measure_in(sentence)
    if found is None or (found["more"] and size_mm is not None):
        return None
    number, unit = found["number"] + found["more"], found["unit"]
    if size_mm is None:
        unit = _OTHER_UNIT[unit.lower()]
    else:
        number = f"{size_mm / 10:.1f}" if unit.lower() in ("cm", "厘米") else f"{size_mm:.0f}"
    start, stop = found.span()
    return f"{sentence[:start]}{number}{found['gap']}{unit}{sentence[stop:]}"


def _spelt(sentence: str, written: str) -> str | None:
    """The sentence with those words of what was written that differ from its own by a letter."""
    ours, theirs = _TOKEN.findall(sentence), set(_TOKEN.findall(written))
    meant = [[other for other in theirs if _misspelt(word, other)] for word in ours]
    spelt = "".join(
        _as_written(others[0], word) if len(others) == 1 and word not in theirs else word
        for word, others in zip(ours, meant, strict=True)
    )
    if spelt != sentence:
        return spelt
    if _a_letter_apart(sentence, written):  # a word written as two
        return written if " " in sentence else None
    undoubled = _DOUBLED.sub(r"\1", sentence)
    return undoubled if len(undoubled) == len(sentence) - 1 else None


def _misspelt(word: str, other: str) -> bool:
    """Whether a word may be another with a letter wrong, which changes no meaning."""
    if not (word.isalpha() and other.isalpha() and _a_letter_apart(word.lower(), other.lower())):
        return False
    if max(len(word), len(other)) < _LETTERS[word.isascii()]:
        return False
    if word.isascii():  # atypical
        return word[0].lower() == other[0].lower()
    changed = (Counter(word) - Counter(other)) + (Counter(other) - Counter(word))
    return not set(changed) & MEANT or _DOUBLED.sub(r"\1", word) == other


def _a_letter_apart(word: str, other: str) -> bool:
    """One letter lost, added or changed, or two neighbours swapped (Damerau 1964)."""
    start = 0
    while start < min(len(word), len(other)) and word[start] == other[start]:
        start += 1
    word, other = word[start:], other[start:]
    while word and other and word[-1] == other[-1]:
        word, other = word[:-1], other[:-1]
    swapped = len(word) == 2 and word == other[::-1]
    return swapped or max(len(word), len(other)) == 1
