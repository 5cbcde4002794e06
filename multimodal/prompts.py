"""The questions CrossRead asks a model and the compact answers it reads back.

Training writes these answers and the pipelines parse them, so both sides stand in this one file.
Knows no model and no media.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Side = Literal["right", "left"]
ErrorType = Literal["omission", "insertion", "direction", "size", "unit", "typo"]
ERROR_TYPES: tuple[ErrorType, ...] = (
    "omission", "insertion", "direction", "size", "unit", "typo",
)  # fmt: skip

LIST_FINDINGS = "List the findings."
CHECK_SENTENCE = "Does this report sentence agree with the images? {sentence}"
FIND_OMISSION = "Which finding does this report leave out? {report}"
TRANSCRIBE = "Transcribe the recording."
ONE_OF = "Answer with one of these and nothing else: {choices}"

# for a model that was never trained on these questions
FORMS = """You compare CT images with radiology reports. Answer in these forms, with nothing else.
- Asked for the findings: names in small letters, each with its side before it and its size behind \
it where they apply, separated by semicolons, as in: right nodule 14 mm; left pleural effusion; \
cardiomegaly. Without any: no findings
- Asked whether a sentence agrees with the images: agrees, or the type of error (insertion, \
direction, size, unit, typo or omission), a colon and the sentence as it should be, as in: \
direction: There is a nodule in the right lung. Where the sentence should go: insertion: remove
- Asked what a report leaves out: nothing, or: omission: and a sentence that names it
- Asked to transcribe: the words heard
- Any other question: one or two plain sentences"""

# the same forms as patterns: a JSON string that fulfils one is parsed for certain
_NAME = r"((right|left) )?[a-z][a-z -]{1,40}[a-z]( [1-9][0-9]{0,2} mm)?"
FINDINGS_FORM = rf"(no findings|{_NAME}(; {_NAME}){{0,9}})"
VERDICT_FORM = r"(agrees|nothing|(insertion|direction|size|unit|typo|omission): [A-Za-z0-9][A-Za-z0-9 ,.-]{1,160})"
SIZE_FORM = r"[1-9][0-9]{0,2} mm"
SIZES_MM = range(3, 81)  # of which a model says how likely each is
SIZES = tuple(f"{mm} mm" for mm in SIZES_MM)

NO_FINDINGS = "no findings"
AGREES = "agrees"
NOTHING_OMITTED = "nothing"
REMOVE = "remove"


@dataclass(frozen=True)
class NamedFinding:
    """A finding as a model names it; `side` is None for midline or one-sided-less findings."""

    name: str
    side: Side | None = None
    size_mm: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a model said of one report sentence: no error, or its type and the correction."""

    error: ErrorType | None
    correction: str | None = None


def _with_side(name: str, side: Side | None) -> str:
    return f"{side} {name}" if side else name


def schema_of(form: str) -> str:
    """A JSON schema of the strings that fulfil a form."""
    return json.dumps({"type": "string", "pattern": f"^{form}$"})


