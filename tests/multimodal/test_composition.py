"""Composites built from parts, saved and loaded as on the Hub, against the parts run by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.errors import IncompatibleModel, InvalidMessage, ModelNotFound, UnknownSpec
from multimodal import register
from multimodal.composition import Joints, compose
from multimodal.sparse import SparsityConfig, sparse_mlps
from tests import makers

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16,
                       "patch_size": 8, "mlp_ratio": 2.0},
        "text_cfg": {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
                       "interpolation": "bilinear"},
}  # fmt: skip


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random open_clip export in the format of its Hub models, and the model itself."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(5)
    cfg: Any = OPEN_CLIP["model_cfg"]
    whole = open_clip.CLIP(
        cfg["embed_dim"],
        open_clip.CLIPVisionCfg(**cfg["vision_cfg"]),
        open_clip.CLIPTextCfg(**cfg["text_cfg"]),
    )
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    save_file(whole.state_dict(), folder / "open_clip_model.safetensors")
    return folder, whole.eval()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    for name in ("clip", "whisper"):
        (folder / name).mkdir()
    makers.save_clip(folder / "clip")
    makers.save_whisper(folder / "whisper")
    return {"clip": folder / "clip", "whisper": folder / "whisper"}


def _picture(size: tuple[int, int] = (32, 32)) -> Image.Image:
    grey = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(grey)


def _chat(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [
        {"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]  # fmt: skip


def _same_answer(model: Any, again: Any, tensors: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(again(**tensors).logits, model(**tensors).logits)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(again.generate(**tensors, **options), model.generate(**tensors, **options))


@torch.no_grad()
def test_features_are_those_of_transformers_towers_called_by_hand(
    parts: dict[str, Path], tiny_backbone: Path, speech: np.ndarray
) -> None:
    from transformers import AutoImageProcessor, CLIPModel, WhisperFeatureExtractor, WhisperModel

    model, processor = compose(str(parts["clip"]), str(parts["whisper"]), tiny_backbone)
    tensors = processor(text="<image> and <audio>", images=_picture(), audio=(speech, 16000))
    clip = CLIPModel.from_pretrained(parts["clip"]).eval()
    pixels = AutoImageProcessor.from_pretrained(parts["clip"])(_picture(), return_tensors="pt")
    wanted = clip.vision_model(**pixels).last_hidden_state[:, 1:]
    got = model.encode_images(tensors["pixel_values"])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    heard = WhisperFeatureExtractor(chunk_length=4)(
        speech, sampling_rate=16000, return_tensors="pt"
    )
    wanted = WhisperModel.from_pretrained(parts["whisper"]).eval().encoder(**heard)
    (got,) = model.encode_audio(tensors["input_features"], tensors["feature_lengths"])
    length = len(got) - 1  # the last frame hears the end mirrored, where Whisper's hears padding
    torch.testing.assert_close(
        got[:length], wanted.last_hidden_state[0, :length], atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_features_are_those_of_open_clip_called_by_hand(
    open_clip_folder: tuple[Path, Any], tiny_backbone: Path
) -> None:
    folder, whole = open_clip_folder
    model, processor = compose(str(folder), None, tiny_backbone)
    pixels = processor(text="<image>", images=_picture())["pixel_values"]
    mean, std = (
        torch.tensor(OPEN_CLIP["preprocess_cfg"][k]).view(3, 1, 1) for k in ("mean", "std")
    )
    by_hand = (torch.from_numpy(np.array(_picture())).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(pixels[0], by_hand, atol=1e-6, rtol=1e-5)
    whole.visual.output_tokens = True
    _, tokens = whole.visual(pixels)
    torch.testing.assert_close(model.encode_images(pixels), tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(makers.BACKBONES))
def test_every_kind_of_backbone_is_composed_saved_and_loaded_the_same(
    kind: str, parts: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

    register()
    (tmp_path / "backbone").mkdir()
    makers.save_backbone(kind, tmp_path / "backbone")
    sparsity = SparsityConfig() if kind in makers.DENSE_GATED else None
    model, processor = compose(str(parts["clip"]), None, tmp_path / "backbone", sparsity=sparsity)
    assert len(sparse_mlps(model)) == (2 if sparsity else 0)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert (config.model_type, config.text_config.model_type) == ("crossread", kind)
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "saved").eval()
    tensors = processor.process([_chat("list", {"type": "image", "image": _picture()})]).tensors
    same = AutoProcessor.from_pretrained(tmp_path / "saved").process(
        [_chat("list", {"type": "image", "image": _picture()})]
    )
    assert torch.equal(same.tensors["input_ids"], tensors["input_ids"])
    _same_answer(model, again, tensors)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3"])  # the experts: see test_sparse.py
@torch.no_grad()
def test_a_composed_backbone_answers_as_it_did_alone(kind: str, tmp_path: Path) -> None:
    """Text through the composite equals text through the backbone, causal attention included."""
    makers.save_backbone(kind, tmp_path)
    alone = makers.backbone(kind)
    model, _ = compose(backbone=tmp_path)
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    wanted = alone(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits[..., : wanted.shape[-1]], wanted)


@pytest.mark.parametrize(
    ("vision", "audio"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_any_part_is_optional(
    vision: bool, audio: bool, parts: dict[str, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    register()
    model, processor = compose(
        str(parts["clip"]) if vision else None,
        str(parts["whisper"]) if audio else None,
        tiny_backbone,
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    hears, sees = hasattr(again, "audio_tower"), hasattr(again, "vision_tower")
    assert (sees, hears) == (vision, audio)
    processor = AutoProcessor.from_pretrained(tmp_path)
    tensors = processor.process([_chat("list")]).tensors
    _same_answer(model, again.eval(), tensors)
    if not vision:
        with pytest.raises(IncompatibleModel, match="no vision tower; compose one with vision="):
            processor(text="<image>", images=_picture())
    if not audio:
        with pytest.raises(IncompatibleModel, match="no audio tower; compose one with audio="):
            processor(text="<audio>", audio=(np.zeros(800, np.float32), 16000))


def test_transformers_any_to_any_pipeline_runs_a_saved_composite(
    tiny_composite: Any, tmp_path: Path, speech: np.ndarray
) -> None:
    import transformers

    register()
    model, processor = tiny_composite
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = transformers.pipeline("any-to-any", model=str(tmp_path))
    _picture().save(tmp_path / "a.png")
    chat = _chat({"type": "image", "path": str(tmp_path / "a.png")}, "list the findings",
                 {"type": "audio", "audio": (speech, 16000)})  # fmt: skip
    (answer,) = pipe(text=chat, max_new_tokens=5, return_full_text=False, do_sample=False)
    tensors = processor.process([chat]).tensors
    new = model.generate(**tensors, max_new_tokens=5, do_sample=False)
    wanted = processor.decode(new[0, tensors["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer["generated_text"].strip() == wanted.strip()
    (answer,) = pipe(text="<image> list", images=str(tmp_path / "a.png"), max_new_tokens=2)
    assert "generated_text" in answer


def test_a_process_that_does_not_know_crossread_is_told_the_models_type(tmp_path: Path) -> None:
    """transformers alone names the type it lacks; importing from multimodal teaches it."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "crossread", "text_config": {"model_type": "llama"}}'
    )
    script = (
        "import sys\n"
        "from transformers import AutoConfig\n"
        "try:\n    AutoConfig.from_pretrained(sys.argv[1])\n"
        "except ValueError as error:\n    assert 'crossread' in str(error), error\n"
        "else:\n    raise SystemExit('known without asking')\n"
        "from multimodal import MultimodalConfig\n"
        "assert type(AutoConfig.from_pretrained(sys.argv[1])) is MultimodalConfig\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("vision", "audio", "error", "words"),
    [
        ("clip-large", None, UnknownSpec, "clip-large"),
        ("open_clip:ViT-Z/random", None, UnknownSpec, "ViT-Z"),
        ("hf:nobody/nothing", None, ModelNotFound, "nobody/nothing"),
        (None, "clap:music", UnknownSpec, "clap:music"),
        (None, "/no/such/whisper", ModelNotFound, "whisper"),
    ],
)
def test_a_bad_part_is_refused_by_name(
    vision: str | None, audio: str | None, error: type[Exception], words: str, tiny_backbone: Path
) -> None:
    with pytest.raises(error, match=words):
        compose(vision, audio, tiny_backbone)


