"""What a reading is made of: findings, discrepancies and the evidence for each.

Plain values; every door (API, CLI, page) prints the same `Reading`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from encoders.features import Problem
from multimodal.backends import Region
from multimodal.prompts import ErrorType, Side

DISCLAIMER = "Research software, not a medical device; not for clinical use."
Agreement = Literal["agrees", "disagrees", "abstained", "no report"]


@dataclass(frozen=True)
class Evidence:
    """Something to look at: a region of a slice, or a sentence of the report."""

    kind: Literal["image", "text"]
    slice_index: int | None = None
    position_mm: float | None = None
    box: tuple[float, float, float, float] | None = None
    sentence: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Finding:
    """What is there, where, how large and how sure. `box` (x0, y0, x1, y1) in slice pixels."""

    name: str
    side: Side | None
    size_mm: float | None
    slice_index: int | None
    box: tuple[float, float, float, float] | None
    probability: float
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Discrepancy:
    """Where the report and the images differ, by the types of MedErr-CT (arXiv 2506.19217).

    `sentence` is the report's, None for an omission that no sentence denies. `correction` is what
    it should say; None for an insertion, which should go, or where the model offers none.
    """

    type: ErrorType
    sentence: str | None
    correction: str | None
    probability: float
    evidence: tuple[Evidence, ...] = ()

    @property
    def suggestion(self) -> str:
        """The correction in words for people."""
        without = "remove the sentence" if self.type == "insertion" else "no correction offered"
        return self.correction or f"({without})"


@dataclass(frozen=True)
class Reading:
    """The result of reading a study with its report."""

    findings: tuple[Finding, ...]
    discrepancies: tuple[Discrepancy, ...]
    agreement: Agreement
    answer: str | None
    evidence: tuple[Evidence, ...]
    warnings: tuple[Problem, ...]
    study: Mapping[str, Any]
    report: str | None
    transcript: str | None
    model: str
    usage: Mapping[str, int]
    timings_s: Mapping[str, float]
    disclaimer: str = DISCLAIMER
    key_slices: tuple[tuple[int, bytes], ...] = field(default=(), repr=False, compare=False)

    @property
    def out_of_range(self) -> bool:
        """Whether the study lies outside what the model was validated on."""
        return any(w.code == "OUT_OF_RANGE" for w in self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """JSON types; pictures are left to `to_html`."""
        values = {k: v for k, v in self.__dict__.items() if k != "key_slices"}
        return {k: _plain(v) for k, v in values.items()}

    def to_json(self) -> str:
        """Indented JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_html(self) -> str:
        """One self-contained page with the key slices."""
        from pipelines.html import render_reading

        return render_reading(self)

    def verdict(self) -> str:
        """The agreement in a sentence."""
        count = len(self.discrepancies)
        return {
            "agrees": "The report agrees with the images.",
            "disagrees": f"The report and the images differ in {count} point{'s'[: count != 1]}.",
            "abstained": "No verdict: the study is outside what this model was validated on.",
            "no report": "No report was given; only the images were read.",
        }[self.agreement]


def _plain(value: Any) -> Any:
    if isinstance(value, Finding | Discrepancy | Evidence | Problem):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def locate(regions: Sequence[Region], name: str, side: str | None) -> Region | None:
    """The region where a finding is seen best; any side where none is named."""
    fitting = [r for r in regions if r.finding == name and side in (None, r.side)]
    return max(fitting, key=lambda r: r.score, default=None)


def as_evidence(region: Region) -> Evidence:
    """A region as image evidence."""
    source = region.source
    return Evidence("image", source.slice_index, source.position_mm, region.box, score=region.score)


_SYNONYMS = {
    "pleural fluid": "pleural effusion", "effusion": "pleural effusion",
    "opacity": "consolidation", "heart is enlarged": "cardiomegaly",
    "enlarged heart": "cardiomegaly", "heart is normal": "cardiomegaly",
    "heart is not enlarged": "cardiomegaly", "pleural air": "pneumothorax",
    "aorta is calcified": "aortic calcification", "calcified plaques": "aortic calcification",
    "calcification of the aorta": "aortic calcification", "aorta is not calcified": "aortic calcification",
}  # fmt: skip


def spoken_of(sentence: str, names: Sequence[str]) -> tuple[str, str | None] | None:
    """The finding and side that a sentence names, None if it names none of `names`."""
    words = sentence.lower()
    name = next((n for n in names if n in words), None)
    name = name or next((n for w, n in _SYNONYMS.items() if w in words and n in names), None)
    if name is None:
        return None
    side = re.search(r"\b(right|left)\b", words)
    return name, side[1] if side else None
