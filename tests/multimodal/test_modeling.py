"""The composite against its own parts, uncached, alone and padded; gradients where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.dicom import PROFILES, Views, load_volume, make_views, scan
from encoders.errors import (
    ContextOverflow,
    IncompatibleModel,
    InvalidPixels,
    PlaceholderMismatch,
    UnreadableAudio,
)
from multimodal.composition import compose
from multimodal.modeling import trainable
from multimodal.projectors import SliceProjector, token_centres_mm
from multimodal.sparse import SparsityConfig
from tests import makers


@pytest.fixture(scope="module")
def sparse_composite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Sight, hearing, a finding head, and a sparse backbone."""
    folder = tmp_path_factory.mktemp("parts")
    for name in ("clip", "whisper", "llama"):
        (folder / name).mkdir()
    makers.save_clip(folder / "clip")
    makers.save_whisper(folder / "whisper")
    makers.save_backbone("llama", folder / "llama")
    torch.manual_seed(3)
    return compose(
        str(folder / "clip"), str(folder / "whisper"), folder / "llama",
        findings=(("nodule", True), ("cardiomegaly", False)), sparsity=SparsityConfig(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def views(phantom_series: Any) -> Views:
    return make_views(load_volume(scan(phantom_series).default()), PROFILES["crossread-ct"])


def _picture(seed: int = 0) -> dict[str, Any]:
    grey = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    return {"type": "image", "image": Image.fromarray(grey)}


def _sound(seconds: float, seed: int = 0) -> dict[str, Any]:
    noise = np.random.default_rng(seed).standard_normal(int(16000 * seconds)).astype(np.float32)
    return {"type": "audio", "audio": (noise, 16000)}


def _chats(views: Views) -> list[list[dict[str, Any]]]:
    """Four conversations of unequal length: mixed media, a picture, sound, words only."""
    study = {"type": "dicom", "dicom": views}

    def chat(*parts: Any) -> list[dict[str, Any]]:
        content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
        return [{"role": "user", "content": content}]

    return [
        chat(_picture(), "is", study, "a nodule", _sound(0.7), "or", study, _picture(1)),
        chat("how large", _picture(2)),
        chat(_sound(1.3, 1), "transcribe", _sound(5.0, 2)),
        chat("list the findings"),
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_equals_singles(sparse_composite: Any, views: Views, side: str) -> None:
    model, processor = sparse_composite
    chats = _chats(views)
    processor.tokenizer.padding_side = side
    try:
        batch = processor.process(chats).tensors
    finally:
        processor.tokenizer.padding_side = "left"
    logits = model(**batch).logits
    for row, mask, chat in zip(logits, batch["attention_mask"], chats, strict=True):
        alone = model(**processor.process([chat]).tensors).logits[0]
        torch.testing.assert_close(row[mask.bool()], alone, atol=2e-5, rtol=1e-4)


def test_generated_tokens_of_a_batch_equal_singles(sparse_composite: Any, views: Views) -> None:
    model, processor = sparse_composite
    chats = _chats(views)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    batch = processor.process(chats).tensors
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, chat in zip(together, chats, strict=True):
        single = processor.process([chat]).tensors
        alone = model.generate(**single, **options)[0, single["input_ids"].shape[1] :]
        assert torch.equal(row, alone)


@torch.no_grad()
def test_cached_decoding_equals_uncached(sparse_composite: Any, views: Views) -> None:
    model, processor = sparse_composite
    tensors = processor.process([_chats(views)[0]]).tensors
    answer = torch.randint(3, 50, (1, 4), generator=torch.Generator().manual_seed(0))
    whole = {**tensors, "input_ids": torch.cat([tensors["input_ids"], answer], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    wanted = model(**whole).logits[0, -5:]
    output = model(**tensors, use_cache=True)
    got, cache = [output.logits[0, -1]], output.past_key_values
    for token in answer[0]:
        output = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True)
        got.append(output.logits[0, -1])
    torch.testing.assert_close(torch.stack(got), wanted, atol=2e-5, rtol=1e-4)


def test_generate_streams_the_tokens_it_returns(sparse_composite: Any, views: Views) -> None:
    from transformers.generation.streamers import BaseStreamer

    class Ears(BaseStreamer):
        def __init__(self) -> None:
            self.heard: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.heard += value.flatten().tolist()

        def end(self) -> None:
            self.heard.append(-1)

    model, processor = sparse_composite
    tensors = processor.process([_chats(views)[0]]).tensors
    ears = Ears()
    out = model.generate(**tensors, max_new_tokens=5, do_sample=False, streamer=ears)
    assert ears.heard == [*out[0].tolist(), -1]


@torch.no_grad()
def test_media_stand_where_their_placeholders_are(sparse_composite: Any, views: Views) -> None:
    """Embeddings by hand: tower, projector, and the words' own embedding everywhere else."""
    model, processor = sparse_composite
    tensors = processor.process([_chats(views)[0]]).tensors
    ids, embeds = (
        tensors["input_ids"],
        model.embed(**_media_of(tensors), input_ids=tensors["input_ids"]),
    )
    wanted = model.get_input_embeddings()(ids)
    features = model.vision_tower(tensors["pixel_values"])
    geometry = tensors["image_geometry"]
    wanted[ids == model.config.image_token_id] = model.vision_projector(
        features, geometry, model.config.view_size
    ).flatten(0, 1)
    n = len(views.sources)
    regions = [model.project_regions(features[a : a + n], geometry[a : a + n]) for a in (1, 1 + n)]
    wanted[ids == model.config.region_token_id] = torch.cat(regions)
    mel = tensors["input_features"]
    frames = model.audio_tower(mel)[0, : (mel.shape[2] + 1) // 2]
    wanted[ids == model.config.audio_token_id] = model.audio_projector(frames)
    torch.testing.assert_close(embeds, wanted, atol=1e-5, rtol=1e-4)


def _media_of(tensors: Any) -> dict[str, torch.Tensor]:
    return {k: v for k, v in tensors.items() if k not in ("input_ids", "attention_mask")}


@torch.no_grad()
def test_slices_five_and_fifty_millimetres_apart_differ(
    sparse_composite: Any, views: Views
) -> None:
    model, processor = sparse_composite
    tensors = processor.process([[{"role": "user", "content": [
        {"type": "dicom", "dicom": views}, {"type": "text", "text": "how large"}]}]]).tensors  # fmt: skip

    def answer(gap_mm: float, pixel_mm: float) -> torch.Tensor:
        geometry = torch.from_numpy(views.geometry).clone()
        geometry[:, 2] = gap_mm * torch.arange(len(geometry))
        geometry[:, 9] = gap_mm
        geometry[:, 3:9] *= pixel_mm
        return model(**{**tensors, "image_geometry": geometry}).logits[0, -1]

    base = answer(5.0, 1.0)
    assert torch.equal(base, answer(5.0, 1.0))
    assert (base - answer(50.0, 1.0)).abs().max() > 1e-3
    assert (base - answer(5.0, 2.0)).abs().max() > 1e-3


@torch.no_grad()
def test_pictures_without_geometry_do_not_see_any(sparse_composite: Any) -> None:
    projector = sparse_composite[0].vision_projector
    features = torch.randn(1, 16, 32)
    nowhere, elsewhere = torch.zeros(1, 11), torch.zeros(1, 11)
    elsewhere[:, :9] = 70.0  # but the flag in the last place stays 0: unknown
    assert torch.equal(projector(features, nowhere, 96), projector(features, elsewhere, 96))


@torch.no_grad()
def test_pooling_is_the_mean_and_shuffling_keeps_every_patch() -> None:
    features = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 3).contiguous()
    seen = []
    for reduction in ("pool", "shuffle"):
        projector = SliceProjector(3, 8, (4, 4), factor=2, reduction=reduction)
        projector.mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        assert projector(features, torch.zeros(1, 11), 32).shape == (1, 4, 8)
    assert seen[0][0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert seen[1][0, 1, ::3].tolist() == [2.0, 3.0, 6.0, 7.0]


@torch.no_grad()
def test_pooling_a_grid_that_the_factor_does_not_divide_is_adaptive() -> None:
    """5 x 5 by 2: cells of 3 x 3 patches that share the middle row and column."""
    grid = torch.arange(25.0).view(1, 25, 1).expand(1, 25, 3).contiguous()
    seen: list[torch.Tensor] = []
    projector = SliceProjector(3, 8, (5, 5), factor=2, reduction="pool")
    projector.mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    assert projector(grid, torch.zeros(1, 11), 35).shape == (1, 4, 8)
    square = grid[0, :, 0].view(5, 5)
    cells = [square[r : r + 3, c : c + 3].mean().item() for r in (0, 2) for c in (0, 2)]
    assert seen[0][0, :, 0].tolist() == cells
    with pytest.raises(IncompatibleModel, match=r"5x5 grid .* or the vision_reduction 'pool'"):
        SliceProjector(3, 8, (5, 5), factor=2, reduction="shuffle")


def test_token_centres_are_the_cells_middles_in_the_patient() -> None:
    geometry = torch.tensor([[10.0, 20.0, 30.0, 2.0, 0, 0, 0, 3.0, 0, 5.0, 1.0]])
    centres = token_centres_mm(geometry, (2, 2), 8)
    # cells of 4 pixels: middles at pixel 1.5 and 5.5; columns step 2 mm along x, rows 3 mm along y
    assert centres[0].tolist() == [[13, 24.5, 30], [21, 24.5, 30], [13, 36.5, 30], [21, 36.5, 30]]


# --- gradients -------------------------------------------------------------------------------


def _loss(model: Any, processor: Any, views: Views) -> torch.Tensor:
    tensors = processor.process(_chats(views)[:1]).tensors  # it holds every kind of medium
    return model(**tensors, labels=tensors["input_ids"]).loss


@pytest.mark.parametrize(
    "part", ["", "vision_projector", "audio_projector", "vision_tower", "audio_tower",
             "finding_head", "region_head", "region_projector", "language_model"],
)  # fmt: skip
def test_gradient_reaches_every_trainable_part_and_no_frozen_one(
    sparse_composite: Any, views: Views, part: str
) -> None:
    model, processor = sparse_composite
    asked = {n: p.requires_grad for n, p in model.named_parameters()}
    # some weights of the towers are fixed by their libraries (CLIP's last norm, sine positions)
    free = {n for n, wanted in asked.items() if wanted}
    trainable(model, lambda name: name.startswith(part) and name in free)
    try:
        model.train()
        _loss(model, processor, views).backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        wanted = {n for n in free if n.startswith(part)}
        # a key's bias moves every score of a query alike, which softmax ignores
        silent = {n for n in wanted if n.endswith("k_proj.bias")}
        assert wanted - silent <= reached <= wanted
    finally:
        model.eval()
        model.zero_grad()
        trainable(model, lambda name: asked[name])


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(
    sparse_composite: Any, views: Views
) -> None:
    model, processor = sparse_composite
    calls = []
    layer = model.language_model.model.layers[0].self_attn
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    grads, counts = [], []
    model.train()
    try:
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable()
            calls.clear()
            _loss(model, processor, views).backward()
            counts.append(len(calls))
            grads.append({n: p.grad.clone() for n, p in model.named_parameters()
                          if p.grad is not None})  # fmt: skip
            model.zero_grad()
    finally:
        handle.remove()
        model.activation_checkpointing_disable()
        model.eval()
    assert counts == [1, 2]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4, msg=name)


# --- what is refused -------------------------------------------------------------------------


def test_placeholders_and_features_must_match_in_number(sparse_composite: Any) -> None:
    model, processor = sparse_composite
    tensors = processor(text="<image> and <image>", images=[_picture()["image"]] * 2)
    fewer = {**tensors, "pixel_values": tensors["pixel_values"][:1],
             "image_geometry": tensors["image_geometry"][:1],
             "image_study": tensors["image_study"][:1]}  # fmt: skip
    with pytest.raises(PlaceholderMismatch, match="32 image placeholder tokens but 16"):
        model(**fewer)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_media_that_were_forgotten_are_missed(sparse_composite: Any, call: str) -> None:
    model, processor = sparse_composite
    run = model if call == "forward" else model.generate
    ids = processor(text="<image> list", images=_picture()["image"])["input_ids"]
    with pytest.raises(PlaceholderMismatch, match="16 placeholder tokens for pixel_values"):
        run(input_ids=ids)
    ids = processor(text="<audio> list", audio=_sound(0.5)["audio"])["input_ids"]
    with pytest.raises(PlaceholderMismatch, match="placeholder tokens for input_features"):
        run(input_ids=ids)


def test_nan_is_refused_with_its_place(sparse_composite: Any) -> None:
    model, processor = sparse_composite
    tensors = processor(text="<image><image><audio>", images=[_picture()["image"]] * 2,
                        audio=_sound(0.5)["audio"])  # fmt: skip
    pixels, mel = tensors["pixel_values"].clone(), tensors["input_features"].clone()
    pixels[1, 0, 3, 3], mel[0, 5, 5] = torch.nan, torch.inf
    with pytest.raises(InvalidPixels, match=r"pixel_values\[1\] holds NaN"):
        model(**{**tensors, "pixel_values": pixels})
    with pytest.raises(UnreadableAudio, match=r"input_features\[0\]"):
        model(**{**tensors, "input_features": mel})


def test_a_prompt_longer_than_the_context_is_refused(sparse_composite: Any) -> None:
    model, _ = sparse_composite
    with pytest.raises(ContextOverflow, match=r"takes 2049 tokens, .* holds 2048"):
        model.generate(input_ids=torch.full((1, 2049), 5))


def test_a_sense_that_is_not_there_is_named(tiny_backbone: Any) -> None:
    model, _ = compose(backbone=tiny_backbone)
    with pytest.raises(IncompatibleModel, match="no vision tower"):
        model.encode_images(torch.zeros(1, 3, 8, 8))
    with pytest.raises(IncompatibleModel, match="no audio tower"):
        model.encode_audio(torch.zeros(1, 80, 10), torch.tensor([10]))
