"""The demo checkpoint's parts put together, untrained: sizes, tokenizer, towers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from multimodal import prompts
from multimodal.configuration import MultimodalConfig
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.processing import CHAT_TEMPLATE, SPECIAL_TOKENS, MultimodalProcessor, senses_of
from multimodal.sparse import SparsityConfig
from multimodal.training import audio_pretraining, vision_pretraining
from multimodal.training.world.dialogues import TASKS, ask
from multimodal.training.world.phantom import FINDINGS, random_phantom

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VOCAB_SIZE = 768


def build_tokenizer(num_studies: int = 400) -> Any:
    """A byte-level BPE tokenizer of the generated world's words; digits stay single."""
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
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", *ROLES, *SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(num_studies), trainer)
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


def _texts(num_studies: int) -> Iterator[str]:
    for seed in range(num_studies):
        rng = np.random.default_rng((3, seed))
        truth = random_phantom(rng).truth
        for task in TASKS:
            dialogue = ask(task, truth, rng)
            if dialogue is not None:
                yield f"{dialogue.question}\n{dialogue.answer}"
        yield prompts.TRANSCRIBE


def build_demo() -> tuple[MultimodalForConditionalGeneration, MultimodalProcessor]:
    """The demo composite with weights drawn at random."""
    from transformers import LlamaConfig

    from encoders.audio import tower_from_config

    tokenizer = build_tokenizer()
    convert = tokenizer.convert_tokens_to_ids
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=192, intermediate_size=576, num_hidden_layers=5,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = MultimodalConfig(
        text_config=text.to_dict(),
        vision_config=vision_pretraining.TOWER,
        audio_config=tower_from_config(audio_pretraining.TOWER).to_dict(),
        image_token_id=convert("<image>"),
        region_token_id=convert("<region>"),
        audio_token_id=convert("<audio>"),
        vision_factor=4,
        findings=list(FINDINGS),
        sparsity=SparsityConfig().to_dict(),
        tie_word_embeddings=True,
    )
    model = MultimodalForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, MultimodalProcessor(tokenizer, senses_of(config))
