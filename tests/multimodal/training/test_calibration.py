"""Weights of what is said and seen, found again from outcomes that were drawn with known ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from multimodal.prompts import SIZES, NamedFinding
from multimodal.review import (
    OMISSION,
    VERDICTS,
    ReviewWeights,
    believed,
    denial,
    left_out,
    log_odds,
    weigh,
)
from multimodal.training.calibration import Answers, Reviewed, calibrated, fit_review
from multimodal.training.cases import Sized
from multimodal.training.reviews import Heeded

RIGHT, LEFT = ("nodule", "right"), ("nodule", "left")
WORDS = ReviewWeights(1.0, 0.0, {}, (1.0, 0.0, 0.0))
TRUE_SAID, TRUE_SEEN, TRUE_SIZED, RARER = 0.8, 0.4, 0.9, -1.5


def _answers(count: int) -> list[Answers]:
    """Sentences about a right nodule; verdicts drawn from said^0.8 seen^0.4 sized^0.9, all mistakes rarer."""
    rng = np.random.default_rng(0)
    rarer = dict.fromkeys(VERDICTS[1:], RARER)
    true = ReviewWeights(TRUE_SAID, TRUE_SEEN, rarer, (0.7, 0.5, -1.0), sized=TRUE_SIZED)
    claim, text = NamedFinding("nodule", "right", 14.0), "There is a 14 mm right nodule."
    answers = []
    for _ in range(count):
        shares = rng.dirichlet([1.5, 1e-3, 0.8, 0.8, 0.4, 0.2, 0.2])
        said = dict(zip(VERDICTS, np.maximum(shares, 1e-7).tolist(), strict=True))
        presence = {RIGHT: rng.random(), LEFT: rng.random()}
        chance = rng.random()
        verdicts = weigh(
            said, claim, presence, denied=denial(text, said),
            sizes={14.0: chance, 30.0: 1 - chance}, weights=true,
        )  # fmt: skip
        right = str(rng.choice(list(verdicts), p=list(verdicts.values())))
        omission, told = rng.random(), [text]
        missing = rng.random() < left_out(omission, presence[LEFT], true)
        heeded = [Heeded(text, said, claim, {"14 mm": chance, "30 mm": 1 - chance}, None)]
        answers.append(
            Answers([], [], presence, [Reviewed(heeded, [right], told, omission, missing)])
        )
    return answers


def test_the_weights_that_drew_the_verdicts_are_found_again() -> None:
    found = fit_review(_answers(3000), {})
    assert found.said == pytest.approx(TRUE_SAID, abs=0.1)
    assert found.seen == pytest.approx(TRUE_SEEN, abs=0.1)
    assert found.sized == pytest.approx(TRUE_SIZED, abs=0.15)
    assert found.verdicts["insertion"] == pytest.approx(RARER, abs=0.25)
    assert found.left_out == pytest.approx((0.7, 0.5, -1.0), abs=0.15)


def test_what_is_said_and_seen_of_a_finding_count_by_how_often_each_was_right() -> None:
    """Findings drawn by weights of 0.3 and 0.8 of two opinions, both seldom sure."""
    rng = np.random.default_rng(2)
    answers = []
    for _ in range(4000):
        said, seen = rng.uniform(0.02, 0.98, 2).tolist()
        there = rng.random() < believed(said, seen, replace(WORDS, presence=(0.3, 0.8, -0.5)))
        present = frozenset({RIGHT} if there else ())
        answers.append(Answers([], [], {RIGHT: said}, [], {RIGHT: seen}, present))
    assert fit_review(answers, {}).presence == pytest.approx((0.3, 0.8, -0.5), abs=0.1)
    assert fit_review([replace(a, seen={}) for a in answers[:9]], {}).presence is None


def test_a_measure_counts_by_how_far_it_was_off() -> None:
    """Words that know nothing beside measures of Student's t: its spread is found again."""
    rng = np.random.default_rng(1)
    even = dict.fromkeys(SIZES, 1 / len(SIZES))
    off = rng.standard_t(3, 300) * 0.2 / math.sqrt(3)
    spreads = {"nodule": 0.2, "mass": 0.05, "renal cyst": 0.4}
    sizes = [
        Sized(name, None, even, 20.0 * math.exp(-spread / 0.2 * x), 20.0)
        for name, spread in spreads.items()
        for x in off.tolist()
    ]
    found = fit_review([Answers([], sizes, {})], {})
    assert found.measure is not None
    assert found.measure.spread == pytest.approx(spreads, rel=0.2)
    few_of_one = fit_review([Answers([], [*sizes[:300], *sizes[300:302]], {})], {})
    assert few_of_one.measure is not None
    assert few_of_one.measure.spread["nodule"] == pytest.approx(0.2, rel=0.2)
    assert 0.05 < few_of_one.measure.spread["mass"] < 0.2  # two say that it is less, not how much
    unseen = {("nodule", "left"): 0.001}
    wild = [Sized("nodule", "left", even, 70.0 * math.exp(x), 20.0) for x in off.tolist()]
    both = [
        Answers([], sizes[:300], {}),
        Answers([], wild, unseen),
    ]
    found = fit_review(both, {})
    assert found.measure is not None
    assert found.measure.spread["nodule"] == pytest.approx(
        0.2, rel=0.2
    )  # what is not seen says nothing
    few = fit_review([Answers([], sizes[:5], {})], {})
    assert few.measure is None


def test_without_any_report_the_words_alone_count() -> None:
    assert fit_review([], {}) == ReviewWeights(1.0, 0.0, {}, (1.0, 0.0, 0.0))


def test_probabilities_are_calibrated_as_a_checkpoint_states_them() -> None:
    """Scores divided by the temperature, the first raised by the offset: a shift of log odds."""
    stated = calibrated({"yes": 0.8, "no": 0.2}, {"yes": (2.0, -1.0)})
    assert log_odds(stated["yes"]) == pytest.approx(log_odds(0.8) / 2 - 1)
    assert calibrated({"yes": 0.8, "no": 0.2}, {}) == pytest.approx({"yes": 0.8, "no": 0.2})
    words = calibrated({OMISSION[0]: 0.9, OMISSION[1]: 0.1}, {OMISSION[0]: (0.5, 0.0)})
    assert words[OMISSION[1]] == pytest.approx(0.01 / 0.82)
    assert math.isclose(sum(words.values()), 1.0)
