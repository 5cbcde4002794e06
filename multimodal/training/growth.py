"""A tower that goes on with sharper pictures: what it has learned is kept, what is new starts silent.

A stem that is wider, deeper or sees more pixels first answers as the one before it did (Chen et al.
2016, Net2Net) and learns from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from encoders.errors import IncompatibleModel
from encoders.vision import Preprocess, VisionTower, tower_from_config
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.projectors import Neighbours
from multimodal.training.demo_model import Size, vision_config


def see_as(model: MultimodalForConditionalGeneration, size: Size) -> None:
    """Let a model go on with the pictures, the tower of a size, and with neighbours, in place."""
    model.config.vision_config = vision_config(size)
    model.vision_tower = grown(model.vision_tower, model.config.vision_config)
    if not model.config.neighbours:
        model.config.neighbours = size.neighbours
        model.neighbours = Neighbours(size.tower_width, size.neighbours)
    model.config.view_profile, model.config.view_size = size.frame.profile, size.frame.size


@torch.no_grad()
def grown(old: VisionTower, config: Mapping[str, Any]) -> VisionTower:
    """A tower of `config` that sees what `old` sees in the same picture of fewer pixels.

    Both have stems; the new one's levels are as many, each as wide or wider, with as many residual
    blocks or more, with as many fine channels or more, the first one's stride the same or, where there
    are none, a multiple; it may see what is beside a picture as well. All else is alike.

    Raises:
        IncompatibleModel: this is not so.
    """
    if not _fits(old.to_dict(), config):
        raise IncompatibleModel(
            "the parent's vision tower cannot go on as this size: its layers, width or stem differ in"
            " more than channels, blocks and pixels, or it has fine channels, which take no more pixels"
            " than before, or sees what is beside a picture, which the size does not; choose the size that it was trained in, or no parent"
        )
    new = tower_from_config(config)
    stem = "vit.conv1."
    alike = {k: v for k, v in old.state_dict().items() if not k.startswith(stem)}
    new.load_state_dict(alike, strict=False)
    for before, after in zip(_levels(old), _levels(new), strict=True):
        blocks = max(len(before) - 2, 1)  # a convolution and its blocks, then norm and ReLU
        pairs = [*zip(before[:blocks], after[:blocks], strict=True)]
        for one, other in [*pairs, *zip(before[blocks:], after[-2:], strict=False)]:
            # a convolution that has become fine has more modules: these stay silent
            for small, large in zip(one.modules(), other.modules(), strict=False):
                _take(small, large)
    return new


def _fits(small: Mapping[str, Any], large: Mapping[str, Any]) -> bool:
    """Whether two configurations differ only in what a tower can grow by."""
    if not (small.get("stem") and large.get("stem")) or small["grid"] != large["grid"]:
        return False
    arches = [dict(config["arch"]["vision_cfg"]) for config in (small, large)]
    before, after = (arch.pop("patch_size") for arch in arches)
    for arch in arches:
        arch.pop("image_size")
    levels = [*zip(small["stem"], large["stem"], strict=False)]
    return (
        arches[0] == arches[1]
        and after % before == 0
        and len(small["stem"]) == len(large["stem"])
        and small.get("fine", 0) <= large.get("fine", 0)
        and Preprocess.read(small["preprocess"]).channels
        <= Preprocess.read(large["preprocess"]).channels
        and (before == after or not small.get("fine"))  # its small kernels cannot be spread
        and all(a <= b for one, other in levels for a, b in zip(one, other, strict=True))
    )


def _levels(tower: VisionTower) -> list[list[nn.Module]]:
    """The layers of a stem's levels; the last is the convolution that ends it."""
    vit: Any = tower.vit
    levels: list[list[nn.Module]] = []
    for layer in vit.conv1:
        if isinstance(layer, nn.Conv2d):
            levels.append([])
        levels[-1].append(layer)
    return levels


def _take(small: nn.Module, large: nn.Module) -> None:
    """The small one's weights in the large one, whose further channels tell it nothing yet."""
    if not isinstance(small, nn.Conv2d | nn.GroupNorm):
        return
    out, weight = len(small.weight), small.weight
    large_weight: Any = large.weight
    large_bias: Any = large.bias
    large_bias[:out] = small.bias
    if weight.ndim == 1:
        large_weight[:out] = weight
        return
    times = large_weight.shape[-1] // weight.shape[-1]
    spread = weight.repeat_interleave(times, 2).repeat_interleave(times, 3) / times**2
    large_weight[:out] = 0.0
    large_weight[:out, : weight.shape[1]] = spread
