"""What a reading is made of: findings, discrepancies and the evidence for each.

Plain values; every door (API, CLI, page) prints the same `Reading`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoders.features import Problem
from multimodal.backends import Region
from multimodal.prompts import ErrorType, Side

if TYPE_CHECKING:
    from encoders.dicom import Study

DISCLAIMER = "Research software, not a medical device; not for clinical use."
Decision = Literal["", "accepted", "rejected"]
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
    """What is there, where, how large and how sure.

    `box` (x0, y0, x1, y1) in pixels of the stored slice; `probability` is None where the model only
    names its findings.
    """

    name: str
    side: Side | None
    size_mm: float | None
    slice_index: int | None
    box: tuple[float, float, float, float] | None
    probability: float | None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Discrepancy:
    """Where the report and the images differ, by the types of MedErr-CT (arXiv 2506.19217).

    `sentence` is the report's, None for an omission that no sentence denies. `correction` is what
    it should say; None for an insertion, which should go, or where the model offers none.
    `probability` is None where the model only says so. `decision` is a person's, "" where nobody
    has judged it yet.
    """

    type: ErrorType
    sentence: str | None
    correction: str | None
    probability: float | None
    evidence: tuple[Evidence, ...] = ()
    decision: Decision = ""

    @property
    def suggestion(self) -> str:
        """The correction in words for people."""
        without = "remove the sentence" if self.type == "insertion" else "no correction offered"
        return self.correction or f"({without})"


@dataclass(frozen=True)
class Reading:
    """The result of reading a study with its report.

    `provenance` says what made it: hash of the model's weights, preprocessing, version;
    `report_source` where the report came from ("given text", "dictation", "SR object of the study").
    """

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
    provenance: Mapping[str, str] = field(default_factory=dict)
    report_source: str = ""
    key_slices: tuple[tuple[int, bytes], ...] = field(default=(), repr=False, compare=False)

    @property
    def out_of_range(self) -> bool:
        """Whether the study lies outside what the model was validated on."""
        return any(w.code == "OUT_OF_RANGE" for w in self.warnings)

    @property
    def decided(self) -> bool:
        """Whether a person has judged any of its points."""
        return any(point.decision for point in self.discrepancies)

    def decide(self, decisions: Mapping[int, Decision]) -> Reading:
        """The same reading with a person's decisions on its discrepancies, by their number from 0."""
        points = tuple(
            replace(point, decision=decisions.get(number, point.decision))
            for number, point in enumerate(self.discrepancies)
        )
        return replace(self, discrepancies=points)

    def to_dict(self) -> dict[str, Any]:
        """JSON types; pictures are left to `to_html`."""
        values = {k: v for k, v in self.__dict__.items() if k != "key_slices"}
        signed = (
            {"reviewed": {"by": "", "at": ""}} if self.decided else {}
        )  # for the person to fill
        return {**{k: _plain(v) for k, v in values.items()}, **signed}

    def to_json(self) -> str:
        """Indented JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_html(self) -> str:
        """One self-contained page with the key slices."""
        from pipelines.html import render_reading

        return render_reading(self)

    def to_dicom(self, study: str | Path | Study, folder: Path) -> list[Path]:
        """Write it as DICOM objects of the study it was made from; see `export.write_dicom`."""
        from pipelines.export import write_dicom

        return write_dicom(self, study, folder)

    def verdict(self) -> str:
        """The agreement in a sentence."""
        count = len(self.discrepancies)
        outside = "the study is outside what this model was validated on"
        partly = "part of the report could not be judged"
        return {
            "agrees": "The report agrees with the images.",
            "disagrees": f"The report and the images differ in {count} point{'s'[: count != 1]}.",
            "abstained": f"No verdict: {outside if self.out_of_range else partly}.",
            "no report": "There is no report to judge; only the images were read.",
        }[self.agreement]


def _plain(value: Any) -> Any:
    if isinstance(value, Finding | Discrepancy | Evidence | Problem):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def all_evidence(
    findings: Sequence[Finding], points: Sequence[Discrepancy]
) -> tuple[Evidence, ...]:
    """Everything there is to look at, each thing once: the findings' first."""
    proofs = [e for f in findings for e in f.evidence] + [e for p in points for e in p.evidence]
    return tuple(dict.fromkeys(proofs))


def locate(regions: Sequence[Region], name: str, side: str | None) -> Region | None:
    """The region where a finding is seen best; any side where one of the two has none."""
    fitting = [
        r for r in regions if r.finding == name and (None in (side, r.side) or side == r.side)
    ]
    return max(fitting, key=lambda r: r.score, default=None)


def as_evidence(region: Region, shape: Sequence[int]) -> Evidence:
    """A region as image evidence, cut to the slice of `shape` (rows, columns).

    A view is padded to a square, so a box may reach beyond the slice; one that lies outside
    altogether is left out, the slice it was seen on is kept.
    """
    source, (rows, columns) = region.source, shape
    x0, x1 = (min(max(x, 0.0), float(columns)) for x in (region.box[0], region.box[2]))
    y0, y1 = (min(max(y, 0.0), float(rows)) for y in (region.box[1], region.box[3]))
    box = (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
    return Evidence("image", source.slice_index, source.position_mm, box, score=region.score)
