"""The card's figures against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multimodal.training.evaluation import kept
from multimodal.training.measures import (
    Judged,
    Judgement,
    Mended,
    Pointed,
    Scores,
    area,
    balanced,
    calibration_error,
    fit_calibration,
)


def test_balanced_accuracy_ignores_how_often_each_answer_comes() -> None:
    rows = [(True, 0.9)] * 2 + [(True, 0.1)] * 2 + [(False, 0.1)] * 30
    assert balanced(rows) == pytest.approx(0.75)


def test_calibration_error_is_the_gap_between_stated_and_true_shares() -> None:
    honest = [(i < 8, 0.8) for i in range(10)]
    assert calibration_error(honest) == pytest.approx(0.0)
    boastful = [(i < 5, 0.95) for i in range(10)]
    assert calibration_error(boastful) == pytest.approx(0.45)
    assert calibration_error(honest + boastful) == pytest.approx(0.225)


def test_temperature_undoes_a_scale_of_the_logits() -> None:
    """Outcomes drawn from softmax(z), probabilities stated as softmax(2.5 z): the answer is 2.5."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (6000, 3))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = [int(rng.choice(3, p=p)) for p in honest]
    boastful = 2.5 * logits
    stated = boastful - np.log(np.exp(boastful).sum(1, keepdims=True))
    temperature, offset = fit_calibration(stated, true)
    assert temperature == pytest.approx(2.5, rel=0.06)
    assert offset == 0.0


def test_an_offset_undoes_what_was_asked_evenly_and_is_rare() -> None:
    """Trained where half of the answers are yes, asked where 12 % are: log(0.12 / 0.88) less."""
    rng = np.random.default_rng(1)
    present = rng.random(20000) < 0.12
    evidence = rng.normal(np.where(present, 1.0, -1.0))  # its log-odds at even odds are 2 x
    chances = 1 / (1 + np.exp(-2 * evidence / 1.5))
    stated = np.log(np.stack([chances, 1 - chances], 1))
    temperature, offset = fit_calibration(stated, (~present).astype(int).tolist(), offset=True)
    assert temperature == pytest.approx(1 / 1.5, rel=0.06)
    assert offset == pytest.approx(np.log(0.12 / 0.88), abs=0.1)


def test_what_was_measured_before_a_kill_is_not_measured_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def measure(number: int) -> Scores:
        asked.append(number)
        if number < 0:
            raise KeyboardInterrupt
        return Scores(listed=[(number, 2, 3)])

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "a.pkl", measure, -1)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert kept(tmp_path / "a.pkl", measure, 1).listed == [(1, 2, 3)]
    assert asked == [-1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["a.pkl"]


def test_f1_of_a_type_counts_type_and_sentence_together() -> None:
    scores = Scores(listed=[(1, 2, 2)])
    scores.reports = [
        Judgement(True, 0.9, frozenset({("size", 0), ("typo", 1)}), frozenset({("size", 0)})),
        Judgement(True, 0.8, frozenset({("size", 2)}), frozenset({("size", 1), ("omission", -1)})),
        Judgement(False, 0.1, frozenset(), frozenset()),
    ]
    found = scores.per_mistake()
    assert found["size"]["F1 in reports"] == pytest.approx(2 * 1 / 4)
    assert found["typo"]["F1 in reports"] == 0.0
    assert found["omission"]["F1 in reports"] == 0.0
    assert np.isnan(found["unit"]["F1 in reports"])
    assert scores.summary()["report AUROC"] == 1.0


def test_size_errors_are_told_as_medians_in_mm_and_as_shares() -> None:
    scores = Scores(listed=[(0, 0, 0)], sizes=[(10.0, 12.0), (20.0, 21.0), (30.0, 30.0)])
    summary = scores.summary()
    assert summary["size median error (mm)"] == 1.0
    assert summary["size median error (share)"] == pytest.approx(0.05)


def test_a_sentence_is_judged_alone_by_its_probability() -> None:
    scores = Scores(listed=[(0, 0, 0)])
    scores.check = [Judged("agrees", "agrees", 0.2, True), Judged("size", "agrees", 0.4, False),
                    Judged("size", "unit", 0.9, False)]  # fmt: skip
    assert scores.per_mistake()["size"]["alone"] == 0.5
    assert scores.summary()["check error type"] == 0.0
    assert scores.summary()["check balanced accuracy"] == 0.75


def test_evidence_is_counted_of_what_a_reading_claims_and_of_all() -> None:
    scores = Scores(listed=[(0, 0, 0)])
    scores.pointed = [
        Pointed(True, True, False),
        Pointed(True, True, True),
        Pointed(False, False, False),
    ]
    summary = scores.summary()
    assert summary["evidence slice"] == 1.0
    assert summary["evidence box"] == 0.5
    assert summary["evidence slice, claimed or not"] == pytest.approx(2 / 3)


def test_report_figures_are_of_stated_probabilities_and_exact_corrections() -> None:
    """Nine of ten sentences stated at 0.2 are right, one is wrong: 0.1 off; one of two mended."""
    stated = tuple((at == 0, 0.2) for at in range(10))
    true = frozenset({("size", 0), ("typo", 1)})
    scores = Scores(listed=[(0, 0, 0)])
    scores.reports = [
        Judgement(
            True, 0.2, true, true, stated, (Mended("size", False, True), Mended("typo", True, True))
        )
    ]
    summary = scores.summary()
    assert summary["report ECE"] == pytest.approx(0.1)
    assert summary["report correction exact"] == 0.5
    assert summary["report correction exact but for a near size"] == 1.0
    assert scores.per_mistake()["typo"]["corrected in reports"] == 1.0


def test_area_is_half_where_scores_say_nothing() -> None:
    assert area([(True, 0.3), (False, 0.3), (True, 0.3)]) == 0.5


def test_whole_reports_are_scored_by_sentence_and_by_what_is_told_of_it() -> None:
    """Two mistakes found of three, one told that is none; a sentence counts alone, a lack does not."""
    side, size, lack = ("direction", 0), ("size", 1), ("omission", -1)
    reports = [
        Judgement(True, 0.9, frozenset({side, lack}), frozenset({side}),
                  ((True, 0.9), (False, 0.2), (True, 0.3))),
        Judgement(True, 0.8, frozenset({size}), frozenset({size, ("typo", 0)}),
                  ((False, 0.6), (True, 0.8), (False, 0.1))),
        Judgement(False, 0.1, frozenset(), frozenset(), ((False, 0.1), (False, 0.0))),
    ]  # fmt: skip
    assert Scores(reports=reports).of_reports() == pytest.approx(
        {
            "report AUROC": 1.0,
            "sentences, balanced accuracy": (1.0 + 2 / 3) / 2,
            "mistakes, type and sentence F1": 2 * 2 / (3 + 3),
        }
    )
