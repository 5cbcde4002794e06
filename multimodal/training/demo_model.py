"""The demo checkpoint's parts put together, untrained: sizes, tokenizer, towers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from multimodal import prompts
from multimodal.configuration import MultimodalConfig
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.processing import CHAT_TEMPLATE, SPECIAL_TOKENS, MultimodalProcessor, senses_of
from multimodal.sparse import SparsityConfig
from multimodal.training.corpus import Frame
from multimodal.training.world.dialogues import TASKS, ask
from multimodal.training.world.wording import NAMES_ZH, SIDES
from multimodal.training.world.worlds import World


@dataclass(frozen=True)
class Size:
    """Widths and depths of the three networks, and the pictures they see.

    `factor` squared patches make a token; `stem` lists levels of (width, residual blocks), `fine`
    the channels beside it that look at every two pixels; `neighbours` is the width of what patches
    learn from those around them; `beside`: whether a picture brings those before and after it.
    """

    tower_width: int
    vision_layers: int
    audio_layers: int
    hidden: int
    layers: int
    frame: Frame
    factor: int
    stem: tuple[tuple[int, int], ...]
    fine: int = 0
    neighbours: int = 128
    beside: bool = True


_STEM = ((64, 2), (64, 2), (128, 1))
_LONG = ((32, 0), (64, 2), (128, 1), (192, 1))
SIZES = {
    "small": Size(192, 2, 4, 256, 5, Frame("crossread-ct-fine", 12), 4, _STEM, fine=16),
    "medium": Size(256, 4, 6, 384, 8, Frame("crossread-ct-fine", 12), 4, _STEM, fine=16),
    "base": Size(
        256, 5, 6, 384, 8, Frame("crossread-ct-large", 14), 7, _LONG, neighbours=48
    ),  # 60 MB
}
HEAD_WIDTH = 64  # attention of 32 takes twice as long, on a CPU as on a GPU
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VOCAB_SIZES = {"phantom": 768, "body": 2048}


def build_tokenizer(world: World, num_studies: int = 400) -> Any:
    """A byte-level BPE tokenizer of a world's words; digits stay single."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZES[world.name],
        special_tokens=["<pad>", *ROLES, *SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(world, num_studies), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=[*ROLES[:3], *SPECIAL_TOKENS],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _texts(world: World, num_studies: int) -> Iterator[str]:
    for seed in range(num_studies):
        rng = np.random.default_rng((3, seed))
        truth, vocabulary = world.truth(rng)
        for task in TASKS:
            dialogue = ask(task, truth, rng, vocabulary)
            if dialogue is not None:
                yield f"{dialogue.question}\n{dialogue.answer}"
        yield prompts.TRANSCRIBE


def vision_config(size: Size) -> dict[str, Any]:
    """An open_clip ViT on the pictures of the size's frame."""
    from encoders.vision import Preprocess, open_clip_config

    pixels = size.frame.size
    arch = {
        "layers": size.vision_layers, "width": size.tower_width, "head_width": HEAD_WIDTH,
        "mlp_ratio": 3.0, "patch_size": pixels // size.frame.grid, "image_size": pixels,
    }  # fmt: skip
    half = (0.5, 0.5, 0.5)
    prepare = Preprocess(pixels, half, half, beside=size.beside)
    return open_clip_config(arch, size.tower_width, prepare, stem=size.stem, fine=size.fine)


def audio_config(size: Size) -> dict[str, Any]:
    """A Whisper-style encoder of ten seconds."""
    from encoders.audio import tower_from_config

    arch = {
        "d_model": size.tower_width, "encoder_layers": size.audio_layers,
        "encoder_attention_heads": size.tower_width // HEAD_WIDTH,
        "encoder_ffn_dim": 3 * size.tower_width, "num_mel_bins": 80,
        "max_source_positions": 500, "dropout": 0.0,
    }  # fmt: skip
    return tower_from_config({"arch": arch, "variable_length": True}).to_dict()


def build_demo(
    world: World, size: str = "small"
) -> tuple[MultimodalForConditionalGeneration, MultimodalProcessor]:
    """The demo composite with weights drawn at random."""
    from transformers import LlamaConfig

    sizes = SIZES[size]
    tokenizer = build_tokenizer(world)
    convert = tokenizer.convert_tokens_to_ids
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.hidden // HEAD_WIDTH, num_key_value_heads=sizes.hidden // HEAD_WIDTH // 2, max_position_embeddings=2048,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = MultimodalConfig(
        text_config=text.to_dict(),
        vision_config=vision_config(sizes),
        audio_config=audio_config(sizes),
        image_token_id=convert("<image>"),
        region_token_id=convert("<region>"),
        audio_token_id=convert("<audio>"),
        vision_factor=sizes.factor,
        view_profile=sizes.frame.profile,
        view_size=sizes.frame.size,
        findings=list(world.findings),
        neighbours=sizes.neighbours,
        sparsity=SparsityConfig().to_dict(),
        tie_word_embeddings=True,
    )
    model = MultimodalForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    begin_head(model)
    begin_regions(model, tokenizer)
    return model, MultimodalProcessor(tokenizer, senses_of(config))


@torch.no_grad()
def begin_head(model: MultimodalForConditionalGeneration) -> None:
    """Start from seeing nothing anywhere: few patches show anything. A study shows what they do."""
    model.finding_head.linear.bias[: len(model.config.findings)] = -3.0
    nn.init.normal_(model.region_head.name.weight, 0.0, 0.1)
    for last in (model.neighbours.out, model.region_head.out):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


@torch.no_grad()
def begin_regions(model: MultimodalForConditionalGeneration, tokenizer: Any) -> None:
    """Start region tokens from the words that ask for them and from how sure the head is.

    Drawn at random, thirty-two names stay strangers to their words for thousands of steps, and the
    head's three figures are lost among 250 others.
    """
    embeddings: Any = model.get_input_embeddings()
    words = embeddings.weight
    projector: Any = model.region_projector
    projector.mlp[1].weight[:, -3:] *= 10.0
    for row, (name, side) in zip(projector.name.weight, model.config.regions, strict=True):
        english = f" {side} {name}" if side else f" {name}"
        chinese = f"{SIDES['zh'][side]}侧{NAMES_ZH[name]}" if side else NAMES_ZH[name]
        row.zero_()
        for text in (english, chinese):  # of many short words or of one long one: alike
            said = words[tokenizer.encode(text, add_special_tokens=False)].sum(0)
            row.add_(said / said.norm())
    projector.name.weight.mul_(words.norm(dim=1).mean())
