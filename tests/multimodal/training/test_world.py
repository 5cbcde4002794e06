"""The generated world: exact truth in the drawing, words that agree with it and betray nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal import prompts
from multimodal.prompts import NamedFinding
from multimodal.training.world import dialogues, mistakes, reports
from multimodal.training.world.phantom import FINDINGS, Key, random_phantom, render

SHAPE = (32, 96, 96)
KEYS = reports.all_keys()
seeds = st.integers(0, 2**31)


def _truth(seed: int) -> list[NamedFinding]:
    return random_phantom(np.random.default_rng(seed)).truth


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_finding_is_drawn_on_its_own_side_and_nowhere_else(key: Key) -> None:
    _, side = key
    for seed in range(3):
        rng = np.random.default_rng((1, seed))
        body = random_phantom(rng, [key])
        drawn = render(body, SHAPE, rng)
        assert [(f.name, f.side) for f in body.truth] == [key]
        assert set(drawn.masks) == {key}
        mask = drawn.masks[key]
        assert mask.any()
        if side is not None:
            columns = np.argwhere(mask)[:, 2] * drawn.affine[0, 2] + drawn.affine[0, 3]
            assert (np.sign(columns - body.shift[0]) == (1 if side == "left" else -1)).mean() > 0.99


def test_a_nodules_mask_has_the_size_that_is_stated() -> None:
    """The ellipsoid's volume, counted in voxels, against the closed form of the stated diameter."""
    for seed in range(5):
        rng = np.random.default_rng((2, seed))
        body = random_phantom(rng, [("nodule", "left")])
        drawn = render(body, (96, 256, 256), rng)
        voxel = abs(np.linalg.det(drawn.affine[:3, :3]))
        counted = 2 * (drawn.masks["nodule", "left"].sum() * voxel * 3 / (4 * np.pi)) ** (1 / 3)
        assert body.truth[0].size_mm == pytest.approx(counted, rel=0.08)


def test_drawing_is_hounsfield_and_repeats_from_its_seed() -> None:
    first, again = (
        render(random_phantom(np.random.default_rng(5)), SHAPE, np.random.default_rng(6))
        for _ in range(2)
    )
    assert np.array_equal(first.voxels, again.voxels)
    assert first.voxels.dtype == np.int16
    assert first.voxels[:, 0, 0].mean() == pytest.approx(-1000, abs=15)  # air in a corner
    body = random_phantom(np.random.default_rng(5), [])
    calm = render(body, SHAPE, np.random.default_rng(6))
    lung = calm.voxels[(calm.voxels < -700) & (calm.voxels > -950)]
    assert np.median(lung) == pytest.approx(body.lung_hu, abs=25)


def test_findings_are_as_often_right_as_left_and_studies_hold_none_to_four() -> None:
    truths = [_truth(seed) for seed in range(600)]
    sides = Counter(f.side for truth in truths for f in truth)
    assert abs(sides["right"] - sides["left"]) < 4 * np.sqrt(sides["right"] + sides["left"])
    assert {len(truth) for truth in truths} == {0, 1, 2, 3, 4}
    assert {f.name for truth in truths for f in truth} == {name for name, _ in FINDINGS}


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_report_states_all_findings_and_denies_only_what_is_absent(seed: int) -> None:
    truth = _truth(seed)
    report = reports.write_report(truth, np.random.default_rng(seed))
    assert {s.about for s in report if not s.denied} == set(truth)
    present = {(f.name, f.side) for f in truth}
    for sentence in report:
        if sentence.denied and sentence.about.side is None:
            assert sentence.about.name not in {name for name, _ in present}
        elif sentence.denied:
            assert (sentence.about.name, sentence.about.side) not in present


@given(seed=seeds, kind=st.sampled_from(mistakes.SENTENCE_MISTAKES))
@settings(max_examples=120, deadline=None)
def test_a_planted_mistake_is_wrong_and_its_correction_is_a_true_sentence(
    seed: int, kind: prompts.ErrorType
) -> None:
    truth, rng = _truth(seed), np.random.default_rng(seed)
    mistake = mistakes.plant(kind, truth, rng)
    if mistake is None:
        return
    assert mistake.verdict.error == kind
    assert mistake.text != mistake.verdict.correction
    if kind == "insertion":
        assert mistake.verdict.correction is None
    elif kind != "typo":
        true_words = {
            reports.Sentence(f, style=(template, in_cm)).text
            for f in truth
            for template in range(12)
            for in_cm in (False, True)
        }
        assert mistake.verdict.correction in true_words
        assert mistake.text not in true_words


@given(seed=seeds, task=st.sampled_from(dialogues.TASKS))
@settings(max_examples=120, deadline=None)
def test_answers_are_what_the_pipelines_can_read_back(seed: int, task: str) -> None:
    truth = _truth(seed)
    dialogue = dialogues.ask(task, truth, np.random.default_rng(seed))
    if dialogue is None:
        return
    if task == "list":
        assert prompts.parse_findings(dialogue.answer) == truth
    elif task == "size":
        assert prompts.parse_size_mm(dialogue.answer) in {f.size_mm for f in truth}
    elif task in ("check", "omission"):
        verdict = prompts.parse_verdict(dialogue.answer)
        assert verdict is not None
        assert (verdict.error or "none") in (dialogue.label, "none")
    elif task == "presence":
        name, side = dialogue.label.split("/")
        there = {(f.name, str(f.side)) for f in truth} | {(f.name, "None") for f in truth}
        assert (dialogue.answer == "yes") == ((name, side) in there)


def test_questions_are_balanced_so_that_a_blind_reader_is_at_chance() -> None:
    """Per question text, yes and no must come about equally often over many studies."""
    answers: dict[str, Counter[str]] = {}
    for seed in range(3000):
        dialogue = dialogues.ask("presence", _truth(seed), np.random.default_rng((9, seed)))
        if dialogue is not None:
            answers.setdefault(dialogue.question, Counter())[dialogue.answer] += 1
    best = sum(max(counts.values()) for counts in answers.values())
    total = sum(sum(counts.values()) for counts in answers.values())
    assert best / total < 0.62


def test_misspelling_always_changes_the_word() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        assert mistakes.misspell("pneumothorax", rng) != "pneumothorax"
