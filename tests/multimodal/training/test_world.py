"""The generated worlds: exact truth in the drawing, words that agree with it."""

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
from multimodal.training.world.reports import Vocabulary, Writer
from multimodal.training.world.wording import NAMES_ZH, WORDING
from multimodal.training.world.worlds import WORLDS

SHAPE = (32, 96, 96)
KEYS = reports.all_keys()
seeds = st.integers(0, 2**31)
worlds = st.sampled_from(sorted(WORLDS))


def _truth(seed: int, world: str = "phantom") -> tuple[list[NamedFinding], Vocabulary]:
    return WORLDS[world].truth(np.random.default_rng(seed))


def _writer(seed: int, world: str) -> Writer:
    truth, vocabulary = _truth(seed, world)
    return Writer(truth, np.random.default_rng(seed), vocabulary)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_finding_of_a_phantom_is_drawn_on_its_own_side_and_nowhere_else(key: Key) -> None:
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


@pytest.mark.parametrize("world", WORLDS)
def test_findings_are_as_often_right_as_left_and_studies_hold_none_to_four(world: str) -> None:
    truths = [_truth(seed, world)[0] for seed in range(800)]
    sides = Counter(f.side for truth in truths for f in truth)
    assert abs(sides["right"] - sides["left"]) < 4 * np.sqrt(sides["right"] + sides["left"])
    assert {len(truth) for truth in truths} == {0, 1, 2, 3, 4}
    known = {name for name, _ in WORLDS[world].findings}
    assert {f.name for truth in truths for f in truth} == known


@given(seed=seeds, world=worlds)
@settings(max_examples=80, deadline=None)
def test_a_report_states_all_findings_and_denies_only_what_is_absent(seed: int, world: str) -> None:
    writer = _writer(seed, world)
    report = writer.report()
    assert {s.about for s in report if not s.denied} == set(writer.truth)
    present = {(f.name, f.side) for f in writer.truth}
    for sentence in report:
        if sentence.denied and sentence.about.side is None:
            assert sentence.about.name not in {name for name, _ in present}
        elif sentence.denied:
            assert (sentence.about.name, sentence.about.side) not in present


def _true_words(writer: Writer) -> set[str]:
    """Everything that can truly be said of what a study shows."""
    return {
        reports.Sentence(f, False, (template, in_cm), writer.language, rich).text
        for f in writer.truth
        for template in range(12)
        for in_cm in (False, True)
        for rich in (False, True)
    }


@given(seed=seeds, world=worlds, kind=st.sampled_from(mistakes.SENTENCE_MISTAKES))
@settings(max_examples=200, deadline=None)
def test_a_planted_mistake_is_wrong_and_its_correction_is_a_true_sentence(
    seed: int, world: str, kind: prompts.ErrorType
) -> None:
    writer = _writer(seed, world)
    mistake = mistakes.plant(kind, writer)
    if mistake is None:
        return
    assert mistake.verdict.error == kind
    assert mistake.text != mistake.verdict.correction
    if kind == "insertion":
        assert mistake.verdict.correction is None
    elif kind != "typo":
        true_words = _true_words(writer)
        assert mistake.verdict.correction in true_words
        assert mistake.text not in true_words


@given(seed=seeds, world=worlds)
@settings(max_examples=150, deadline=None)
def test_a_faulty_report_is_the_true_one_but_for_the_mistakes_it_tells_of(
    seed: int, world: str
) -> None:
    """Lines without a mistake are true, and every finding is stated, altered, denied or left out."""
    writer = _writer(seed, world)
    report = mistakes.faulty_report(writer)
    num_mistakes = sum(line.mistake is not None for line in report.lines) + len(report.left_out)
    assert num_mistakes <= 2
    assert report.wrong == (num_mistakes > 0)
    true_words = _true_words(writer)
    stated = 0
    for line in report.lines:
        if line.mistake is None and not line.denied:
            assert line.text in true_words
        stated += not line.denied or line.mistake is not None
        stated -= line.mistake is not None and line.mistake.verdict.error == "insertion"
    assert stated + len(report.left_out) == len(writer.truth)


def test_reports_have_up_to_two_mistakes_of_every_kind() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(600):
        report = mistakes.faulty_report(_writer(seed, "body"))
        kinds.update(str(line.mistake.verdict.error) for line in report.lines if line.mistake)
        kinds["left out"] += len(report.left_out)
        kinds["right"] += not report.wrong
    assert set(kinds) == {*prompts.ERROR_TYPES, "left out", "right"}
    assert min(kinds.values()) > 15


