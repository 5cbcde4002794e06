"""Patches among their neighbours: who tells whom, silent at first, and what is learned from the next view."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from multimodal.projectors import FindingHead, Neighbours
from multimodal.training import context
from multimodal.training.corpus import Corpus, Make, generate_corpus, open_corpus
from multimodal.training.demo_model import SIZES, build_demo
from multimodal.training.growth import see_as
from multimodal.training.language import encode_corpus
from multimodal.training.loop import Schedule
from multimodal.training.world.worlds import WORLDS

GRID, WIDTH, VIEWS = (5, 5), 8, 4


def _told() -> Neighbours:
    torch.manual_seed(0)
    part = Neighbours(WIDTH, 16)
    torch.nn.init.normal_(part.out.weight)
    return part


@pytest.mark.parametrize("view", range(VIEWS))
@pytest.mark.parametrize("patch", [(2, 2), (0, 0), (4, 1)], ids=["inside", "corner", "edge"])
@torch.no_grad()
def test_a_patch_is_told_of_the_eight_about_it_and_of_the_views_below_and_above(
    view: int, patch: tuple[int, int]
) -> None:
    part, features = _told(), torch.randn(VIEWS, 25, WIDTH)
    other = features.clone()
    other[view, 5 * patch[0] + patch[1]] += torch.randn(WIDTH)
    changed = (part(other, GRID) != part(features, GRID)).any(-1).view(VIEWS, *GRID)
    v, r, c = torch.meshgrid(*map(torch.arange, (VIEWS, *GRID)), indexing="ij")
    near = ((v - view).abs() <= 1) & ((r - patch[0]).abs() <= 1) & ((c - patch[1]).abs() <= 1)
    assert torch.equal(changed, near)


@torch.no_grad()
def test_what_is_below_is_not_what_is_above() -> None:
    part, features = _told(), torch.randn(3, 25, WIDTH)
    upside_down = part(features.flip(0), GRID).flip(0)
    assert not torch.allclose(part(features, GRID), upside_down, atol=1e-3)


@torch.no_grad()
def test_a_model_that_goes_on_sees_at_first_what_it_saw_without_neighbours() -> None:
    model, _ = build_demo(WORLDS["body"])
    features = torch.randn(VIEWS, 144, model.vision_tower.width)
    geometry = torch.zeros(VIEWS, 11)
    geometry[:, 3] = geometry[:, 7] = geometry[:, 9] = 1.0
    begun = model.see_regions(features, geometry)
    del model.neighbours
    model.config.neighbours = 0  # as of checkpoints before 7
    alone = model.see_regions(features, geometry)
    see_as(model, SIZES["small"])
    gone_on, learned = model.see_regions(features, geometry), model.neighbours
    for seen in (begun, gone_on):
        assert torch.equal(seen.logit, alone.logit)
        assert torch.equal(seen.features, alone.features)
    see_as(model, SIZES["small"])
    assert model.neighbours is learned  # it is not begun anew


def test_of_crowded_studies_as_many_are_encoded_as_are_wanted(tmp_path: Path) -> None:
    model, _ = build_demo(WORLDS["body"])
    frame = SIZES["small"].frame
    for crowded, num in ((False, 1), (True, 3)):
        generate_corpus(tmp_path, Make("body", num, 8.0, frame, crowded=crowded))
    features = encode_corpus(model, tmp_path, crowded=True, most=2)
    assert len(features) == 2
    views = torch.from_numpy(np.array(open_corpus(tmp_path, crowded=True).views[1]))
    with torch.inference_mode():
        alone = model.vision_tower(model.vision_tower.preprocess.normalise(views)).half()
    torch.testing.assert_close(torch.from_numpy(np.array(features[1])), alone, atol=2e-3, rtol=1e-2)
    assert len(encode_corpus(model, tmp_path)) == 1  # beside it, each in a file of its own
    assert len(encode_corpus(model, tmp_path, crowded=True)) == 2


class _World:
    """Studies in which a patch shows a finding if the same patch of the next view is bright.

    In ordinary ones half of these only look alike; what tells them no crowded study knows.
    """

    num_studies, world = 90, SimpleNamespace(findings=[("nodule", True)])

    def __init__(self, *, crowded: bool) -> None:
        torch.manual_seed(1)
        self.features = torch.randn(self.num_studies, VIEWS, 25, WIDTH)
        alike = self.features[..., 1].sign()
        self.features[..., 1] = 0.0 if crowded else 2.0 * alike
        bright = self.features[..., 0] > 1.0
        self.next_bright = torch.zeros_like(bright)
        self.next_bright[:, :-1] = bright[:, 1:]
        cover = self.next_bright & (crowded | (alike < 0))
        self.cover = (255 * cover[..., None]).byte().numpy()
        self.size_mm = np.full((self.num_studies, 1), np.nan, np.float32)

    def held_out(self, num: int) -> range:
        return range(min(num, 30))

    def training(self) -> range:
        return range(30, self.num_studies)

    for_seeing = training


class _Model(torch.nn.Module):
    """Neighbours, and a finding head as it was drawn."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.neighbours, self.finding_head = Neighbours(WIDTH, 16), FindingHead(WIDTH, 1)

    def see_patches(self, study: torch.Tensor) -> tuple[torch.Tensor, Any]:
        seen = self.neighbours(study, GRID)
        return seen, self.finding_head(seen)


def test_patches_learn_from_the_next_view_what_they_do_not_show_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worlds, model = {crowded: _World(crowded=crowded) for crowded in (True, False)}, _Model()
    monkeypatch.setattr(context, "open_corpus", lambda _work, crowded: worlds[crowded])
    monkeypatch.setattr(
        context,
        "encode_corpus",
        lambda _model, _work, crowded, most: worlds[crowded].features.numpy(),
    )
    kept = {name: value.clone() for name, value in model.finding_head.state_dict().items()}

    def told(crowded: bool) -> tuple[float, float, float]:
        """How often held-out patches are said to show it: that do, that look alike, all others."""
        world = worlds[crowded]
        with torch.no_grad():
            logits = torch.stack([model.see_patches(x)[1][0] for x in world.features[:30]])
        said, shown = (logits[..., 0] > 0).float(), torch.from_numpy(world.cover[:30, ..., 0]) > 0
        alike = world.next_bright[:30] & ~shown
        return tuple(float(said[of].mean()) for of in (shown, alike, ~shown & ~alike))  # type: ignore[return-value]

    right, _, wrong = told(crowded=True)
    assert abs(right - wrong) < 0.1  # nothing in a patch itself tells it
    context.train_context(model, tmp_path, Schedule(400, 1e-2, 8, warmup=20))  # type: ignore[arg-type]
    right, _, wrong = told(crowded=True)
    assert right > wrong + 0.4
    right, alike, wrong = told(crowded=False)
    assert right > max(alike, wrong) + 0.3
    for name, value in model.finding_head.state_dict().items():
        assert torch.equal(value, kept[name])


def test_words_learn_of_other_studies_than_eyes() -> None:
    """Of what eyes have learned they are surer than of anything new, and words would trust them too much."""
    made = object.__new__(Corpus)
    made.num_studies = 301
    eyes, words = set(made.for_seeing()), set(made.for_telling())
    assert not eyes & words
    assert abs(len(eyes) - len(words)) < 2
    assert eyes | words == set(made.training())
    assert not eyes & set(made.held_out())
