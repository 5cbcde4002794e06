"""What the language stage trains on: studies with many questions in one row each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from encoders.errors import InvalidOption
from multimodal.training import language
from multimodal.training.audio_pretraining import Utterances
from multimodal.training.demo_model import build_demo
from multimodal.training.language import QUESTIONS, SHORT, Packer, train_language
from multimodal.training.loop import Schedule
from multimodal.training.world.worlds import WORLDS

VIEWS = 2


def test_without_anything_spoken_the_stage_is_refused_before_it_encodes_for_minutes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It used to end after all studies had been encoded, with "low >= high" of numpy."""
    monkeypatch.setattr(language, "open_corpus", lambda _work: None)
    nothing: Any = None
    with pytest.raises(InvalidOption, match=r"holds 0 recordings.*stage 'speech' first"):
        train_language(nothing, nothing, tmp_path, Schedule(1, 1e-3))


@pytest.fixture(scope="module")
def packer() -> Packer:
    """Four studies of random features in the wider world, read by a model drawn at random."""
    world = WORLDS["body"]
    model, processor = build_demo(world)
    told = [world.truth(np.random.default_rng(i)) for i in range(4)]
    geometry = np.zeros((4, VIEWS, 11), np.float32)
    geometry[..., [3, 7]] = 3.0
    studies: Any = SimpleNamespace(
        world=world, num_views=VIEWS, geometry=geometry, for_telling=lambda: range(4),
        truth=[truth for truth, _ in told], vocabulary=[words for _, words in told],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    patches = model.vision_tower.grid[0] ** 2
    seen = rng.standard_normal((4, VIEWS, patches, model.vision_tower.width)).astype(np.float16)
    return Packer(processor, model, studies, seen, Utterances([], []))


@torch.no_grad()
def test_a_question_in_a_full_row_is_worth_what_it_is_worth_alone(packer: Packer) -> None:
    """No question sees another, and padding counts for nothing."""
    rng = np.random.default_rng(1)
    asked = [packer.questions(i, rng, ("presence", "list", "check")) for i in (0, 1)]
    together = packer.study_loss(packer.pack([0, 1], asked), packer.look([0, 1]))
    lost = counted = 0.0
    for index, row in enumerate(asked):
        for dialogue in row:
            alone = packer.pack([index], [[dialogue]])
            weight = float(alone.weights[:, 1:].sum())
            lost += weight * float(packer.study_loss(alone, packer.look([index])))
            counted += weight
    assert float(together) == pytest.approx(lost / counted, rel=1e-4)


def test_rows_that_would_be_padded_are_filled_with_questions(packer: Packer) -> None:
    shortest = 40  # tokens: less than this is too little for many a question
    for tasks in (SHORT, QUESTIONS):
        packed, _ = packer.draw_studies(np.random.default_rng(2), 4, tasks)
        left = (packed.branch < 0).sum(1)
        assert left.max() < shortest
        assert left.min() == 0
        drawn_anew, _ = packer.draw_studies(np.random.default_rng(2), 4, tasks)
        assert torch.equal(packed.ids, drawn_anew.ids)
