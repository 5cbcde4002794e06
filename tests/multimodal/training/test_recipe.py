"""The recipe from nothing to a folder that reads, in miniature."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from encoders.dicom import load_volume, scan
from encoders.dicom.values import AIR_HU
from encoders.errors import InvalidOption
from multimodal import prompts
from multimodal.backends import Finished, GenerateOptions, Usage, collect, load_backend
from multimodal.configuration import MultimodalConfig
from multimodal.messages import Audio, Study, user
from multimodal.prompts import NamedFinding, Verdict
from multimodal.training import (
    audio_pretraining,
    cases,
    corpus,
    evaluation,
    hearing,
    language,
    probes,
    recipe,
)
from multimodal.training.demo_model import SIZES, build_demo
from multimodal.training.measures import Scores
from multimodal.training.vision_pretraining import Contrast, DenseModel
from multimodal.training.world.dictation import HELD_OUT_VOICES, VOICES, synthesise
from multimodal.training.world.findings import keys_of
from multimodal.training.world.mistakes import Faulty, Line, Mistake
from multimodal.training.world.wording import NAMES_ZH, SIDES
from multimodal.training.world.worlds import WORLDS, World

speaks = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_sample_is_a_ct_series_that_shows_what_its_report_gets_wrong(
    tmp_path: Path, world: World
) -> None:
    recipe.write_sample(tmp_path, world)
    series = scan(tmp_path / "study").default()
    volume = load_volume(series)
    assert series.is_volume
    assert volume.calibrated
    assert volume.voxels.shape == recipe.SAMPLE_SHAPE
    report = (tmp_path / "report.txt").read_text()
    assert "left" in report.splitlines()[3].lower()  # the nodule, drawn on the right
    assert "heart" not in report.lower()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recipe.Recipe:
    """The recipe with a dozen coarse studies, two steps a stage."""
    for module, name, value in (
        (corpus, "HELD_OUT", 8), (recipe, "HELD_OUT", 8), (recipe, "NUM_DRAWN", 6),
        (recipe, "NUM_CALIBRATED", 2),
        (audio_pretraining, "NUM_HELD_OUT", 6), (language, "NUM_HELD_OUT", 6), (hearing, "NUM_HELD_OUT", 6),
        (probes, "LONG_SHAPE", (20, 64, 64)), (cases, "COARSER", 6.0),
        (evaluation, "LEVELS", (0.0, 0.5)), (probes, "NUM_CONTROLS", 1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return recipe.Recipe(
        work=tmp_path / "work", out=tmp_path / "out", studies=20, crowd=12, utterances=40, coarser=6.0,
        vision_steps=2, audio_steps=2, context_steps=2, region_steps=2, language_steps=4, together_steps=2,
        hearing_steps=2,
        num_workers=2,
    )  # fmt: skip


@speaks
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_recipe_makes_a_checkpoint_that_reads_and_hears(
    small: recipe.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps a stage teach nothing; every stage, file and reload is the real one.

    The stages run one after the other in runs of their own, as on a machine that is lent.
    """
    for stages in (
        "corpus,speech",
        "vision",
        "audio,context,regions",
        "language,together",
        "hearing,save",
    ):
        recipe.run(replace(small, stages=stages))
    assert not list(small.work.glob("*.new"))
    backend = load_backend(small.out)
    study = Study(small.out / "sample" / "study")
    seen = collect(
        backend.generate(
            [user(study, "Is there a right nodule?")],
            GenerateOptions(choices=("yes", "no"), ground=True),
        )
    )
    assert sum(seen.choices.values()) == pytest.approx(1.0)
    assert len(seen.regions) == len(keys_of())
    novelty = backend.novelty(study)
    assert novelty is not None
    assert np.isfinite(novelty.score)
    spoken = synthesise("No pleural effusion.", "en-us", np.random.default_rng(0))
    heard = collect(
        backend.generate(
            [user(Audio(spoken, 16000), "Transcribe the recording.")],
            GenerateOptions(max_new_tokens=4),
        )
    )
    assert heard.usage.new_tokens == 4 or heard.reason == "stop"
    _measures_itself(small.out, monkeypatch)
    _goes_on(small)


