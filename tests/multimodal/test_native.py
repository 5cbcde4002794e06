"""Checkpoints of the real classes, saved and loaded in their real format: prompts, answers, sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from encoders.dicom import PROFILES, Volume, load_volume, make_views, scan
from encoders.errors import (
    ContextOverflow,
    IncompatibleModel,
    InvalidMessage,
    InvalidOption,
    ModelNotFound,
)
from multimodal.backends import (
    GenerateOptions,
    collect,
    load_backend,
)
from multimodal.messages import Audio, Image, Message, Study, Text, Video, user
from multimodal.native import NativeBackend
from tests import makers
from tests.multimodal.native_zoo import EVERY, HEARING, SEEING, WATCHING

SHORT = GenerateOptions(max_new_tokens=6)


def system(words: str) -> Message:
    return Message("system", (Text(words),))


# --- what a checkpoint is -------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
def test_a_folder_is_loaded_for_what_it_is(
    native: Callable[[str], NativeBackend], family: str
) -> None:
    able = native(family).capabilities()
    assert able.modalities == {
        "text", *(("image", "dicom") if family in SEEING else ()),
        *(("audio",) if family in HEARING else ()), *(("video",) if family in WATCHING else ()),
    }  # fmt: skip
    assert (able.findings, able.grounds, able.knows_forms) == ((), False, False)
    assert len(able.weights_sha256) == 64
    assert able.max_len == (4096 if family == "phi4_multimodal" else 16384)


# --- the family's documented prompt; sources beside the templates in native_zoo -------------------

DOCUMENTED = {
    "gemma3": "<bos><start_of_turn>user\nBe brief.\n\n"
    "\n\n<start_of_image><image_soft_token*4><end_of_image>\n\nWhat is it?<end_of_turn>\n"
    "<start_of_turn>model\nA nodule.<end_of_turn>\n"
    "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n",
    "gemma4_unified": "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\n"
    "\n\n<|image><|image|*64><image|>\n\nWhat is it?<turn|>\n<|turn>model\nA nodule.<turn|>\n"
    "<|turn>user\nSure?<turn|>\n<|turn>model\n",
    "qwen2_5_vl": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|*4><|vision_end|>What is it?<|im_end|>\n"
    "<|im_start|>assistant\nA nodule.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
    "qwen2_5_omni": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    "<|vision_bos|><|IMAGE|*4><|vision_eos|>What is it?<|im_end|>\n"
    "<|im_start|>assistant\nA nodule.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
    # one picture is told twice, whole and as the tile of the grid that fits it, with line ends
    "llava_onevision": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    "<image*36>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA nodule.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
    "phi4_multimodal": "<|system|>Be brief.<|end|><|user|><|image|*545>What is it?<|end|>"
    "<|assistant|>A nodule.<|end|><|user|>Sure?<|end|><|assistant|>",
    "deepseek_vl": "<|begin_of_sentence|>You are a helpful language and vision assistant. You are"
    " able to understand the visual content that the user provides, and assist the user with a"
    " variety of tasks using natural language.\n\nUser: Be brief.\n\n<image_placeholder*16>What is"
    " it?\n\nAssistant: A nodule.<|end_of_sentence|>User: Sure?\n\nAssistant:",
}  # fmt: skip


def expanded(text: str) -> str:
    """`<image*4>` as `<image><image><image><image>`."""
    import re

    return re.sub(r"<([^<>*]+)\*(\d+)>", lambda m: f"<{m[1]}>" * int(m[2]), text)


@pytest.mark.parametrize("family", SEEING)
def test_the_prompt_is_the_familys_documented_one(
    native: Callable[[str], NativeBackend], picture: Pictures.Image, family: str
) -> None:
    turns = [system("Be brief."), user(Image(picture), "What is it?"),
             Message("assistant", (Text("A nodule."),)), user("Sure?")]  # fmt: skip
    prompter = native(family).prompter
    ids = prompter.write(turns).tensors["input_ids"][0]
    assert prompter.tokenizer.decode(ids) == expanded(DOCUMENTED[family])


HEARD = {
    "gemma4_unified": "<bos><|turn>user\n<|audio><|audio|*50><audio|>Transcribe it.<turn|>\n"
    "<|turn>model\n",
    "qwen2_5_omni": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|audio_bos|><|AUDIO|*50><|audio_eos|>Transcribe it.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "phi4_multimodal": "<|user|><|audio|*25>Transcribe it.<|end|><|assistant|>",
    "voxtral": "<s>[INST][BEGIN_AUDIO]" + "[AUDIO]" * 375 + "Transcribe it.[/INST]",
}


@pytest.mark.parametrize("family", HEARING)
def test_sound_stands_in_the_prompt_as_documented(
    native: Callable[[str], NativeBackend], speech: np.ndarray, family: str
) -> None:
    """Two seconds: 25 tokens a second in Gemma 4 and Qwen, 12.5 in Phi-4, 375 per 30 s in Voxtral."""
    prompt = native(family).prompter.write([user(Audio(speech, 16000), "Transcribe it.")])
    words = native(family).prompter.tokenizer.decode(prompt.tensors["input_ids"][0])
    assert words == expanded(HEARD[family])
    (span,) = prompt.layout
    assert span.source.seconds == (0.0, 2.0)
    assert int(prompt.media_tokens.sum()) == span.stop - span.start


def test_voxtral_hears_a_minute_in_windows_of_half_a_minute(
    native: Callable[[str], NativeBackend],
) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 31 * 16000).astype(np.float32)
    prompter = native("voxtral").prompter
    prompt = prompter.write([user(Audio(sound, 16000), "Transcribe it.")])
    assert int(prompt.media_tokens.sum()) == 2 * 375
    features = prompt.tensors["input_features"]
    assert features.shape == (2, 128, 3000)
    padded = np.pad(sound, (0, 60 * 16000 - len(sound)))
    whole = prompter.processor.feature_extractor(
        padded, sampling_rate=16000, padding=True, truncation=False, return_tensors="pt"
    )["input_features"]
    assert torch.equal(torch.cat(list(features), -1), whole[0])


# --- studies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3", "gemma4_unified"])
def test_gemma_sees_ct_as_medgemma_does(
    native: Callable[[str], NativeBackend], volume: Volume, family: str
) -> None:
    """Google's notebook high_dimensional_ct: three windows as colours, each followed by SLICE n."""
    prompt = native(family).prompter.write([user(Study(volume), "What is it?")])
    views = make_views(volume, PROFILES["medgemma-ct"])
    shown = native(family).prompter._study(Study(volume))
    assert np.array_equal(np.stack([np.moveaxis(np.asarray(p), -1, 0) for p in shown.items]),
                          views.pixels)  # fmt: skip
    assert shown.labels == tuple(f"SLICE {n}" for n in range(1, 25))
    assert [span.source for span in prompt.layout] == list(views.sources)
    assert "SLICE 24\n\nWhat is it?" in prompt.text


