"""A tower that goes on with sharper pictures answers at first as it did."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from encoders.errors import IncompatibleModel
from encoders.vision import tower_from_config
from multimodal.training.corpus import Frame
from multimodal.training.demo_model import SIZES, Size, build_demo, vision_config
from multimodal.training.growth import grown, see_as
from multimodal.training.world.worlds import WORLDS

COARSE = replace(
    SIZES["small"], frame=Frame("crossread-ct-thin", 12), stem=((32, 0), (64, 2), (128, 1)), fine=0,
    beside=False,
)  # fmt: skip
BESIDE = replace(COARSE, beside=True)
FINE = replace(COARSE, fine=16)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (COARSE, SIZES["small"]),
        (COARSE, COARSE),
        (COARSE, replace(COARSE, stem=((48, 2), (80, 3), (144, 1)))),
        (COARSE, replace(SIZES["small"], stem=COARSE.stem, fine=0)),
        (COARSE, FINE),
        (FINE, FINE),
        (FINE, replace(COARSE, fine=48, stem=((48, 2), (64, 3), (128, 1)))),
        (FINE, replace(FINE, beside=True)),
        (BESIDE, BESIDE),
    ],
    ids=["as shipped", "nothing new", "wider and deeper", "sharper alone", "finer", "as fine",
         "finer still and wider", "with what is beside", "beside as before"],
)  # fmt: skip
def test_a_grown_tower_sees_what_it_saw_before(before: Size, after: Size) -> None:
    torch.manual_seed(0)
    small = tower_from_config(vision_config(before)).eval()
    for parameter in small.parameters():  # as trained ones are: no part is still silent
        parameter.data += 0.02 * torch.randn_like(parameter)
    pixels = torch.randn(2, small.preprocess.channels, 96, 96)
    times = after.frame.size // 96
    sharper = pixels.repeat_interleave(times, 2).repeat_interleave(times, 3)
    tower = grown(small, vision_config(after)).eval()
    more = tower.preprocess.channels - small.preprocess.channels
    sharper = torch.cat([sharper, torch.randn(2, more, *sharper.shape[2:])], 1)
    with torch.no_grad():
        torch.testing.assert_close(tower(sharper), small(pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "after"),
    [
        (COARSE, SIZES["medium"]),
        (COARSE, SIZES["base"]),
        (COARSE, replace(COARSE, stem=((32, 0), (48, 2), (128, 1)))),
        (COARSE, replace(COARSE, stem=((32, 0), (64, 1), (128, 1)))),
        (FINE, COARSE),
        (FINE, SIZES["small"]),
        (BESIDE, COARSE),
    ],
    ids=["other width", "other grid", "narrower", "shallower", "less fine", "fine and sharper",
         "nothing beside"],
)  # fmt: skip
def test_what_a_tower_cannot_grow_into_is_refused_with_a_reason(size: Size, after: Size) -> None:
    before = tower_from_config(vision_config(size))
    with pytest.raises(IncompatibleModel, match="cannot go on as this size"):
        grown(before, vision_config(after))


def test_what_is_new_in_a_grown_tower_learns() -> None:
    tower = grown(tower_from_config(vision_config(COARSE)), vision_config(SIZES["small"])).train()
    optimiser = torch.optim.Adam(tower.parameters(), 0.01)  # moves whatever has a gradient
    before = {name: value.clone() for name, value in tower.named_parameters()}
    for _ in range(3):  # what follows a silent part learns first, then the part itself
        optimiser.zero_grad()
        tower(torch.randn(1, 5, 192, 192)).square().mean().backward()
        optimiser.step()
    still = [n for n, p in tower.named_parameters() if p.requires_grad and p.equal(before[n])]
    assert still == []


def test_a_model_goes_on_with_the_pictures_of_a_size() -> None:
    model, _ = build_demo(WORLDS["body"])
    model.vision_tower = tower_from_config(vision_config(COARSE))
    model.config.view_profile, model.config.view_size = "crossread-ct-thin", 96
    see_as(model, SIZES["small"])
    assert model.vision_tower.preprocess.size == model.config.view_size == 192
    assert model.config.view_profile == "crossread-ct-fine"
    assert model.vision_tower.to_dict() == vision_config(SIZES["small"])