def test_a_bad_backbone_is_refused_by_name(tmp_path: Path, parts: dict[str, Path]) -> None:
    with pytest.raises(ModelNotFound, match="nothing-here"):
        compose(backbone=tmp_path / "nothing-here")
    with pytest.raises(ModelNotFound, match="backbone"):
        compose(str(parts["clip"]))
    with pytest.raises(ModelNotFound, match="clip"):
        compose(backbone=parts["clip"])  # a model, but no language model
    makers.backbone("llama").save_pretrained(tmp_path)  # no tokenizer
    with pytest.raises(ModelNotFound, match=tmp_path.name):
        compose(backbone=tmp_path)


def test_joints_are_chosen_checked_and_refused(parts: dict[str, Path], tiny_backbone: Path) -> None:
    clip, whisper = str(parts["clip"]), str(parts["whisper"])
    model, processor = compose(clip, whisper, tiny_backbone, joints=Joints(2, "pool", 8))
    config = model.config
    assert (config.vision_factor, config.vision_reduction, config.audio_stack) == (2, "pool", 8)
    tensors = processor(text="<image><audio>", images=_picture(),
                        audio=(np.ones(16000, np.float32), 16000))  # fmt: skip
    counts = [int((tensors["input_ids"] == i).sum()) for i in
              (config.image_token_id, config.audio_token_id)]  # fmt: skip
    assert counts == [4, 7]  # a 4 x 4 grid by 2 x 2; 50 encoder frames by 8
    model(**tensors)
    with pytest.raises(IncompatibleModel, match=r"4x4 grid .* reduced by 3"):
        compose(clip, None, tiny_backbone, joints=Joints(3))
    with pytest.raises(InvalidMessage, match="vision_reduction is 'crop'"):
        Joints(vision_reduction="crop")  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="audio_stack is 0"):
        Joints(audio_stack=0)
    with pytest.raises(IncompatibleModel, match="no view profile 'x-ray-specs'"):
        compose(clip, None, tiny_backbone, view_profile="x-ray-specs")