def test_gemma_sees_85_slices_at_most_of_a_long_ct(
    native: Callable[[str], NativeBackend], tmp_path: Path
) -> None:
    makers.write_blocks(tmp_path, shape=(120, 8, 8))
    long = load_volume(scan(tmp_path).default())
    prompt = native("gemma3").prompter.write([user(Study(long), "What is it?")])
    indices = [span.source.slice_index for span in prompt.layout]
    assert len(indices) == len(set(indices)) == 85
    assert (min(indices), max(indices)) == (0, 119)  # type: ignore[type-var]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_5_omni", "llava_onevision", "deepseek_vl"])
def test_others_see_key_slices_in_two_windows_told_in_words(
    native: Callable[[str], NativeBackend], volume: Volume, family: str
) -> None:
    prompt = native(family).prompter.write([user(Study(volume), "What is it?")])
    assert len(prompt.layout) == 32
    windows = [span.source.window for span in prompt.layout]
    assert windows == ["ct-lung", "ct-soft"] * 16
    pairs = [span.source.slice_index for span in prompt.layout]
    assert pairs[::2] == pairs[1::2] == sorted(set(pairs), key=pairs.index)
    assert "SLICE 16, lung window" in prompt.text
    assert "SLICE 16, soft tissue window" in prompt.text


def test_a_template_that_puts_pictures_first_is_told_their_order(
    native: Callable[[str], NativeBackend], volume: Volume
) -> None:
    prompt = native("llava_onevision").prompter.write([user(Study(volume), "What is it?")])
    pictures, _, words = prompt.text.partition("The pictures show, in order: ")
    assert pictures.count("<image>") == 32
    assert words.startswith("SLICE 1, lung window; SLICE 1, soft tissue window; SLICE 2, lung")


def test_evidence_leads_from_a_token_to_the_stored_slice(
    native: Callable[[str], NativeBackend], volume: Volume
) -> None:
    """The slice of the block near the head is bright in the picture that its tokens stand for."""
    prompt = native("gemma3").prompter.write([user(Study(volume), "What is it?")])
    head = int(np.argwhere(volume.voxels == 900)[:, 0].mean())
    (span,) = [s for s in prompt.layout if s.source.slice_index == head]
    shown = native("gemma3").prompter._study(Study(volume))
    brightest = np.asarray(shown.items[prompt.layout.index(span)]).max()
    assert brightest == 255
    assert all(prompt.media_tokens[span.start : span.stop])


