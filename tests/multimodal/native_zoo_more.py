"""More tiny checkpoints of real classes: relatives of `native_zoo`'s families, loaded the same way."""

from __future__ import annotations

from pathlib import Path

from tests.multimodal.native_zoo import (
    DEEPSEEK_VL,
    GEMMA4,
    MROPE,
    QWEN_SPECIAL,
    QWEN_VL,
    SIGLIP,
    TEXT,
    gemma4_tokenizer,
    ids_of,
    tokenizer,
)

RELATED = ("gemma4", "qwen3_vl", "deepseek_vl_hybrid")


def save_gemma4(folder: Path) -> Path:
    """Gemma 4 with towers, as google/gemma-4-E2B-it."""
    import torch
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    made, ids = gemma4_tokenizer()
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(made), "head_dim": 8, "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": len(made), "hidden_size_per_layer_input": 8}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
              "position_embedding_size": 64}  # fmt: skip
    audio = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "subsampling_conv_channels": [128, 4], "output_proj_dims": 16}  # fmt: skip
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=audio, **ids)
    model = Gemma4ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [
        made.eos_token_id, made.convert_tokens_to_ids("<turn|>")
    ]  # fmt: skip
    model.save_pretrained(folder)
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(), Gemma4ImageProcessor(max_soft_tokens=70), made,
        Gemma4VideoProcessor(max_soft_tokens=70), chat_template=GEMMA4,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


def save_qwen3_vl(folder: Path) -> Path:
    import torch
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    made = tokenizer(QWEN_SPECIAL, QWEN_VL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = ids_of(made, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
                 vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")  # fmt: skip
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(made), "head_dim": 8, "rope_parameters": MROPE,
            "eos_token_id": made.eos_token_id}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
              "out_hidden_size": 32, "deepstack_visual_indexes": [0],
              "num_position_embeddings": 64}  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = made.eos_token_id
    model.save_pretrained(folder)
    size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 96}
    pictures = Qwen2VLImageProcessor(size=size, patch_size=16)
    films = Qwen3VLVideoProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 64 * 64 * 8})
    Qwen3VLProcessor(pictures, made, films, QWEN_VL).save_pretrained(folder)
    return folder


def save_deepseek_vl_hybrid(folder: Path) -> Path:
    """DeepSeek-VL 7B: the same prompt, a second tower of high resolution."""
    import torch
    from transformers import (
        DeepseekVLHybridConfig,
        DeepseekVLHybridForConditionalGeneration,
        DeepseekVLHybridImageProcessor,
        DeepseekVLHybridProcessor,
    )

    made = tokenizer([], DEEPSEEK_VL, bos_token="<|begin_of_sentence|>",
                     eos_token="<|end_of_sentence|>", pad_token="<|pad|>",
                     image_token="<image_placeholder>")  # fmt: skip
    torch.manual_seed(0)
    sam = {"model_type": "sam_vision_model", "hidden_size": 16, "output_channels": 8,
           "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
           "mlp_dim": 32, "window_size": 4, "global_attn_indexes": [0]}  # fmt: skip
    config = DeepseekVLHybridConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(made)},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model"}, high_res_vision_config=sam,
        **ids_of(made, image_token_id="<image_placeholder>"),
    )  # fmt: skip
    model = DeepseekVLHybridForConditionalGeneration(config)
    model.generation_config.eos_token_id = made.eos_token_id
    model.save_pretrained(folder)
    pictures = DeepseekVLHybridImageProcessor(
        size={"height": 32, "width": 32}, high_res_size={"height": 64, "width": 64}, min_size=8
    )
    processor = DeepseekVLHybridProcessor(pictures, made, DEEPSEEK_VL, num_image_tokens=16)
    processor.save_pretrained(folder)
    return folder
