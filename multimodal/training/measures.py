"""What was asked of a checkpoint and what came back, and the figures made of it.

Knows no model and no study: answers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from multimodal import prompts
from multimodal.training.vision_pretraining import auroc


@dataclass(frozen=True)
class Asked:
    """Whether a finding is there: the truth, the answer, and the probability stated."""

    key: str
    true: bool
    said: bool
    probability: float


@dataclass(frozen=True)
class Judged:
    """A sentence as it was judged: true and stated verdict, probability of an error, correction."""

    true: str
    said: str
    wrong: float
    exact: bool


@dataclass(frozen=True)
class Mended:
    """A mistake and its correction: whether it is exact, and whether it is so but for a near size."""

    type: str
    exact: bool
    near: bool


@dataclass(frozen=True)
class Judgement:
    """A whole report: whether it is wrong, how sure of that the model was, and each point.

    Attributes:
        wrong: whether it is.
        sure: the greatest probability that was stated.
        true: points (type, sentence number); the number of a finding left out is -1.
        said: the same, as they were found.
        stated: of every sentence, and of what is left out: whether it is wrong, the probability.
        mended: how every true point is corrected.
    """

    wrong: bool
    sure: float
    true: frozenset[tuple[str, int]]
    said: frozenset[tuple[str, int]]
    stated: tuple[tuple[bool, float], ...] = ()
    mended: tuple[Mended, ...] = ()


@dataclass(frozen=True)
class Pointed:
    """The region shown of a finding that is there: whether it is claimed, and where it lies.

    Attributes:
        claimed: whether a reading would show it.
        on_slice: whether the slice named shows the finding.
        in_box: whether the box there lies over it.
    """

    claimed: bool
    on_slice: bool
    in_box: bool


@dataclass
class Scores:
    """Answers gathered over studies."""

    presence: list[Asked] = field(default_factory=list)
    elsewhere: list[bool] = field(default_factory=list)  # claims of what another region shows
    listed: list[tuple[int, int, int]] = field(default_factory=list)  # hits, said, true
    sizes: list[tuple[float, float]] = field(default_factory=list)  # true, given; mm
    side: list[bool] = field(default_factory=list)
    check: list[Judged] = field(default_factory=list)
    omission: list[tuple[bool, float, bool]] = field(default_factory=list)
    reports: list[Judgement] = field(default_factory=list)
    pointed: list[Pointed] = field(default_factory=list)
    novelty: list[float] = field(default_factory=list)  # in shares of the limit

    @classmethod
    def joined(cls, parts: Iterable[Scores]) -> Scores:
        """The answers of several as those of one."""
        whole = cls()
        for part in parts:
            for name, rows in vars(part).items():
                getattr(whole, name).extend(rows)
        return whole

    def summary(self) -> dict[str, float]:
        """The figures of the model card."""
        rows = _by_key(self.presence)
        claimed = [a for a in self.presence if a.probability >= 0.5]
        hits, said, true = (sum(column) for column in zip(*self.listed, strict=True))
        wrong = [j for j in self.check if j.true != prompts.AGREES]
        off = np.array(
            [[abs(given - true), abs(given - true) / true] for true, given in self.sizes]
        )
        off = off.reshape(-1, 2)
        return {
            "presence balanced accuracy": mean(self.per_finding().values()),
            "presence AUROC": mean(area([(a.true, a.probability) for a in r]) for r in rows.values()),
            "claimed findings F1": f1(
                sum(a.true for a in claimed), len(claimed), sum(a.true for a in self.presence)
            ),
            "claimed of another region": mean(self.elsewhere),
            "list F1": f1(hits, said, true),
            "size median error (mm)": _median(off[:, 0]),
            "size median error (share)": _median(off[:, 1]),
            "side accuracy": mean(self.side),
            "check balanced accuracy": balanced([(j.true != prompts.AGREES, j.wrong) for j in self.check]),
            "check error type": mean(j.true == j.said for j in wrong),
            "check correction exact": mean(j.exact for j in wrong),
            "omission balanced accuracy": balanced([(t, p) for t, p, _ in self.omission]),
            "omission correction exact": mean(e for t, _, e in self.omission if t),
            "report AUROC": area([(r.wrong, r.sure) for r in self.reports]),
            "report correction exact": mean(m.exact for r in self.reports for m in r.mended),
            "report correction exact but for a near size": mean(
                m.near for r in self.reports for m in r.mended
            ),
            "evidence slice": mean(p.on_slice for p in self.pointed if p.claimed),
            "evidence box": mean(p.in_box for p in self.pointed if p.claimed),
            "evidence slice, claimed or not": mean(p.on_slice for p in self.pointed),
            "presence ECE": calibration_error([(a.true, a.probability) for a in self.presence]),
            "report ECE": calibration_error([pair for r in self.reports for pair in r.stated]),
            "check ECE": calibration_error([(j.true != prompts.AGREES, j.wrong) for j in self.check]),
            "withheld as out of range": mean(n > 1 for n in self.novelty),
        }  # fmt: skip

    def per_finding(self) -> dict[str, float]:
        """Balanced accuracy of presence for every (side, finding)."""
        return {
            key: balanced([(a.true, float(a.said)) for a in rows])
            for key, rows in _by_key(self.presence).items()
        }

    def per_mistake(self) -> dict[str, dict[str, float]]:
        """Of each type: sentences alone judged rightly; F1 and corrections in whole reports."""
        found = {}
        for kind in (prompts.AGREES, *prompts.ERROR_TYPES):
            rows = [j for j in self.check if j.true == kind]
            right = mean((j.wrong >= 0.5) == (kind != prompts.AGREES) for j in rows)
            mended = [m for r in self.reports for m in r.mended if m.type == kind]
            found[kind] = {
                "alone": right, "F1 in reports": self._f1(kind),
                "corrected in reports": mean(m.exact for m in mended),
                "but for a near size": mean(m.near for m in mended),
            }  # fmt: skip
        return found

    def of_reports(self) -> dict[str, float]:
        """Of whole reports: whether anything is wrong, which sentences are, and what and where it is."""
        sentences = [pair for report in self.reports for pair in report.stated[:-1]]
        return {
            "report AUROC": area([(r.wrong, r.sure) for r in self.reports]),
            "sentences, balanced accuracy": balanced(sentences),
            "mistakes, type and sentence F1": self._f1(*prompts.ERROR_TYPES),
        }

    def _f1(self, *kinds: str) -> float:
        """NaN where no report has the types and none is said to, as with sentences that agree."""
        pairs = [
            ({p for p in report.true if p[0] in kinds}, {p for p in report.said if p[0] in kinds})
            for report in self.reports
        ]
        said, true = (sum(len(pair[k]) for pair in pairs) for k in (1, 0))
        hits = sum(len(true & said) for true, said in pairs)
        return f1(hits, said, true) if said or true else float("nan")


def _by_key(rows: Iterable[Asked]) -> dict[str, list[Asked]]:
    found: dict[str, list[Asked]] = {}
    for row in sorted(rows, key=lambda a: a.key):
        found.setdefault(row.key, []).append(row)
    return found


def f1(hits: int, said: int, true: int) -> float:
    """Harmonic mean of precision and recall; 0 where nothing was said and nothing is true."""
    return 2 * hits / max(said + true, 1)


def mean(values: Iterable[float]) -> float:
    """The mean of what is known; NaN of nothing."""
    listed = [float(v) for v in values if not np.isnan(v)]
    return float(np.mean(listed)) if listed else float("nan")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def balanced(rows: Sequence[tuple[bool, float]]) -> float:
    """Mean of sensitivity and specificity at probability one half."""
    return mean(mean((p >= 0.5) == t for t, p in rows if t == wanted) for wanted in (True, False))


def area(rows: Sequence[tuple[bool, float]]) -> float:
    """Area under the ROC curve of (truth, score) pairs."""
    return auroc(np.array([s for _, s in rows]), np.array([t for t, _ in rows], bool))


def calibration_error(rows: Sequence[tuple[bool, float]], num_bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017) of (truth, probability) pairs, in equal bins."""
    if not rows:
        return float("nan")
    truth = np.array([t for t, _ in rows], float)
    stated = np.array([p for _, p in rows])
    bins = np.minimum((stated * num_bins).astype(int), num_bins - 1)
    gaps = [abs(truth[bins == b].sum() - stated[bins == b].sum()) for b in np.unique(bins)]
    return float(sum(gaps) / len(rows))


def fit_calibration(
    log_probabilities: np.ndarray, true: Sequence[int], *, offset: bool = False
) -> tuple[float, float]:
    """The temperature of least cross-entropy (Guo et al. 2017), between a fifth and five.

    Args:
        log_probabilities: of the choices of each question, `[questions, choices]`.
        true: which of them was right.
        offset: whether the first choice may be raised or lowered too (Platt 1999).

    Returns:
        Temperature and offset.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    rows = np.arange(len(true))

    def loss(fitted: np.ndarray) -> float:
        scaled = log_probabilities / np.exp(fitted[0])
        scaled[:, 0] += fitted[1]
        return float((logsumexp(scaled, 1) - scaled[rows, list(true)]).mean())

    most = 8.0 if offset else 0.0
    bounds = [(np.log(0.2), np.log(5.0)), (-most, most)]
    temperature, raised = minimize(loss, np.zeros(2), bounds=bounds).x
    return float(np.exp(temperature)), float(raised)
