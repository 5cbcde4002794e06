"""Tiny random checkpoints of the real multimodal classes, saved as on the Hub, to be loaded again.

Each family's chat template is written from its documentation, named beside it. One tokenizer
(byte-level BPE, so that every text comes back) with the family's own special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from multimodal import prompts

SEEING = ("gemma3", "gemma4_unified", "qwen2_5_vl", "qwen2_5_omni", "llava_onevision",
          "phi4_multimodal", "deepseek_vl")  # fmt: skip
HEARING = ("gemma4_unified", "qwen2_5_omni", "phi4_multimodal", "voxtral")
WATCHING = ("gemma4_unified", "qwen2_5_vl", "qwen2_5_omni", "llava_onevision")
EVERY = (*SEEING, "voxtral", "deepseek_llm")
# weights so large that attention is not flat: a wrong position or mask must change the answer
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 16384, "initializer_range": 0.3,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8, "vision_use_head": False,
}  # fmt: skip


@cache
def _core() -> str:
    """A byte-level BPE of a few hundred merges, as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [prompts.FORMS, prompts.CHECK_SENTENCE, prompts.FIND_OMISSION, prompts.LIST_FINDINGS]
    core.train_from_iterator([*words, "SLICE 1 user assistant model system"] * 4, trainer)
    return core.to_str()


def tokenizer(special: Sequence[str], template: str | None = None, **named: str) -> Any:
    """A tokenizer with these special tokens; `named` gives roles to some (`image_token=…`)."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    usual = {k: named.pop(k) for k in ("bos_token", "eos_token", "pad_token") if k in named}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core()), extra_special_tokens=named, **usual
    )
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = template
    return made


def ids_of(made: Any, **tokens: str) -> dict[str, int]:
    return {name: made.convert_tokens_to_ids(token) for name, token in tokens.items()}


# Google's chat_template of gemma-3-4b-it and medgemma-1.5-4b-it: the system's words go before the
# first user's, texts are trimmed (ai.google.dev/gemma/docs/core/prompt-structure)
GEMMA3 = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
    "{{ first if loop.first else '' }}"
    "{%- for part in turn['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}"
    "{%- endfor -%}{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def save_gemma3(folder: Path) -> Path:
    """MedGemma's class, with 4 tokens a picture of 32 pixels."""
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    made = tokenizer(
        ["<start_of_turn>", "<end_of_turn>"], GEMMA3,
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", image_token="<image_soft_token>",
        boi_token="<start_of_image>", eoi_token="<end_of_image>",
    )  # fmt: skip
    ids = ids_of(made, image_token_index="<image_soft_token>", boi_token_index="<start_of_image>",
                 eoi_token_index="<end_of_image>")  # fmt: skip
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(made), "head_dim": 8, "sliding_window": 64,
            "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4, **ids)
    model = Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [
        made.eos_token_id, made.convert_tokens_to_ids("<end_of_turn>")
    ]  # fmt: skip
    model.save_pretrained(folder)
    pictures = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = Gemma3Processor(pictures, made, chat_template=GEMMA3, image_seq_length=4)
    processor.save_pretrained(folder)
    return folder


# Qwen/Qwen2.5-VL-7B-Instruct, chat_template.json (README "Add ids for multiple images": without)
QWEN_VL = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


QWEN_SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
_QWEN_VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14,
    "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 56,
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def save_qwen2_5_vl(folder: Path) -> Path:
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    made = tokenizer(QWEN_SPECIAL, QWEN_VL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = ids_of(made, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
                 vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")  # fmt: skip
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(made), "rope_parameters": MROPE,
            "bos_token_id": None, "eos_token_id": made.eos_token_id}  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=_QWEN_VISION, **ids)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = made.eos_token_id
    model.generation_config.repetition_penalty = 1.05  # as on the Hub: options must win over it
    model.save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 84}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size), made, Qwen2VLVideoProcessor(size=size), QWEN_VL
    )
    processor.save_pretrained(folder)
    return folder


