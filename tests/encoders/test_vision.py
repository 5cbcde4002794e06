"""Vision towers against the libraries they come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.errors import IncompatibleModel, InvalidPixels, ModelNotFound, UnknownSpec
from encoders.vision import (
    Preprocess,
    build_vision_tower,
    open_clip_config,
    tower_from_config,
    with_beside,
)

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def _save(kind: str, folder: Path):
    """A random transformers ViT with its image processor, saved; returns the model."""
    import transformers as hf

    torch.manual_seed(0)
    text = {**VISION, "vocab_size": 50}
    square = {"height": 32, "width": 32}
    model, processor = {
        "clip": lambda: (
            hf.CLIPModel(hf.CLIPConfig(vision_config=VISION, text_config=text)),
            hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square),
        ),
        "siglip": lambda: (
            hf.SiglipModel(hf.SiglipConfig(vision_config=VISION, text_config=text)),
            hf.SiglipImageProcessor(size=square),
        ),
        "vit": lambda: (hf.ViTModel(hf.ViTConfig(**VISION)), hf.ViTImageProcessor(size=square)),
        "dinov2": lambda: (
            hf.Dinov2Model(hf.Dinov2Config(**VISION | {"mlp_ratio": 2})),
            hf.ViTImageProcessor(size=square),
        ),
    }[kind]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "dinov2"])
def test_transformers_tower_gives_the_librarys_own_patch_features(
    kind: str, tmp_path: Path
) -> None:
    model = _save(kind, tmp_path)
    tower = build_vision_tower(str(tmp_path)).eval()
    pixels = torch.randn(3, 3, 32, 32)
    wanted = getattr(model, "vision_model", model)(pixel_values=pixels).last_hidden_state[:, -16:]
    assert tower.grid == (4, 4)
    assert tower.width == 32
    torch.testing.assert_close(tower(pixels), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tower.encode(pixels, batch_size=2), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "dinov2"])
def test_tower_is_rebuilt_from_its_config_and_weights(kind: str, tmp_path: Path) -> None:
    _save(kind, tmp_path)
    tower = build_vision_tower(str(tmp_path)).eval()
    again = tower_from_config(tower.to_dict())
    again.load_state_dict(tower.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(tower(pixels), again.eval()(pixels))


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "dinov2"])
def test_every_trainable_weight_of_a_tower_gets_a_gradient(kind: str, tmp_path: Path) -> None:
    _save(kind, tmp_path)
    tower = build_vision_tower(str(tmp_path)).train()
    tower(torch.randn(2, 3, 32, 32)).square().mean().backward()
    starved = [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None]
    assert starved == []


def test_open_clip_tower_gives_open_clips_own_tokens() -> None:
    import open_clip

    config = open_clip_config(
        {
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "image_size": 32,
            "mlp_ratio": 2.0,
        },
        32,
        Preprocess(32, (0.5,) * 3, (0.5,) * 3),
    )
    tower = tower_from_config(config).eval()
    whole = open_clip.CLIP(
        embed_dim=32,
        vision_cfg=open_clip.CLIPVisionCfg(**config["arch"]["vision_cfg"], output_tokens=True),
        text_cfg=open_clip.CLIPTextCfg(
            width=16, heads=2, layers=1, vocab_size=40, context_length=8
        ),
    ).eval()
    missing = whole.visual.load_state_dict(tower.vit.state_dict(), strict=False).missing_keys
    assert missing == ["proj"]
    pixels = torch.randn(2, 3, 32, 32)
    _, tokens = whole.visual(pixels)
    torch.testing.assert_close(tower(pixels), tokens, atol=1e-6, rtol=1e-5)


def _with_stem(
    levels: tuple[tuple[int, int], ...], patch: int = 8, fine: int = 0, *, beside: bool = False
) -> dict[str, Any]:
    arch = {"layers": 1, "width": 32, "head_width": 16, "patch_size": patch, "image_size": 32}
    prepare = Preprocess(32, (0.5,) * 3, (0.5,) * 3, beside=beside)
    return open_clip_config(arch, 32, prepare, stem=levels, fine=fine)


@pytest.mark.parametrize("fine", [0, 16])
@pytest.mark.parametrize("levels", [((16, 1), (32, 1), (32, 0)), ((16, 1), (32, 1))])
def test_a_tower_with_a_stem_of_convolutions_is_rebuilt_and_sees_patches_through_it(
    levels: tuple[tuple[int, int], ...], fine: int
) -> None:
    """A change of one pixel reaches features of its own patch before it reaches far ones."""
    config = _with_stem(levels, fine=fine)
    torch.manual_seed(0)
    tower = tower_from_config(config).eval()
    again = tower_from_config(json.loads(json.dumps(tower.to_dict())))
    again.load_state_dict(tower.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    assert tower(pixels).shape == (2, 16, 32)
    assert torch.equal(tower(pixels), again.eval()(pixels))
    stem: Any = tower.vit
    marked = pixels.clone()
    marked[:, :, 3, 28] += 4.0
    moved = (stem.conv1(marked) - stem.conv1(pixels)).abs().sum((0, 1))
    assert divmod(int(moved.argmax()), 4) == (0, 3)


def test_every_weight_of_a_stem_gets_a_gradient() -> None:
    tower = tower_from_config(_with_stem(((16, 1), (32, 1)), fine=16)).train()
    for silent in tower.vit.conv1[0].fine[-1].parameters():  # type: ignore[index, union-attr]
        torch.nn.init.normal_(silent)
    tower(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_stem_that_makes_other_patches_is_refused() -> None:
    with pytest.raises(
        IncompatibleModel, match="2 levels of convolutions make patches of a multiple of 4"
    ):
        _with_stem(((16, 0), (32, 0)), patch=6)


@pytest.mark.parametrize(("width", "fine"), [(24, 0), (16, 8)])
def test_channels_of_a_stem_that_cannot_be_grouped_are_refused(width: int, fine: int) -> None:
    with pytest.raises(IncompatibleModel, match="in groups of 16"):
        _with_stem(((width, 0), (32, 0)), fine=fine)


@pytest.mark.slow
def test_open_clip_architecture_by_name_knows_its_size() -> None:
    tower = build_vision_tower("open_clip:ViT-B-32/random")
    assert (tower.width, tower.grid, tower.preprocess.size) == (768, (7, 7), 224)


def test_preprocessing_comes_from_the_towers_own_configuration(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    _save("siglip", tmp_path)
    tower = build_vision_tower(str(tmp_path))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")
    ours = tower.preprocess.from_images([picture])
    torch.testing.assert_close(ours, theirs["pixel_values"], atol=1e-5, rtol=1e-4)


def test_picture_is_padded_to_a_square_and_nothing_is_cut_off() -> None:
    prepare = Preprocess(32, (0.0,) * 3, (1.0,) * 3)
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 0], wide[:, -1] = 255, 128
    (pixels,) = prepare.from_images([Image.fromarray(wide)])
    assert pixels.shape == (3, 32, 32)
    assert torch.all(pixels[:, 8:24, 0] == 1.0)
    assert torch.all(pixels[:, :8] == 0)
    torch.testing.assert_close(pixels[:, 8:24, -1], torch.full((3, 16), 128 / 255))


def test_a_picture_brings_the_first_channel_of_those_before_and_after_it() -> None:
    prepare = Preprocess(4, (0.0, 0.5, 1.0), (1.0, 2.0, 4.0), beside=True)
    study = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    scaled = study.float() / 255
    pixels = prepare.normalise(study)
    assert pixels.shape == (5, prepare.channels, 4, 4)
    for channel in range(3):
        wanted = (scaled[:, channel] - prepare.mean[channel]) / prepare.std[channel]
        torch.testing.assert_close(pixels[:, channel], wanted)
    torch.testing.assert_close(pixels[:, 3], scaled[[0, 0, 1, 2, 3], 0])
    torch.testing.assert_close(pixels[:, 4], scaled[[1, 2, 3, 4, 4], 0])
    torch.testing.assert_close(prepare.normalise(with_beside(study)), pixels)
    assert replace(prepare, beside=False).normalise(study).equal(pixels[:, :3])


def test_pictures_that_are_no_study_have_themselves_beside_them() -> None:
    grey = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    pixels = Preprocess(8, (0.0,) * 3, (1.0,) * 3, beside=True).from_images(grey)
    assert torch.equal(pixels, pixels[:, :1].expand(-1, 5, -1, -1))


def test_a_tower_sees_what_is_beside_a_picture_through_its_stem() -> None:
    tower = tower_from_config(_with_stem(((16, 1), (32, 1)), fine=16, beside=True)).eval()
    again = tower_from_config(json.loads(json.dumps(tower.to_dict()))).eval()
    again.load_state_dict(tower.state_dict())
    study = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    other = study.clone()
    other[2, 0] = 255 - other[2, 0]
    before, after = (again(again.preprocess.normalise(of)) for of in (study, other))
    assert torch.equal(before, tower(tower.preprocess.normalise(study)))
    assert (before != after).flatten(1).any(1).tolist() == [False, True, True, True]


def test_what_is_beside_a_picture_is_refused_by_a_tower_without_a_stem() -> None:
    with pytest.raises(IncompatibleModel, match="only a stem takes what is beside a picture"):
        _with_stem((), beside=True)


def test_pictures_of_four_channels_are_refused() -> None:
    prepare = Preprocess(8, (0.5,) * 3, (0.5,) * 3, beside=True)
    with pytest.raises(InvalidPixels, match=r"uint8 \[n, 3, height, width\]"):
        prepare.normalise(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_float_pixels_are_refused_by_shape_and_type() -> None:
    with pytest.raises(InvalidPixels, match=r"uint8 .* not torch.float32 \[1, 3, 8, 8\]"):
        Preprocess(8, (0.5,) * 3, (0.5,) * 3).normalise(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("clip-large", UnknownSpec, "clip-large"),
        ("open_clip:ViT-Z/random", UnknownSpec, "ViT-Z"),
        ("hf:nobody/nothing", ModelNotFound, "nobody/nothing"),
        ("open_clip:ViT-B-32/no-such-weights", ModelNotFound, "no-such-weights"),
        ("open_clip:RN50/random", IncompatibleModel, "RN50"),
    ],
)
def test_bad_spec_is_refused_by_name(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build_vision_tower(spec)