def unquoted(text: str) -> str:
    """The words of an answer by `schema_of`; of one that was cut off, those that are there."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text.strip().removeprefix('"')


def ask_presence(name: str, side: Side | None) -> str:
    """`Is there a right nodule?`"""
    return f"Is there a {_with_side(name, side)}?"


def ask_size(name: str, side: Side | None) -> str:
    """`How large is the right nodule?`"""
    return f"How large is the {_with_side(name, side)}?"


def format_findings(findings: list[NamedFinding]) -> str:
    """`right nodule 14 mm; left pleural effusion`, or `no findings`."""
    return "; ".join(_format_finding(f) for f in findings) or NO_FINDINGS


def sided_keys(findings: Iterable[tuple[str, bool]]) -> list[tuple[str, Side | None]]:
    """Every (finding, side) of findings with and without sides, right before left."""
    sides: dict[bool, tuple[Side | None, ...]] = {True: ("right", "left"), False: (None,)}
    return [(name, side) for name, sided in findings for side in sides[sided]]


def other_side(side: Side) -> Side:
    """Left of right, right of left."""
    return "left" if side == "right" else "right"


def _format_finding(finding: NamedFinding) -> str:
    words = _with_side(finding.name, finding.side)
    return f"{words} {finding.size_mm:.0f} mm" if finding.size_mm is not None else words


_FINDING = re.compile(
    r"^(?:(?P<side>right|left) )?(?P<name>[a-z][a-z -]*?)(?: (?P<size>\d+(?:\.\d+)?) mm)?$"
)


_SIDE_NAMES: dict[str, Side] = {"right": "right", "left": "left"}


def parse_findings(text: str) -> list[NamedFinding]:
    """The findings in an answer to `LIST_FINDINGS`; unreadable items are left out."""
    matches = map(_FINDING.match, _items(text))
    return [
        NamedFinding(m["name"], _SIDE_NAMES.get(m["side"]), float(m["size"]) if m["size"] else None)
        for m in matches
        if m and m["name"] != NO_FINDINGS
    ]


def num_unread(text: str) -> int:
    """Items in an answer to `LIST_FINDINGS` that `parse_findings` leaves out."""
    return sum(not _FINDING.match(item) for item in _items(text))


def _items(text: str) -> list[str]:
    items = (item.strip(" \t\r\n.").lower() for item in text.split(";"))
    return [item for item in items if item]


def parse_size_mm(text: str) -> float | None:
    """`14 mm` -> 14.0; None where no size is stated."""
    match = re.search(r"(\d+(?:\.\d+)?) ?(mm|cm)", text.lower())
    return None if match is None else float(match[1]) * (10 if match[2] == "cm" else 1)


def format_verdict(verdict: Verdict) -> str:
    """`agrees`, `direction: <corrected sentence>` or `insertion: remove`."""
    return AGREES if verdict.error is None else f"{verdict.error}: {verdict.correction or REMOVE}"


def parse_verdict(text: str) -> Verdict | None:
    """The verdict in an answer to `CHECK_SENTENCE` or `FIND_OMISSION`; None if it is neither."""
    text = text.strip()
    if text.lower().rstrip(".") in (AGREES, NOTHING_OMITTED):
        return Verdict(None)
    kind, colon, correction = text.partition(":")
    error = next((e for e in ERROR_TYPES if e == kind.strip().lower()), None)
    if not colon or error is None:
        return None
    correction = correction.strip()
    return Verdict(error, None if correction == REMOVE else correction)


def correction_in(text: str, error: ErrorType) -> str | None:
    """The sentence as it should be in an answer that states this error; None of any other."""
    verdict = parse_verdict(text)
    return verdict.correction if verdict and verdict.error == error else None


_HEADER = re.compile(
    r"^\s*(?:[A-Z][A-Z /-]{2,}|[A-Z][a-z]+(?: [a-z]+)?):\s*|^\s*[一-鿿]{2,6}[：:]\s*"
)
_NUMBERED = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+")
# a full stop ends a sentence unless it stands inside a number or after a usual abbreviation
_SENTENCE_END = re.compile(
    r"(?<=[.!?。])(?<!\bDr\.)(?<!\bapprox\.)(?<!\bNo\.)\s+(?=[A-Z0-9\"'(])|(?<=[。！？；])"
)
_CONTINUED = re.compile(r"\s*[a-z0-9(]")
_ENDS = (".", "!", "?", "。", "！", "？", "；", ":", ";")
_SKIPPED_SECTIONS = (
    "technique", "comparison", "indication", "clinical", "history", "exam",
    "临床", "病史", "既往", "检查技术", "检查方法", "扫描", "对比", "比较",
)  # fmt: skip


def _unwrapped(report: str) -> list[str]:
    lines: list[str] = []
    for line in report.splitlines():
        goes_on = bool(_CONTINUED.match(line)) and not _NUMBERED.match(line)
        if goes_on and lines and lines[-1].strip() and not lines[-1].rstrip().endswith(_ENDS):
            lines[-1] = f"{lines[-1].rstrip()} {line.strip()}"
        else:
            lines.append(line)
    return lines


def split_sentences(report: str) -> list[str]:
    """The statements of a report, one by one.

    Section headers and list numbers are dropped, and sections that state no finding (technique,
    comparison, indication, history) left out whole. A line that goes on in small letters or with a
    number belongs to the line before it.
    """
    sentences: list[str] = []
    skipping = False
    for line in _unwrapped(report):
        header = _HEADER.match(line)
        if header:
            skipping = header[0].strip().lower().startswith(_SKIPPED_SECTIONS)
            line = line[header.end() :]
        elif not line.strip():
            skipping = False
        if skipping:
            continue
        line = _NUMBERED.sub("", line).strip()
        sentences += [s.strip() for s in _SENTENCE_END.split(line) if s and s.strip()]
    return sentences