# Qwen/Qwen2.5-Omni-7B, chat_template.json: as Qwen2.5-VL's, sound between <|audio_bos|> and _eos
def save_qwen2_5_omni(folder: Path) -> Path:
    """The thinker's weights under their names in the whole checkpoint; the talker's are left out."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        Qwen2_5OmniConfig,
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    named = {
        "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    }  # fmt: skip
    template = QWEN_VL.replace("<|vision_start|><|image_pad|><|vision_end|>",
                               "<|vision_bos|><|IMAGE|><|vision_eos|>")  # fmt: skip
    template = template.replace("<|vision_start|><|video_pad|><|vision_end|>",
                                "<|vision_bos|><|VIDEO|><|vision_eos|>")  # fmt: skip
    made = tokenizer(["<|im_start|>"], template, eos_token="<|im_end|>",
                     pad_token="<|endoftext|>", **named)  # fmt: skip
    ids = ids_of(
        made, image_token_index="<|IMAGE|>", audio_token_index="<|AUDIO|>",
        video_token_index="<|VIDEO|>", vision_start_token_id="<|vision_bos|>",
        vision_end_token_id="<|vision_eos|>", audio_start_token_id="<|audio_bos|>",
        audio_end_token_id="<|audio_eos|>",
    )  # fmt: skip
    torch.manual_seed(0)
    audio = {"num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 2,
             "encoder_ffn_dim": 32, "d_model": 16, "output_dim": 32}  # fmt: skip
    text = {**TEXT, "vocab_size": len(made), "rope_parameters": MROPE,
            "eos_token_id": made.eos_token_id}  # fmt: skip
    thinker = {"text_config": text, "vision_config": _QWEN_VISION, "audio_config": audio, **ids}
    config = Qwen2_5OmniConfig(thinker_config=thinker)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config)
    model.generation_config.eos_token_id = made.eos_token_id
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    whole = {f"thinker.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(whole, weights, {"format": "pt"})
    config.save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 84}
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(size=size), Qwen2VLVideoProcessor(size=size),
        WhisperFeatureExtractor(feature_size=128), made, template,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


# convert_llava_onevision_weights_to_hf.py of transformers: pictures first, then videos, then texts
LLAVA_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_llava_onevision(folder: Path) -> Path:
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    made = tokenizer(["<|im_start|>", "<image>", "<video>"], LLAVA_ONEVISION,
                     eos_token="<|im_end|>", pad_token="<|endoftext|>")  # fmt: skip
    ids = ids_of(made, image_token_index="<image>", video_token_index="<video>")
    torch.manual_seed(0)
    text = {**TEXT, "model_type": "qwen2", "vocab_size": len(made)}
    grid = [[32, 32], [32, 64], [64, 32]]
    config = LlavaOnevisionConfig(
        text_config=text, vision_config={**SIGLIP, "model_type": "siglip_vision_model"},
        image_grid_pinpoints=grid, **ids,
    )  # fmt: skip
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = made.eos_token_id
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid), made,
        LlavaOnevisionVideoProcessor(size=size), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=LLAVA_ONEVISION,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


# deepseek-ai/DeepSeek-VL, deepseek_vl/utils/conversation.py, template "deepseek"
DEEPSEEK_VL = (
    "{{ bos_token }}You are a helpful language and vision assistant. You are able to understand"
    " the visual content that the user provides, and assist the user with a variety of tasks"
    " using natural language.\n\n"
    "{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_placeholder>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def save_deepseek_vl(folder: Path) -> Path:
    import torch
    from transformers import (
        DeepseekVLConfig,
        DeepseekVLForConditionalGeneration,
        DeepseekVLImageProcessor,
        DeepseekVLProcessor,
    )

    made = tokenizer([], DEEPSEEK_VL, bos_token="<|begin_of_sentence|>",
                     eos_token="<|end_of_sentence|>", pad_token="<|pad|>",
                     image_token="<image_placeholder>")  # fmt: skip
    torch.manual_seed(0)
    text = {**TEXT, "model_type": "llama", "vocab_size": len(made)}
    config = DeepseekVLConfig(
        text_config=text, vision_config={**SIGLIP, "model_type": "siglip_vision_model"},
        **ids_of(made, image_token_id="<image_placeholder>"),
    )  # fmt: skip
    model = DeepseekVLForConditionalGeneration(config)
    model.generation_config.eos_token_id = made.eos_token_id
    model.save_pretrained(folder)
    pictures = DeepseekVLImageProcessor(size={"height": 32, "width": 32}, min_size=8)
    processor = DeepseekVLProcessor(pictures, made, DEEPSEEK_VL, num_image_tokens=16)
    processor.save_pretrained(folder)
    return folder


# microsoft/Phi-4-multimodal-instruct, README "Input formats"; contents are strings, with the
# pictures' and recordings' tokens in them
PHI4 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save_phi4_multimodal(folder: Path) -> Path:
    """Its processor counts tokens of pictures of 448 pixels, so the tower's size is the real one."""
    import torch
    from transformers import (
        Phi4MultimodalConfig,
        Phi4MultimodalFeatureExtractor,
        Phi4MultimodalForCausalLM,
        Phi4MultimodalImageProcessor,
        Phi4MultimodalProcessor,
    )

    made = tokenizer(["<|user|>", "<|assistant|>", "<|system|>"], PHI4, eos_token="<|end|>",
                     pad_token="<|endoftext|>", bos_token="<|endoftext|>",
                     image_token="<|image|>", audio_token="<|audio|>")  # fmt: skip
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 448, "crop_size": 448, "patch_size": 14,
              **ids_of(made, image_token_id="<|image|>")}  # fmt: skip
    audio = {"hidden_size": 16, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
             "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16,
             "nemo_conv_channels": 8, "kernel_size": 3, "bias_max_distance": 20,
             **ids_of(made, audio_token_id="<|audio|>")}  # fmt: skip
    config = Phi4MultimodalConfig(
        **{**TEXT, "max_position_embeddings": 4096}, vocab_size=len(made), original_max_position_embeddings=4096,
        vision_config=vision, audio_config=audio, pad_token_id=made.pad_token_id,
        bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id,
    )  # fmt: skip
    model = Phi4MultimodalForCausalLM(config)
    model.generation_config.eos_token_id = made.eos_token_id
    model.save_pretrained(folder)
    pictures = Phi4MultimodalImageProcessor(dynamic_hd=1)
    processor = Phi4MultimodalProcessor(pictures, Phi4MultimodalFeatureExtractor(), made)
    processor.save_pretrained(folder)
    return folder


