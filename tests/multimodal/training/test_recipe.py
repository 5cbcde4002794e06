"""The recipe from nothing to a folder that reads, in miniature."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from encoders.dicom import load_volume, scan
from multimodal.backends import GenerateOptions, collect, load_backend
from multimodal.messages import Audio, Study, user
from multimodal.training import evaluation, recipe
from multimodal.training.corpus import HELD_OUT
from multimodal.training.world.dictation import synthesise

speaks = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def test_the_sample_is_a_ct_series_that_shows_what_its_report_gets_wrong(tmp_path: Path) -> None:
    recipe.write_sample(tmp_path)
    series = scan(tmp_path / "study").default()
    volume = load_volume(series)
    assert series.is_volume
    assert volume.calibrated
    assert volume.voxels.shape == recipe.SAMPLE_SHAPE
    report = (tmp_path / "report.txt").read_text()
    assert "left" in report.splitlines()[3].lower()  # the nodule, drawn on the right
    assert "heart" not in report.lower()


@speaks
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_recipe_makes_a_checkpoint_that_reads_and_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps a stage teach nothing; every stage, file and reload is the real one."""
    monkeypatch.setattr(recipe, "NUM_DRAWN", 9)
    small = recipe.Recipe(
        work=tmp_path / "work", out=tmp_path / "out", studies=HELD_OUT + 10, utterances=230,
        vision_steps=2, audio_steps=2, language_steps=4,
    )  # fmt: skip
    recipe.run(small)
    backend = load_backend(small.out)
    study = Study(small.out / "sample" / "study")
    seen = collect(
        backend.generate(
            [user(study, "Is there a right nodule?")],
            GenerateOptions(choices=("yes", "no"), ground=True),
        )
    )
    assert sum(seen.choices.values()) == pytest.approx(1.0)
    assert len(seen.regions) == 10
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
    _measures_itself(small.out)


def _measures_itself(folder: Path) -> None:
    """The evaluation runs on it, and its card shows the numbers that were written."""
    card = folder / "README.md"
    card.write_text("before\n<!-- numbers -->\nold\n<!-- end of numbers -->\nafter\n")
    found = evaluation.evaluate(folder, 2, 2)
    evaluation.write_card(folder, found)
    assert (
        found["weights_sha256"] == sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    )
    assert (
        evaluation.card_table(json.loads((folder / "evaluation.json").read_text()))
        in card.read_text()
    )
    assert "old" not in card.read_text()
    skipped = [row["MLP skipped, decoding"] for row in found["sparsity"]]
    assert skipped == sorted(skipped)
    assert skipped[0] == 0.0


@speaks
def test_dictation_is_speech_at_16_khz_that_differs_by_voice() -> None:
    said = [
        synthesise("Left pleural effusion.", voice, np.random.default_rng(1))
        for voice in ("en-us", "en-gb+f4")
    ]
    for speech in said:
        assert speech.dtype == np.float32
        assert 0.8 < len(speech) / 16000 < 4.0
        assert np.isfinite(speech).all()
    assert len(said[0]) != len(said[1])