def _measures_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation runs on it, and its card shows the numbers that were written."""
    monkeypatch.setenv("CROSSREAD_SHARED_DATA", str(folder))  # nothing recorded there
    fitted = json.loads((folder / "config.json").read_text())["choice_calibration"]
    assert fitted["yes"][1] != 0.0
    assert all(temperature > 0 for temperature, _ in fitted.values())
    card = folder / "README.md"
    card.write_text("before\n<!-- numbers -->\nold\n<!-- end of numbers -->\nafter\n")
    found = evaluation.evaluate(folder, 2, 2, work=folder.parent / "evaluation")
    evaluation.write_card(folder, found)
    assert (
        found["weights_sha256"] == sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    )
    assert (
        evaluation.card_table(json.loads((folder / "evaluation.json").read_text()))
        in card.read_text()
    )
    assert "old" not in card.read_text()
    assert found["world"] == "body"
    assert found["out of range"]["generated: greatest distance"] > 0
    assert set(found["reading"]) == {"read DICOM", "encode", "prefill", "decode", "in all"}
    assert found["gate_studies"] == 2
    ways = {way: {name for name in found["dictated"] if name.endswith(f", {way}")}
            for way in ("typed", "dictated")}  # fmt: skip
    assert [len(names) for names in ways.values()] == [3, 3]
    skipped = [row["MLP skipped, decoding"] for row in found["sparsity"]]
    assert skipped == sorted(skipped)
    assert skipped[0] == 0.0


def _goes_on(small: recipe.Recipe) -> None:
    """A second recipe starts from what the first has made; stages of no steps change no weight."""
    again = replace(
        small, parent=str(small.out), out=small.out.parent / "again", work=small.work / "again",
        vision_steps=0, audio_steps=0, context_steps=0, region_steps=0, language_steps=0,
        together_steps=0, hearing_steps=0,
    )  # fmt: skip
    recipe.run(again)
    first, second = (load_file(r.out / "model.safetensors") for r in (small, again))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_tower_that_went_on_ends_part_of_the_way_from_before_to_after() -> None:
    tower = torch.nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    tower.weight.data += torch.tensor([2.0, 0.0, -4.0])
    tower.num_batches_tracked += 7  # no weight: it stays as it has become
    recipe.go_part_way(tower, before, 0.75)
    assert tower.weight.tolist() == [2.5, 1.0, -2.0]
    assert int(tower.num_batches_tracked) == 7


def test_what_the_recipe_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    for wrong in ({"stages": "corpus,sing"}, {"world": "moon"}, {"size": "huge"}):
        with pytest.raises(InvalidOption, match="is none of"):
            recipe.run(recipe.Recipe(work=tmp_path, **wrong))  # type: ignore[arg-type]
    corpus.generate_corpus(tmp_path, corpus.Make("phantom", 0))
    with pytest.raises(InvalidOption, match="crowd holds no studies; run the stage 'corpus' first"):
        corpus.open_corpus(tmp_path, crowded=True)
    with pytest.raises(InvalidOption, match="use another work folder"):
        corpus.generate_corpus(tmp_path, corpus.Make("body", 0))


@pytest.mark.parametrize("crowded", [False, True])
def test_a_corpus_goes_on_where_another_ended(tmp_path: Path, crowded: bool) -> None:
    """Study 1 from seed 3 is study 4 from seed 0."""
    few = corpus.Make("phantom", 5, coarser=6.0, crowded=crowded)
    for folder, make in (("a", few), ("b", replace(few, studies=2, first=3))):
        corpus.generate_corpus(tmp_path / folder, make)
    a, b = (corpus.open_corpus(tmp_path / folder, crowded=crowded) for folder in ("a", "b"))
    assert a.truth[4] == b.truth[1]
    assert np.array_equal(a.views[4], b.views[1])
    assert not np.array_equal(a.views[1], b.views[1])


@pytest.mark.parametrize(("size", "seen"), [("medium", (192, 9, 12)), ("base", (224, 4, 14))])
def test_the_larger_networks_fit_their_pictures_and_ship_in_64_mb(
    size: str, seen: tuple[int, int, int]
) -> None:
    model, processor = build_demo(WORLDS["body"], size)
    config = model.config
    assert (config.view_size, config.tokens_per_view, model.vision_tower.grid[0]) == seen
    assert processor.senses["vision"]["view_profile"] == config.view_profile
    assert sum(p.numel() for p in model.parameters()) * 2 < 60e6  # in half precision


def test_on_another_device_no_tensor_stays_behind_on_the_cpu() -> None:
    """On the meta device, which like a GPU refuses to meet tensors of the CPU, and has no values."""
    model, size = build_demo(WORLDS["body"])[0].to("meta"), SIZES["small"]
    pixels = torch.empty(16, 3, 192, 192, dtype=torch.uint8, device="meta")
    words = torch.empty(16, 9, dtype=torch.long, device="meta")
    dense = DenseModel(model.vision_tower, model.finding_head)
    features = dense.features(pixels)
    assert Contrast(size.tower_width, 2048).to("meta")(features, words).device.type == "meta"
    geometry = torch.empty(16, 11, device="meta")
    assert model.vision_projector(features, geometry, 192).shape == (16, 9, size.hidden)
    assert model.project_regions(features, geometry).shape == (len(keys_of()), size.hidden)
    mask = language._mask(words[:2], torch.float32)
    embeds = torch.empty(2, 9, size.hidden, device="meta")
    output = model.language_model(inputs_embeds=embeds, attention_mask=mask, labels=words[:2])
    assert output.loss.device.type == "meta"


def test_a_checkpoints_world_is_told_by_the_findings_it_knows() -> None:
    for world in WORLDS.values():
        assert evaluation.world_of(MultimodalConfig(findings=list(world.findings))) is world


@speaks
def test_dictation_is_speech_at_16_khz_that_differs_by_voice() -> None:
    said = [
        synthesise("Left pleural effusion.", voice, np.random.default_rng(1))
        for voice in ("en-us", "en-gb+f4")
    ]
    said.append(synthesise("左侧胸腔积液。", "cmn", np.random.default_rng(1), microphone=True))
    for speech in said:
        assert speech.dtype == np.float32
        assert 0.8 < len(speech) / 16000 < 6.0
        assert np.isfinite(speech).all()
    assert len(said[0]) != len(said[1])


def test_voices_kept_for_measuring_are_never_trained_on() -> None:
    for language_name, voices in VOICES.items():
        assert not set(voices) & set(HELD_OUT_VOICES[language_name])


def test_a_report_is_judged_sentence_by_sentence_and_then_for_what_it_leaves_out() -> None:
    """Against a model that knows one wrong sentence and misses what is left out."""
    there = NamedFinding("cardiomegaly")
    wrong = Mistake("No cardiomegaly.", Verdict("omission", "The heart is enlarged."), there)
    report = Faulty((Line("Left.", there), Line(wrong.text, there, True, wrong)), (there,),
                    ("The heart is enlarged.",))  # fmt: skip

    class Told(cases.Talk):
        def __init__(self) -> None:
            pass

        def ask(self, prompt: str, choices: tuple[str, ...] = (), ground: bool = False) -> Finished:
            if "leave out" in prompt:
                assert prompt.endswith("Left. The heart is enlarged.")
                return Finished("", "stop", Usage(0, 0, 0), {"nothing": 0.7, "omission": 0.3})
            bad = "No cardiomegaly" in prompt
            chances = dict.fromkeys(choices, 0.0) | {"omission": 0.9 * bad, "agrees": 1 - 0.9 * bad}
            return Finished("omission: The heart is enlarged.", "stop", Usage(0, 0, 0), chances)

        def ask_all(self, prompts: Sequence[str], choices: tuple[str, ...] = ()) -> list[Finished]:
            return [self.ask(prompt, choices) for prompt in prompts]

    judged = evaluation.judge_report(report, Told(), {("cardiomegaly", None): 0.9}, None)
    assert judged.wrong
    assert judged.sure == pytest.approx(0.9)
    assert judged.said == {("omission", 1)}
    assert judged.true == {("omission", 1), ("omission", -1)}
    assert [(m.type, m.exact) for m in judged.mended] == [("omission", True), ("omission", False)]


def test_hiding_fills_a_box_with_what_lies_around_it_and_leaves_the_rest() -> None:
    voxels = np.full((4, 12, 12), -800, np.int16)
    voxels[1:3, 4:8, 4:8] = 50
    box = (slice(1, 3), slice(4, 8), slice(4, 8))
    hidden = probes._hide(voxels, box)
    assert (hidden == -800).all()
    assert voxels.max() == 50
    whole = (slice(0, 1), slice(0, 12), slice(0, 12))  # a box with nothing around it
    assert (probes._hide(voxels, whole)[0] == AIR_HU).all()


def test_what_the_gate_loses_is_told_in_points_of_each_figure() -> None:
    """Of the same two studies: one of two findings listed with it, both without."""
    gated, dense = Scores(listed=[(1, 1, 2)]), Scores(listed=[(2, 2, 2)])
    gated.side, dense.side = [True, True], [True, False]
    lost = evaluation.lost_by_gate(gated, dense)
    assert lost["list F1"] == {
        "gate": pytest.approx(2 / 3), "dense": 1.0, "points lost": pytest.approx(100 / 3),
    }  # fmt: skip
    assert lost["side accuracy"]["points lost"] == -50.0


def test_the_same_figures_make_the_same_table_with_blanks_for_what_is_unknown() -> None:
    found = {
        "seeing": {"a": 0.5}, "blanked": {}, "shuffled": {"a": float("nan")},
        "presence per finding": {}, "mistakes": {"size": {"alone": 1.0}}, "dictated": {},
        "hiding the region": {}, "out of range": {}, "reading": {}, "sparsity": [{"sparsity": 0.0}],
        "gate": {"list F1": {"gate": 0.5, "points lost": -1.25}}, "gate_studies": 3,
        "studies": 3, "few_studies": 2, "dictated_studies": 2, "sparsity_studies": 1, "machine": "m", "world": "body", "weights_sha256": "0" * 64,
    }  # fmt: skip
    table = evaluation.card_table(found)
    assert "| a | 0.500 |  |  |" in table
    assert "| the gate at its default, 3 studies | gate | points lost |" in table
    assert "| list F1 | 0.500 | -1.250 |" in table
    assert table.endswith("Made by `make eval-demo`.")


@pytest.mark.parametrize("seed", range(4))
def test_a_region_is_named_in_the_words_that_ask_for_it(seed: int) -> None:
    """Nearer to its own question's words, in both languages, than to any other region's.

    Left and right rib lesions were told apart by one English word, against a Chinese one of its own.
    """
    torch.manual_seed(seed)
    model, processor = build_demo(WORLDS["body"])
    words = model.get_input_embeddings().weight
    names = model.region_projector.name.weight
    for row, (name, side) in enumerate(model.config.regions):
        english = prompts.ask_presence(name, side).removeprefix("Is there a").removesuffix("?")
        chinese = (f"{SIDES['zh'][side]}侧" if side else "") + NAMES_ZH[name]
        for asked in (english, chinese):
            ids = processor.tokenizer.encode(asked, add_special_tokens=False)
            near = torch.cosine_similarity(words[ids].mean(0)[None], names)
            assert int(near.argmax()) == row, asked


def test_how_sure_the_head_is_changes_a_region_from_the_first_step() -> None:
    """As much as being elsewhere and of another size does."""
    model, _ = build_demo(WORLDS["body"])
    projector: Any = model.region_projector
    torch.manual_seed(0)
    seen = torch.randn(1, projector.mlp[0].normalized_shape[0]).repeat(3, 1)
    seen[1, -3:] = torch.tensor([1.5, 1.0, 2.0])
    seen[0, -3:] = torch.tensor([-0.5, 0.1, -1.0])
    seen[2] = torch.cat([torch.randn(seen.shape[1] - 3), seen[0, -3:]])
    with torch.no_grad():
        absent, present, elsewhere = projector.mlp(seen)
    assert (present - absent).norm() > (elsewhere - absent).norm()


def test_a_sentence_longer_than_the_towers_window_is_drawn_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recording in thousands ran on for 10.4 s and ended a night's training."""
    drawn = iter([("long", 10.4), ("short", 2.0)])

    def dictate(*_args: object, **_options: object) -> tuple[str, np.ndarray]:
        text, seconds = next(drawn)
        return text, np.zeros(int(seconds * 16000), np.float32)

    monkeypatch.setattr(audio_pretraining, "dictate", dictate)
    speech = audio_pretraining.speak_corpus(tmp_path, WORLDS["phantom"], 1)
    assert speech.texts == ["short"]
    assert build_demo(WORLDS["phantom"])[0].audio_tower.window_seconds == 10.0
    assert audio_pretraining.MAX_FRAMES == 1000