# google/gemma-4-12B-it, chat_template.jinja: <|turn>role … <turn|>, pictures on lines of their own
GEMMA4 = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] | trim }}"
    "{%- elif part['type'] == 'image' -%}{{ '\n\n<|image|>\n\n' }}"
    "{%- elif part['type'] == 'audio' -%}{{ '<|audio|>' }}"
    "{%- elif part['type'] == 'video' -%}{{ '\n\n<|video|>\n\n' }}{%- endif -%}"
    "{%- endfor -%}{{ '<turn|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}{%- endif -%}"
)


def gemma4_tokenizer() -> tuple[Any, dict[str, int]]:
    """Gemma 4's tokenizer, and the ids of its special tokens as its configurations name them."""
    named = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    made = tokenizer(["<|turn>", "<turn|>", "<|video|>"], GEMMA4, bos_token="<bos>",
                     eos_token="<eos>", pad_token="<pad>", **named)  # fmt: skip
    ids = ids_of(
        made, image_token_id="<|image|>", boi_token_id="<|image>", eoi_token_id="<image|>",
        video_token_id="<|video|>", audio_token_id="<|audio|>", boa_token_id="<|audio>",
        eoa_token_index="<audio|>",
    )  # fmt: skip
    return made, ids


def save_gemma4_unified(folder: Path) -> Path:
    """The newest Gemma of transformers 5.23: pictures, sound and video without towers."""
    import torch
    from transformers import (
        Gemma4UnifiedAudioFeatureExtractor,
        Gemma4UnifiedConfig,
        Gemma4UnifiedForConditionalGeneration,
        Gemma4UnifiedImageProcessor,
        Gemma4UnifiedProcessor,
        Gemma4UnifiedVideoProcessor,
    )

    made, ids = gemma4_tokenizer()
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(made), "head_dim": 8, "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    vision = {"mm_embed_dim": 32, "output_proj_dims": 32, "mm_posemb_size": 64}
    config = Gemma4UnifiedConfig(text_config=text, vision_config=vision, audio_config={}, **ids)
    model = Gemma4UnifiedForConditionalGeneration(config)
    model.generation_config.eos_token_id = list(ids_of(made, eos="<eos>", turn="<turn|>").values())
    model.save_pretrained(folder)
    processor = Gemma4UnifiedProcessor(
        Gemma4UnifiedAudioFeatureExtractor(), Gemma4UnifiedImageProcessor(max_soft_tokens=70), made,
        Gemma4UnifiedVideoProcessor(max_soft_tokens=70), chat_template=GEMMA4,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


# mistral_common v7: control tokens of Voxtral by their ids; 24 is a piece of sound
_TEKKEN = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 11: "<pad>",
    17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]",
    34: "[TRANSCRIBE]",
}  # fmt: skip


def save_voxtral(folder: Path) -> Path:
    """With Mistral's own tokenizer file, `tekken.json`; 30 s of sound become 375 tokens as in 3B."""
    import base64
    import json

    import torch
    from transformers import (
        VoxtralConfig,
        VoxtralForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    special = [
        {"rank": i, "token_str": _TEKKEN.get(i, f"<SPECIAL_{i}>"), "is_control": True}
        for i in range(36)
    ]
    single = [bytes([value]) for value in range(256)]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(single)
    ]
    tekken = {
        "config": {"pattern": r"\\p{L}+|\\p{N}|[^\\p{L}\\p{N}]+", "version": "v7",
                   "num_vocab_tokens": 256, "default_vocab_size": 292,
                   "default_num_special_tokens": 36},
        "vocab": vocab, "special_tokens": special,
    }  # fmt: skip
    torch.manual_seed(0)
    audio = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    text = {**TEXT, "vocab_size": 292, "head_dim": 8, "rope_theta": 10000.0}
    config = VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=24)
    model = VoxtralForConditionalGeneration(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    (folder / "tekken.json").write_text(json.dumps(tekken))
    return folder


# deepseek-ai/deepseek-llm-7b-chat, tokenizer_config.json: words alone
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def save_deepseek_llm(folder: Path) -> Path:
    """A Llama that only reads, as DeepSeek's chat models are."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    made = tokenizer([], DEEPSEEK, bos_token="<|begin_of_sentence|>",
                     eos_token="<|end_of_sentence|>", pad_token="<|pad|>")  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(**TEXT, vocab_size=len(made), eos_token_id=made.eos_token_id,
                         bos_token_id=made.bos_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
