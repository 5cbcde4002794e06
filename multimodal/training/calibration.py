"""Fitted on studies kept for it: what makes stated probabilities come true.

Temperature and offset of every kind of question, the weights of what is said of a sentence and
what is seen, and those of what is said of a size and what is measured (`multimodal.review`). All are
written into the checkpoint's configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from multimodal import prompts
from multimodal.local import LocalBackend
from multimodal.measuring import Measuring, Sizes, weigh_sizes
from multimodal.prompts import Verdict
from multimodal.review import (
    OMISSION,
    VERDICTS,
    Key,
    Presence,
    ReviewWeights,
    believed,
    denial,
    log_odds,
    seen_of,
    sized_of,
    sizes_of,
    surest_unspoken,
)
from multimodal.training.cases import (
    CALIBRATION_SEED,
    PRESENCE,
    Case,
    Sized,
    Talk,
    make_case,
    processes,
    world_of,
)
from multimodal.training.measures import fit_calibration
from multimodal.training.reviews import Heeded, heed, sizes_heeded
from multimodal.training.world.mistakes import Faulty, faulty_report
from multimodal.training.world.reports import Writer, all_keys

_FEW_SIZES = 20  # fewer say nothing about how far measures are off
_ALIKE = 0.5  # by how much, in logarithms, the spreads of two findings are thought to differ
_REPORTS = 4  # of a study: mistakes of a kind are rare in one
_UNSURE = 0.36  # what few rows do not prove weighs little
Fitted = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Reviewed:
    """What a checkpoint answered about one faulty report, as its scores are.

    Attributes:
        lines: about every sentence.
        right: their true verdicts.
        kept: the report's sentences as they should be.
        omission: probability that these leave something out.
        left_out: whether they do.
    """

    lines: list[Heeded]
    right: list[str]
    kept: list[str]
    omission: float
    left_out: bool


@dataclass(frozen=True)
class Answers:
    """What a checkpoint answered about one kept study, as its scores are.

    Attributes:
        choices: (choices, their probabilities, the right one's number) of every question but
            those for sizes.
        sizes: of every finding that has one.
        presence: probability of every finding.
        reviews: of some faulty reports.
        seen: probability of every finding by what is seen alone.
        present: what is there.
    """

    choices: list[tuple[tuple[str, ...], list[float], int]]
    sizes: list[Sized]
    presence: dict[Key, float]
    reviews: list[Reviewed] = field(default_factory=list)
    seen: Presence = field(default_factory=dict)
    present: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class _Measured:
    """A finding's size: what is said, measured and true, and how surely it is there."""

    name: str
    said: Sizes
    measured_mm: float
    true_mm: float
    seen: float

    def lost(self, measure: Measuring) -> float:
        """Minus the logarithm of the true size's probability."""
        likely = weigh_sizes(self.name, self.said, self.measured_mm, measure)
        return -math.log(max(likely[self.true_mm], 1e-12))


def calibrate(model: Path, num_studies: int, num_workers: int = 1) -> None:
    """Fit all on studies kept for it and write them into the configuration."""
    shares = [range(i, num_studies, num_workers) for i in range(num_workers)]
    with processes(num_workers) as pool:
        told = pool.map(partial(_ask_about, model), shares)
        answers = list(chain.from_iterable(told))
    fitted = _fit_choices(answers)
    file = model / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["choice_calibration"] = fitted
    config["review_weights"] = asdict(fit_review(answers, fitted))
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _ask_about(model: Path, seeds: range) -> list[Answers]:
    """What a process answers about some kept studies."""
    from tqdm import tqdm

    backend = LocalBackend.from_pretrained(model, device="cpu")
    backend.model.config.choice_calibration = None  # as the scores are
    world, answers = world_of(backend.model.config), []
    for seed in tqdm(seeds, desc="calibrate", mininterval=10):
        case = make_case(world, seed, CALIBRATION_SEED)
        rng = np.random.default_rng((CALIBRATION_SEED, 1, seed))
        drawn = [
            faulty_report(Writer(case.truth, rng, case.vocabulary)) for _ in range(_REPORTS - 1)
        ]
        answers.append(_ask(Talk(backend, case), case, [case.report, *drawn]))
    backend.close()
    return answers


def _ask(talk: Talk, case: Case, reports: Sequence[Faulty]) -> Answers:
    present = {(f.name, f.side) for f in case.truth}
    presence = {
        key: answer.choices["yes"]
        for key, answer in talk.presence(all_keys(case.vocabulary)).items()
    }
    choices: list[tuple[tuple[str, ...], list[float], int]] = [
        (PRESENCE, [chance, 1 - chance], int(key not in present))
        for key, chance in presence.items()
    ]
    for known, task in ((VERDICTS, "check"), (OMISSION, "omission")):
        asked = [q for q in case.questions if q.task == task]
        told = talk.ask_all([q.question for q in asked], known)
        for question, answer in zip(asked, told, strict=True):
            label = question.label if question.label in known else known[0]
            choices.append((known, [answer.choices[c] for c in known], known.index(label)))
    names = [name for name, _ in case.vocabulary.findings]
    reviews = [_review(talk, report, names) for report in reports]
    return Answers(
        choices, talk.sizes(case.truth), presence, reviews, talk.seen, frozenset(present)
    )


def _review(talk: Talk, report: Faulty, names: Sequence[str]) -> Reviewed:
    right = [line.mistake.verdict if line.mistake else Verdict(None) for line in report.lines]
    corrected = [
        line.text if verdict.error is None else verdict.correction
        for line, verdict in zip(report.lines, right, strict=True)
    ]
    kept = [text for text in corrected if text is not None]
    whole = prompts.FIND_OMISSION.format(report=" ".join(kept))
    return Reviewed(
        heed([line.text for line in report.lines], talk, names),
        [verdict.error or prompts.AGREES for verdict in right],
        kept, talk.ask(whole, OMISSION).choices["omission"], bool(report.left_out),
    )  # fmt: skip


def _fit_choices(answers: Sequence[Answers]) -> Fitted:
    fitted = {}
    asked = [choice for answer in answers for choice in answer.choices]
    asked += [
        (prompts.SIZES, [size.said[words] for words in prompts.SIZES], _nearest(size.true_mm))
        for answer in answers
        for size in answer.sizes
    ]
    for known in (PRESENCE, VERDICTS, OMISSION, prompts.SIZES):
        rows = [(chances, right) for of, chances, right in asked if of == known]
        if rows:
            logs = np.log(np.maximum([chances for chances, _ in rows], 1e-12))
            # findings are rare in a study and were asked for evenly in training
            fitted[known[0]] = fit_calibration(
                logs, [right for _, right in rows], offset=known is PRESENCE
            )
    return fitted


def _nearest(size_mm: float) -> int:
    """The number of the size that a model may state."""
    return min(max(round(size_mm) - prompts.SIZES_MM[0], 0), len(prompts.SIZES) - 1)


def fit_review(answers: Sequence[Answers], fitted: Fitted) -> ReviewWeights:
    """The weights of least cross-entropy on whole reports; without any report, those of the
    words alone.
    """
    sight = _fit_presence(answers, fitted)
    presences = [_believed(answer, fitted, sight) for answer in answers]
    measure = _fit_measure(answers, presences, fitted)
    words_alone = ReviewWeights(1.0, 0.0, {}, (1.0, 0.0, 0.0), measure, presence=sight)
    said, seen, sized, right, doubts, missing = [], [], [], [], [], []
    for review, presence in (
        (review, presence)
        for answer, presence in zip(answers, presences, strict=True)
        for review in answer.reviews
    ):
        for line, verdict in zip(review.lines, review.right, strict=True):
            chances = calibrated(line.said, fitted)
            seeing = seen_of(line.claim, presence, denied=denial(line.text, chances))
            heeded = replace(line, sizes=calibrated(line.sizes, fitted))
            sizing = sized_of(line.claim, presence, sizes=sizes_heeded(heeded, words_alone))
            said.append([chances[kind] for kind in VERDICTS])
            seen.append([seeing[kind] for kind in VERDICTS])
            sized.append([sizing[kind] for kind in VERDICTS])
            right.append(VERDICTS.index(verdict))
        unspoken = surest_unspoken(presence, review.kept, sorted({n for n, _ in presence}))
        words = calibrated({OMISSION[0]: 1 - review.omission, OMISSION[1]: review.omission}, fitted)
        doubts.append([log_odds(words["omission"]), log_odds(unspoken[1] if unspoken else 0.0)])
        missing.append(review.left_out)
    if not right:
        return words_alone
    of_each = [np.log(np.maximum(chances, 1e-8)) for chances in (said, seen, sized)]
    weights, added = _fit_verdicts(np.stack(of_each), right)
    left_out = _fit_odds(np.array(doubts), np.array(missing, float))
    by_kind = dict(zip(VERDICTS[1:], added, strict=True))
    return ReviewWeights(weights[0], weights[1], by_kind, left_out, measure, weights[2], sight)


def _believed(
    answer: Answers, fitted: Fitted, sight: tuple[float, float, float] | None
) -> dict[Key, float]:
    """Every finding's probability as a reading states it."""
    weights = ReviewWeights(1.0, 0.0, {}, (1.0, 0.0, 0.0), presence=sight)
    return {
        key: believed(_yes(p, fitted), answer.seen.get(key), weights)
        for key, p in answer.presence.items()
    }


def _yes(chance: float, fitted: Fitted) -> float:
    return calibrated({"yes": chance, "no": 1 - chance}, fitted)["yes"]


def _fit_presence(answers: Sequence[Answers], fitted: Fitted) -> tuple[float, float, float] | None:
    """How much counts what is said of a finding, and what is seen of it; None where nothing is seen."""
    rows = [
        (log_odds(_yes(chance, fitted)), log_odds(answer.seen[key]), key in answer.present)
        for answer in answers
        for key, chance in answer.presence.items()
        if key in answer.seen
    ]
    if not rows:
        return None
    values = np.array(rows, float)
    return _fit_odds(values[:, :2], values[:, 2])


def calibrated(chances: Mapping[str, float], fitted: Fitted) -> dict[str, float]:
    """What a checkpoint with this calibration states where its scores say `chances`."""
    if not chances:
        return {}
    first = next(iter(chances))
    temperature, offset = fitted.get(first, (1.0, 0.0))
    scores = np.log(np.maximum(list(chances.values()), 1e-12)) / temperature
    scores[0] += offset
    shares = np.exp(scores - scores.max())
    return dict(zip(chances, (shares / shares.sum()).tolist(), strict=True))


def _fit_verdicts(opinions: np.ndarray, right: Sequence[int]) -> tuple[list[float], list[float]]:
    """Of logarithms `[opinions, sentences, verdicts]` the weights, and what is added to each mistake."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    rows, num = np.arange(len(right)), len(opinions)

    def loss(fitting: np.ndarray) -> float:
        scores = np.tensordot(fitting[:num], opinions, 1)
        scores[:, 1:] += fitting[num:]
        lost = logsumexp(scores, 1) - scores[rows, list(right)]
        return float(lost.mean() + 1e-3 * (fitting[num:] ** 2).sum())  # some mistakes are rare

    start = np.r_[1.0, np.zeros(num - 1 + len(VERDICTS) - 1)]
    heeded = [(0.0, None)] * num  # none may speak for its opposite
    bounds = [*heeded, *[(None, None)] * (len(VERDICTS) - 1)]
    found = minimize(loss, start, bounds=bounds).x.tolist()
    return found[:num], found[num:]


def _fit_measure(
    answers: Sequence[Answers], presences: Sequence[Mapping[Key, float]], fitted: Fitted
) -> Measuring | None:
    """What is said and what is measured, so weighed that true sizes are likeliest; None of few.

    A finding counts as much as it is held to be there: the size of what is not seen nobody states.
    Spreads of findings differ from that of all together only as far as their sizes prove it.
    """
    from scipy.optimize import minimize

    rows = [
        _Measured(
            size.name,
            sizes_of(size.name, calibrated(size.said, fitted), None, None),
            size.measured_mm,
            prompts.SIZES_MM[_nearest(size.true_mm)],
            presence.get((size.name, size.side), 1.0),
        )
        for answer, presence in zip(answers, presences, strict=True)
        for size in answer.sizes
        if size.measured_mm is not None
    ]
    if len(rows) < _FEW_SIZES:
        return None
    names = sorted({row.name for row in rows})

    def loss(fitting: np.ndarray) -> float:
        words, *spreads = np.exp(fitting).tolist()
        measure = Measuring(words, dict(zip(names, spreads, strict=True)))
        lost = sum(row.seen * row.lost(measure) for row in rows)
        apart = (fitting[1:] - fitting[1:].mean()) / _ALIKE
        return lost + float((apart**2).sum()) / 2

    start = np.log([0.5, *[0.2] * len(names)])
    words, *spreads = np.exp(minimize(loss, start).x).tolist()
    return Measuring(words, dict(zip(names, spreads, strict=True)))


def _fit_odds(opinions: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Of two opinions' log odds `[rows, 2]` on what is true or not, the weights, and what is added."""
    from scipy.optimize import minimize

    def loss(weights: np.ndarray) -> float:
        scores = opinions @ weights[:2] + weights[2]
        lost = np.logaddexp(0, scores) - true * scores
        return float(lost.sum() + _UNSURE * (weights**2).sum())

    bounds = [(0.0, None), (0.0, None), (None, None)]
    said, seen, added = minimize(loss, np.array([1.0, 0.0, 0.0]), bounds=bounds).x
    return float(said), float(seen), float(added)
