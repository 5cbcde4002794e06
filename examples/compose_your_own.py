"""A model of your own parts, saved, loaded and asked: python examples/compose_your_own.py FOLDER

With the network this is `compose("open_clip:ViT-B-16/laion2b_s34b_b88k", "openai/whisper-small",
"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")`; here every part is tiny, random and made on the spot.
Parts keep what they know, the joints start random: align them before use.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from multimodal import compose
from multimodal.sparse import SparsityConfig
from pipelines import pipeline


def make_parts(folder: Path) -> tuple[str, str, Path]:
    """A CLIP, a Whisper and a Qwen2 in the Hub's format, each of a few thousand weights."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    shape = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    clip = hf.CLIPVisionConfig(**shape, image_size=32, patch_size=8)
    hf.CLIPVisionModel(clip).save_pretrained(folder / "clip")
    pixels = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    hf.CLIPImageProcessor(**pixels).save_pretrained(folder / "clip")

    ends = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    whisper = hf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, max_source_positions=200, vocab_size=64,
        decoder_start_token_id=2, **ends,
    )  # fmt: skip
    hf.WhisperModel(whisper).save_pretrained(folder / "whisper")

    words = "<unk> <pad> </s> what does this study show ? a nodule < | >".split()  # noqa: SIM905
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=core, **tokens).save_pretrained(folder / "qwen")
    qwen = hf.Qwen2Config(
        **shape, num_key_value_heads=2, vocab_size=64, max_position_embeddings=2048, **ends
    )
    hf.Qwen2ForCausalLM(qwen).save_pretrained(folder / "qwen")
    return str(folder / "clip"), str(folder / "whisper"), folder / "qwen"


def main(folder: Path) -> None:
    """Compose, save, load by the pipeline at another sparsity, and ask."""
    torch.manual_seed(0)
    vision, audio, backbone = make_parts(folder)
    model, processor = compose(
        vision, audio, backbone, sparsity=SparsityConfig("topk", sparsity=0.5)
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} weights")

    model.save_pretrained(folder / "mine")
    processor.save_pretrained(folder / "mine")
    talk = pipeline("chat", folder / "mine", sparsity=0.7)
    print("answer:", talk("what does this study show ?").text or "(nothing, as expected of chance)")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "out/composed"))