@given(seed=seeds, world=worlds, task=st.sampled_from(dialogues.TASKS))
@settings(max_examples=200, deadline=None)
def test_answers_are_what_the_pipelines_can_read_back(seed: int, world: str, task: str) -> None:
    truth, vocabulary = _truth(seed, world)
    dialogue = dialogues.ask(task, truth, np.random.default_rng(seed), vocabulary)
    if dialogue is None:
        return
    if task == "list":
        read = prompts.parse_findings(dialogue.answer)
        assert read == [NamedFinding(f.name, f.side, f.size_mm) for f in truth]
    elif task == "size":
        assert prompts.parse_size_mm(dialogue.answer) in {f.size_mm for f in truth}
    elif task in ("check", "omission"):
        verdict = prompts.parse_verdict(dialogue.answer)
        assert verdict is not None
        assert (verdict.error or "none") in (dialogue.label, "none")
    elif task == "presence":
        name, side = dialogue.label.split("/")
        there = {(f.name, str(f.side)) for f in truth} | {(f.name, "None") for f in truth}
        assert (dialogue.answer in ("yes", "是")) == ((name, side) in there)


@pytest.mark.parametrize("world", WORLDS)
def test_questions_are_balanced_so_that_a_blind_reader_is_at_chance(world: str) -> None:
    """Per question text, yes and no must come about equally often over many studies."""
    answers: dict[str, Counter[str]] = {}
    for seed in range(3000):
        truth, vocabulary = _truth(seed, world)
        rng = np.random.default_rng((9, seed))
        dialogue = dialogues.ask("presence", truth, rng, vocabulary)
        if dialogue is not None:
            answers.setdefault(dialogue.question, Counter())[dialogue.answer] += 1
    best = sum(max(counts.values()) for counts in answers.values())
    total = sum(sum(counts.values()) for counts in answers.values())
    assert best / total < 0.62


def test_every_finding_has_words_in_both_languages_that_name_side_and_size() -> None:
    for world in WORLDS.values():
        for vocabulary in world.vocabularies:
            for name, sided in vocabulary.findings:
                assert name in NAMES_ZH
                for language in ("en", "zh"):
                    words = WORDING[language][name]
                    for template in (*words.present, *words.more):
                        assert ("ide}" in template) == sided, template
                        assert ("{size}" in template) == (name in vocabulary.sizes_mm), template
                    assert all(("ide}" in t) == sided for t in (*words.absent, *words.unsure))
                    assert not any("{" in t for t in words.nowhere)
                    assert bool(words.nowhere) == sided


def test_an_impression_repeats_what_the_report_claims_and_never_what_it_left_out() -> None:
    for seed in range(300):
        writer = _writer(seed, "body")
        report = mistakes.faulty_report(writer)
        claimed = [line.about for line in report.lines if not line.denied]
        text = writer.sections([line.text for line in report.lines], claimed)
        impression = text.split("\n\n")[-1]
        for finding in report.left_out:
            name = NAMES_ZH[finding.name] if writer.language == "zh" else finding.name
            if all(c.name != finding.name for c in claimed):
                assert name not in impression.lower()


def test_what_is_dictated_has_every_mistake_that_can_be_heard() -> None:
    """Of one nodule: said true, on the other side, far larger or smaller, denied, or beside another."""
    truth = [NamedFinding("nodule", "right", 12.0)]
    said: Counter[str] = Counter()
    for seed in range(600):
        vocabulary = WORLDS["phantom"].vocabularies[0]
        text = dialogues.sentences_to_dictate(
            Writer(truth, np.random.default_rng(seed), vocabulary)
        ).lower()
        if "nodule" not in text:
            said["other"] += 1
        elif "no " in text or "without" in text:
            said["denied"] += 1
        elif "left" in text:
            said["left"] += 1
        else:
            kinds = {"12 mm": "right", "1.2 cm": "right", "12 cm": "unit", "1.2 mm": "unit"}
            said[next((kind for size, kind in kinds.items() if size in text), "size")] += 1
    assert min(said[kind] for kind in ("right", "left", "unit", "size", "denied", "other")) > 8, (
        said
    )


def test_wrong_sizes_are_as_common_as_right_ones_over_the_usual_range() -> None:
    """Else the number alone would betray a mistake: quartiles of both, within a tenth."""
    usual, rng = (6.0, 30.0), np.random.default_rng(4)
    right = np.exp(rng.uniform(*np.log(usual), 8000))
    wrong = np.array([mistakes.wrong_size(r, usual, rng) for r in right])
    assert np.abs(np.log(wrong / right)).min() > np.log(1.6)
    for share in (0.25, 0.5, 0.75):
        assert np.quantile(np.log(wrong), share) == pytest.approx(
            np.quantile(np.log(right), share), abs=0.1 * np.log(5)
        )


def test_misspelling_always_changes_the_word() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        assert mistakes.misspell("pneumothorax", rng) != "pneumothorax"
        assert mistakes.misspell("胸腔积液", rng) != "胸腔积液"


def test_misspelling_leaves_no_other_statement() -> None:
    """Without its 未 it would say that the finding is there, without its 上 that it is anywhere."""
    rng = np.random.default_rng(0)
    wrong = {mistakes.misspell("右肺上叶未见结节", rng) for _ in range(2000)}
    assert all(set("右上未") <= set(text) for text in wrong)
    assert {"右肺上叶未未见结节", "右肺上叶未见节", "右肺上未叶见结节"} <= wrong


def test_the_first_worlds_findings_are_those_of_its_checkpoint() -> None:
    assert WORLDS["phantom"].findings == FINDINGS