def test_fewer_slices_are_shown_where_the_context_is_short_and_that_is_told(
    native: Callable[[str], NativeBackend], volume: Volume
) -> None:
    """Phi-4's tiny context of 4096 holds 5 pictures of 545 tokens in three quarters of it."""
    backend = native("phi4_multimodal")
    finished = collect(backend.generate([user(Study(volume), "What is it?")], SHORT))
    (problem,) = finished.problems
    assert (problem.code, problem.message.partition("holds ")[2]) == (
        "FEWER_SLICES", "4 of 32 pictures",
    )  # fmt: skip
    with pytest.raises(ContextOverflow, match="give fewer pictures or let it answer in fewer"):
        collect(backend.generate([user("word " * 9000)], SHORT))


def test_x_rays_and_mr_are_shown_by_their_own_profiles(
    native: Callable[[str], NativeBackend], shared_data: Path
) -> None:
    prompt = native("gemma3").prompter.write([user(Study(shared_data / "xray/dx_image.dcm"), "?")])
    assert "IMAGE 1" in prompt.text
    assert len(prompt.layout) == 1


# --- refusals -------------------------------------------------------------------------------------


def test_a_medium_the_model_does_not_take_is_refused_with_what_it_takes(
    native: Callable[[str], NativeBackend], volume: Volume, speech: np.ndarray, clip: Path
) -> None:
    sound, film = Audio(speech, 16000), Video(clip)
    for family, part, why in (
        ("gemma3", sound, r"takes no sound \(dicom, image, text only\); choose a model that does"),
        ("deepseek_vl", film, r"takes no video \(dicom, image, text only\)"),
        ("voxtral", Study(volume), r"takes no DICOM studies \(audio, text only\)"),
        (
            "deepseek_llm",
            Study(volume),
            r"only reads; give it eyes and ears by multimodal\.compose",
        ),
        ("deepseek_llm", sound, r"only reads; .* or choose a model for sound"),
    ):
        with pytest.raises(IncompatibleModel, match=why):
            collect(native(family).generate([user(part, "?")], SHORT))


def test_a_control_token_in_a_text_is_refused(native: Callable[[str], NativeBackend]) -> None:
    for family, token in (("gemma3", "<start_of_image>"), ("qwen2_5_vl", "<|im_end|>"),
                          ("phi4_multimodal", "<|image|>"), ("voxtral", "[AUDIO]")):  # fmt: skip
        with pytest.raises(InvalidMessage, match=r"messages\[0\] holds .* control token; remove"):
            collect(native(family).generate([user(f"see {token} here")], SHORT))


def test_turns_that_the_template_refuses_are_refused_in_its_words(
    native: Callable[[str], NativeBackend],
) -> None:
    with pytest.raises(InvalidMessage, match="Conversation roles must alternate"):
        collect(native("gemma3").generate([user("one"), user("two")], SHORT))


def test_sparsity_is_refused_for_what_is_no_composite(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidOption, match="sparsity is for composites"):
        load_backend(checkpoint("gemma3"), sparsity=0.5)


def test_checkpoints_that_cannot_answer_are_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(IncompatibleModel, match="is a clip checkpoint, which does not answer"):
        load_backend(makers.save_clip(tmp_path / "clip"))
    with pytest.raises(IncompatibleModel, match="has no chat template: choose the instruction"):
        load_backend(makers.save_backbone("llama", tmp_path / "base"))
    with pytest.raises(ModelNotFound, match="no model at 'none'"):
        load_backend(tmp_path / "none")


def test_a_damaged_or_incomplete_checkpoint_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    for name in ("torn", "short"):
        shutil.copytree(checkpoint("gemma3"), tmp_path / name)
    torn = tmp_path / "torn" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:2000])
    with pytest.raises(IncompatibleModel, match=r"'torn' cannot be loaded .* download it again"):
        load_backend(tmp_path / "torn")
    short = tmp_path / "short" / "model.safetensors"
    weights = load_file(short)
    save_file(dict(sorted(weights.items())[:-2]), short, {"format": "pt"})
    with pytest.raises(IncompatibleModel, match="'short' lacks 2 weights, model"):
        load_backend(tmp_path / "short")


def test_an_estimate_opens_no_pixels(
    native: Callable[[str], NativeBackend], volume: Volume, picture: Pictures.Image
) -> None:
    backend = native("qwen2_5_vl")
    told = backend.estimate([user(Study(volume), Image(picture), "What is it?")], SHORT)
    assert [size.modality for size in told.media] == ["dicom", "image"]
    assert told.new_tokens == 6
    assert told.prompt_tokens > 256
    words = [user("Is there a nodule?")]
    exact = backend.prompter.write(words).tensors["input_ids"].shape[1]
    assert backend.estimate(words, SHORT).prompt_tokens == exact
    with pytest.raises(ContextOverflow, match="shorten the text"):
        backend.estimate([user("word " * 9000)], SHORT)
