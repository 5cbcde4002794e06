"""No shortcuts in the generated world: who sees only the words or only the header is at chance.

The guesser is a linear classifier on counts of words (and of neighbouring words), fitted on half of
the questions and asked about the other half.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from multimodal.prompts import AGREES
from multimodal.training.measures import area
from multimodal.training.world import dialogues, mistakes
from multimodal.training.world.findings import REGIONS
from multimodal.training.world.reports import Writer
from multimodal.training.world.scan import random_scan
from multimodal.training.world.worlds import WORLDS, random_body

NUM_STUDIES = 1500


def _words(text: str) -> list[str]:
    found = re.findall(r"[a-z]+|\d+(?:\.\d+)?|[一-鿿]", text.lower())
    return [*found, *(" ".join(pair) for pair in pairwise(found))]


def _guess(texts: Sequence[str], labels: Sequence[bool]) -> float:
    """AUROC of a ridge regression on words, on the half it was not fitted on."""
    index: dict[str, int] = {}
    rows = [[index.setdefault(w, len(index)) for w in _words(t)] for t in texts]
    counts = np.zeros((len(texts), len(index)), np.float32)
    for row, words in zip(counts, rows, strict=True):
        np.add.at(row, words, 1.0)
    return _fit(counts, labels)


def _fit(features: np.ndarray, labels: Sequence[bool], ridge: float = 30.0) -> float:
    truth, half = np.array(labels, float), len(labels) // 2
    centred = features - features[:half].mean(0)
    seen = centred[:half]
    gram = seen.T @ seen + ridge * np.eye(seen.shape[1])
    weights = np.linalg.solve(gram, seen.T @ (truth[:half] - truth[:half].mean()))
    scores = centred[half:] @ weights
    return area(list(zip(truth[half:] > 0.5, scores.tolist(), strict=True)))


def _asked(world: str, task: str) -> list[dialogues.Dialogue]:
    made = WORLDS[world]
    asked = []
    for seed in range(NUM_STUDIES):
        rng = np.random.default_rng((31, seed))
        truth, vocabulary = made.truth(rng)
        for _ in range(2):
            dialogue = dialogues.ask(task, truth, rng, vocabulary)
            if dialogue is not None:
                asked.append(dialogue)
    return asked


@pytest.mark.parametrize("world", WORLDS)
def test_a_blind_reader_of_sentences_cannot_tell_right_from_wrong(world: str) -> None:
    """Of the mistakes that only the images show; a wrong unit or spelling stands in the text."""
    asked = [q for q in _asked(world, "check") if q.label in (AGREES, *mistakes.NEED_IMAGES)]
    blind = _guess([q.question for q in asked], [q.label != AGREES for q in asked])
    assert blind == pytest.approx(0.5, abs=0.1)


def test_who_knows_the_spelling_of_units_finds_a_wrong_one_so_the_guesser_is_able() -> None:
    asked = [q for q in _asked("phantom", "check") if q.label in (AGREES, "unit")]
    assert _guess([q.question for q in asked], [q.label != AGREES for q in asked]) > 0.7


@pytest.mark.parametrize("world", WORLDS)
def test_a_blind_reader_of_questions_is_at_chance(world: str) -> None:
    asked = _asked(world, "presence")
    blind = _guess([q.question for q in asked], [q.answer in ("yes", "是") for q in asked])
    assert blind == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("region", REGIONS)
def test_the_header_betrays_no_finding(region: str) -> None:
    """Slices, spacing, field, position, order, kernel and noise against whether there is anything."""
    rows, labels = [], []
    for seed in range(900):
        rng = np.random.default_rng((33, seed))
        body = random_body(rng, region)  # type: ignore[arg-type]
        scan = random_scan(rng, body.field_mm, body.length_mm)
        header = (scan.shape[0], *scan.spacing_mm, scan.bottom_mm, scan.head_first, scan.blur_mm,
                  scan.noise_hu, scan.position == "HFP", scan.position == "FFS", scan.tilt)  # fmt: skip
        rows.append([float(v) for v in header])
        labels.append(len(body.lesions) > 1)
    features = np.array(rows, np.float32)
    features = (features - features.mean(0)) / features.std(0)
    squares = np.concatenate([features, features**2], 1)
    assert _fit(squares, labels) == pytest.approx(0.5, abs=0.1)


def test_a_whole_report_without_slips_of_the_pen_betrays_no_mistake() -> None:
    """Reports whose mistakes need the images, against reports without a mistake."""
    world, texts, labels = WORLDS["body"], [], []
    for seed in range(2 * NUM_STUDIES):
        rng = np.random.default_rng((34, seed))
        truth, vocabulary = world.truth(rng)
        writer = Writer(truth, rng, vocabulary)
        report = mistakes.faulty_report(writer)
        kinds = {line.mistake.verdict.error for line in report.lines if line.mistake}
        if kinds & {"unit", "typo"}:
            continue
        claimed = [line.about for line in report.lines if not line.denied]
        texts.append(writer.sections([line.text for line in report.lines], claimed))
        labels.append(report.wrong)
    assert _guess(texts, labels) == pytest.approx(0.5, abs=0.12)
