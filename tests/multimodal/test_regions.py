"""What a study's patches say together: closed forms of single patches, and a head that learns."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from multimodal.projectors import (
    RegionHead,
    Regions,
    gather_regions,
    patch_volumes_mm3,
    token_centres_mm,
)
from multimodal.training import regions as training
from multimodal.training.loop import Schedule
from multimodal.training.measures import mean

GRID, SIZE, WIDTH = (4, 4), 8, 6  # patches of two pixels
RIGHT, LEFT, ANYWHERE = (0, -1), (0, 1), (1, 0)


def _geometry(num_views: int) -> torch.Tensor:
    """Views 10 mm apart and 10 mm thick; pixels of 5 mm, columns to the patient's left."""
    geometry = torch.zeros(num_views, 11)
    geometry[:, 0], geometry[:, 2] = -17.5, 10.0 * torch.arange(num_views)
    geometry[:, 3], geometry[:, 7], geometry[:, 9], geometry[:, 10] = 5.0, 5.0, 10.0, 1.0
    return geometry


def _seen(presence: torch.Tensor, log_size: torch.Tensor | None = None) -> Regions:
    n = len(presence)
    torch.manual_seed(0)
    features = torch.randn(n, 16, WIDTH)
    sizes = torch.zeros_like(presence) if log_size is None else log_size
    frame = (_geometry(n), GRID, SIZE)
    return gather_regions(
        features, (presence, sizes), token_centres_mm(*frame), patch_volumes_mm3(*frame),
        regions=[RIGHT, LEFT, ANYWHERE],
    )  # fmt: skip


def _nothing(num_views: int = 3) -> torch.Tensor:
    return torch.full((num_views, 16, 2), -30.0)


def test_a_region_is_its_one_sure_patch() -> None:
    presence, log_size = _nothing(), torch.zeros(3, 16, 2)
    presence[1, 7, 0] = 20.0  # row 1, column 3: the patient's left
    log_size[1, 7, 0] = np.log(12.0)
    seen = _seen(presence, log_size)
    assert seen.logit.tolist() == pytest.approx([-20.0, 20.0, -30.0], abs=1e-3)
    assert seen.where_mm[1].tolist() == pytest.approx([15.0, 12.5, 10.0])
    assert float(seen.log_size[1].exp()) == pytest.approx(12.0, rel=1e-4)
    volume = 10.0 * 10.0 * 10.0  # a patch of two pixels of 5 mm, in a slab of 10 mm
    assert float(seen.log_volume[1].exp()) == pytest.approx(volume + 1000.0, rel=1e-4)
    assert float(seen.log_volume[0].exp()) == pytest.approx(1000.0, rel=1e-3)
    assert seen.spread_mm[1].tolist() == pytest.approx([0.0] * 3, abs=1e-2)
    torch.manual_seed(0)
    assert torch.equal(seen.features[1], torch.randn(3, 16, WIDTH)[1, 7])


@pytest.mark.parametrize("reduced", [False, True])
def test_two_patches_are_spread_by_half_their_distance(reduced: bool) -> None:
    """Under bfloat16 autocast too, where a square of 200 mm is off by 100."""
    presence = _nothing()
    presence[0, 2, 1] = presence[2, 2, 1] = 20.0
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        seen = _seen(presence)
    assert seen.spread_mm[2].tolist() == pytest.approx([0.0, 0.0, 10.0], abs=1e-2)
    assert seen.where_mm[2].tolist() == pytest.approx([5.0, 2.5, 10.0], abs=1e-3)


def test_a_mirrored_study_is_what_its_mirrored_patches_would_be_gathered_to() -> None:
    torch.manual_seed(1)
    presence, sizes = torch.randn(3, 16, 2), torch.randn(3, 16, 2)
    volumes, centres = (f(_geometry(3), GRID, SIZE) for f in (patch_volumes_mm3, token_centres_mm))
    ways = [
        gather_regions(
            torch.ones(3, 16, WIDTH).cumsum(1), (presence, sizes), centres * opposite, volumes,
            regions=[RIGHT, LEFT, ANYWHERE],
        )
        for opposite in (torch.ones(3), torch.tensor([-1.0, 1.0, 1.0]))
    ]  # fmt: skip
    seen, turned = (Regions(*(getattr(w, f.name)[None] for f in fields(Regions))) for w in ways)
    found, others = training.mirrored(
        seen, [("nodule", "right"), ("nodule", "left"), ("mass", None)]
    )
    assert others == [1, 0, 2]
    for field in fields(Regions):
        torch.testing.assert_close(getattr(found, field.name), getattr(turned, field.name))


class _World:
    """Studies of one finding on two sides: there if patches are sure and it is spread."""

    num_studies = 1100

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        logit = torch.from_numpy(rng.normal(0, 3, (self.num_studies, 2))).float()
        spread = torch.from_numpy(rng.uniform(0, 20, (self.num_studies, 2))).float()
        size = 2.0 * spread + 5.0
        zeros = torch.zeros(self.num_studies, 2)
        self.seen = Regions(
            torch.randn(self.num_studies, 2, WIDTH), zeros[..., None].expand(-1, -1, 3), logit,
            zeros + 3.0, zeros + 9.0, spread[..., None].expand(-1, -1, 3),
        )  # fmt: skip
        there = (logit > 0) & (spread > 10)
        self.truth = [
            [SimpleNamespace(name="nodule", side=side, size_mm=float(size[i, k]))
             for k, side in enumerate(("right", "left")) if there[i, k]]
            for i in range(self.num_studies)
        ]  # fmt: skip
        words = SimpleNamespace(findings=[("nodule", True)])
        self.vocabulary = [words] * self.num_studies

    def held_out(self) -> range:
        return range(100)

    def for_seeing(self) -> range:
        return range(100, self.num_studies)


def test_the_head_starts_from_the_surest_patch_and_learns_what_patches_say_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    world, head = _World(), RegionHead(WIDTH, 2, 64)
    torch.nn.init.zeros_(head.out.weight)
    torch.nn.init.zeros_(head.out.bias)
    model: Any = SimpleNamespace(
        region_head=head, device=torch.device("cpu"),
        config=SimpleNamespace(regions=[("nodule", "right"), ("nodule", "left")]),
    )  # fmt: skip
    logit, log_size = head(world.seen)
    assert torch.equal(logit, world.seen.logit)
    assert torch.equal(log_size, world.seen.log_size)
    monkeypatch.setattr(training, "open_corpus", lambda _work: world)
    monkeypatch.setattr(training, "encode_corpus", lambda _model, _work: np.zeros(0))
    monkeypatch.setattr(training, "see_all", lambda _model, _corpus, _features: world.seen)
    before = _right(world, head)
    training.train_regions(model, tmp_path, Schedule(400, 5e-3, 64, warmup=20))
    after = _right(world, head)
    assert after > before + 0.08
    present, sizes = training.truth_of(world, model.config.regions)  # type: ignore[arg-type]
    held = sizes[:100].isfinite()
    with torch.no_grad():
        told = head(world.seen)[1][:100].exp()
    off = (told - sizes[:100])[held].abs() / sizes[:100][held]
    assert float(off.median()) < 0.1
    assert int(present.sum()) == sum(map(len, world.truth))


def _right(world: _World, head: RegionHead) -> float:
    """Share of held-out (study, side) judged rightly."""
    chosen = [getattr(world.seen, f.name)[:100] for f in fields(Regions)]
    said = head(Regions(*chosen))[0] > 0
    true = [[any(f.side == s for f in row) for s in ("right", "left")] for row in world.truth[:100]]
    return mean((said == torch.tensor(true)).flatten().tolist())