@pytest.mark.parametrize(
    ("grid", "tokens", "reduction"),
    [(7, 49, "shuffle"), (12, 36, "shuffle"), (14, 49, "shuffle"), (16, 64, "shuffle"),
     (24, 64, "shuffle"), (27, 81, "shuffle"), (32, 64, "shuffle"), (37, 81, "pool"),
     (31, 49, "pool"), (34, 64, "pool")],
)  # fmt: skip
def test_a_picture_takes_about_64_tokens_of_any_tower(
    grid: int, tokens: int, reduction: str
) -> None:
    """37 x 37 patches are DINOv2's at 518 pixels: joining them by a divisor would leave 1,369."""
    from types import SimpleNamespace

    from multimodal.composition import _reduction

    tower: Any = SimpleNamespace(grid=(grid, grid))
    factor, kind = _reduction(tower, "shuffle")
    assert ((grid // factor) ** 2, kind) == (tokens, reduction)


def test_a_tower_of_a_prime_grid_is_pooled(tiny_backbone: Path, tmp_path: Path) -> None:
    """Dinov2 of 518 pixels, its real grid: 81 tokens a picture, saved and loaded again."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2,
                          image_size=518, patch_size=14)  # fmt: skip
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"shortest_edge": 518}, crop_size={"height": 518, "width": 518}).save_pretrained(tmp_path / "dino")  # fmt: skip
    model, processor = compose(str(tmp_path / "dino"), None, tiny_backbone)
    assert (model.config.vision_factor, model.config.vision_reduction) == (4, "pool")
    tensors = processor(text="<image>", images=_picture())
    assert int((tensors["input_ids"] == model.config.image_token_id).sum()) == 81
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(model(**tensors).logits, again(**tensors).logits)


def test_half_precision_backbones_keep_their_type(parts: dict[str, Path], tmp_path: Path) -> None:
    makers.backbone("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    makers.tokenizer().save_pretrained(tmp_path)
    model, processor = compose(str(parts["clip"]), str(parts["whisper"]), tmp_path,
                               findings=[("nodule", True)], sparsity=SparsityConfig())  # fmt: skip
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    tensors = processor(text="<image><audio> list", images=_picture(),
                        audio=(np.ones(16000, np.float32), 16000))  # fmt: skip
    out = model.generate(**tensors, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= tensors["input_ids"].shape[1] + 3
