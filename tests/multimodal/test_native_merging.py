"""How a native checkpoint is taken apart for the engine: exact where it can be, refused where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image as Pictures

from encoders.errors import IncompatibleModel
from multimodal.backends import load_backend
from multimodal.engine.runner import why_not_packed
from multimodal.messages import Image, user
from multimodal.native import NativeBackend
from multimodal.native_engine import EngineLoop
from multimodal.native_families import family_of
from multimodal.native_loading import load_native
from multimodal.native_merging import Merger, merger_of
from multimodal.native_prompt import Prompt, Prompter
from tests.multimodal.native_zoo import SIGLIP, TEXT

IMAGE_ID, NUM_IMAGE = 99, 16
SEEN = {**SIGLIP, "model_type": "siglip_vision_model"}
TILED = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2}  # fmt: skip
WHOLE = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
# class, text decoder, the configuration's own words
FAMILIES = {
    "Llava": ({"model_type": "llama"}, {"vision_config": SEEN, **WHOLE}),
    "Mistral3": (
        {"model_type": "mistral", "sliding_window": None, "head_dim": 8},
        {"vision_config": {**TILED, "model_type": "pixtral", "image_size": 32, "patch_size": 4}},
    ),
    "InternVL": (
        {"model_type": "qwen2"},
        {"vision_config": {**TILED, "image_size": [32, 32], "patch_size": [4, 4]}},
    ),
    "Idefics3": ({"model_type": "llama"}, {"vision_config": SIGLIP, "scale_factor": 1}),
    "PaliGemma": (
        {"model_type": "gemma", "head_dim": 8}, {"vision_config": SEEN, "projection_dim": 32},
    ),
}  # fmt: skip


def made(family: str, **text: Any) -> tuple[Any, Prompt]:
    """A family's model of random weights and a prompt with one picture for it."""
    decoder, config = FAMILIES[family]
    torch.manual_seed(0)
    words = {**TEXT, "vocab_size": 100, **decoder, **text}
    both = {"image_token_id": IMAGE_ID, "image_token_index": IMAGE_ID}
    settings = getattr(transformers, f"{family}Config")(text_config=words, **config, **both)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(settings).eval()
    ids = torch.tensor([[1, 5, *[IMAGE_ID] * NUM_IMAGE, 7, 8]])
    pixels = torch.randn(1, 3, 32, 32)
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
               "pixel_values": pixels[None] if family == "Idefics3" else pixels}  # fmt: skip
    if family == "Mistral3":
        tensors["image_sizes"] = torch.tensor([[32, 32]])
    if family == "PaliGemma":
        tensors["token_type_ids"] = torch.zeros_like(ids)
    return model, Prompt("", tensors, (), ids[0] == IMAGE_ID, "a", ("image",))


@pytest.mark.parametrize("family", ["Llava", "Mistral3", "InternVL", "Idefics3"])
def test_the_decoder_alone_answers_as_the_whole_checkpoint(family: str) -> None:
    """By other classes than those with a processor in the zoo; to the last bit."""
    model, prompt = made(family)
    merger = merger_of(model, [prompt])
    with torch.inference_mode():
        wanted = model(**prompt.tensors).logits
        found = merger.words(inputs_embeds=merger.embed(prompt).embeds[None]).logits
    assert torch.equal(found, wanted)


def test_a_decoder_that_answers_otherwise_alone_is_refused() -> None:
    """LLaVA's class leaves out the scaling that Granite's own gives its logits."""
    model, prompt = made("Llava", model_type="granite", logits_scaling=4.0)
    with pytest.raises(IncompatibleModel, match="changes what its decoder answers"):
        merger_of(model, [prompt])


def test_a_model_whose_pictures_see_what_follows_is_refused() -> None:
    """PaliGemma attends to its whole prompt both ways, and counts positions from one."""
    model, prompt = made("PaliGemma")
    assert why_not_packed(model.get_decoder()) == ""
    with pytest.raises(IncompatibleModel, match="turns positions in a way of its own"):
        merger_of(model, [prompt])


def parts_of(folder: Path) -> tuple[Any, Prompter]:
    model, processor = load_native(folder)
    return model, Prompter(processor, family_of(model.config.model_type), folder.name, 4096)


def two_prompts(folder: Path, picture: Pictures.Image) -> tuple[Merger, list[Prompt]]:
    """The same words about two pictures."""
    model, prompter = parts_of(folder)
    asked = [[user(Image(picture.rotate(90 * n)), "?")] for n in range(2)]
    return merger_of(model, [prompter.sample("image")]), [prompter.write(t) for t in asked]


def test_media_are_kept_within_their_budget(
    checkpoint: Callable[[str], Path], picture: Pictures.Image
) -> None:
    whole, prompts = two_prompts(checkpoint("deepseek_vl"), picture)
    num_bytes = whole.embed(prompts[0]).embeds[prompts[0].media_tokens].nbytes
    merger = Merger(whole.model, whole.words, budget_bytes=num_bytes)
    spent = [merger.embed(prompts[n]).num_encoded for n in (0, 0, 1, 0)]
    assert spent == [1, 0, 1, 1]


def test_different_media_never_share_keys_and_values(
    checkpoint: Callable[[str], Path], picture: Pictures.Image
) -> None:
    """What stands at a media position has a number of its own, another tenant's a different one."""
    merger, prompts = two_prompts(checkpoint("deepseek_vl"), picture)
    media = prompts[0].media_tokens.numpy()
    contents = [merger.embed(prompts[n], tenant).content[media].tolist()
                for n, tenant in ((0, "a"), (1, "a"), (0, "b"), (0, "a"))]  # fmt: skip
    numbers = [set(content) for content in contents]
    assert contents[0] == contents[3]
    assert not numbers[0] & numbers[1]
    assert not numbers[0] & numbers[2]
    assert max(max(content) for content in contents) < 0  # no token's id


def _changed_words(model: Any) -> None:
    table = model.model.language_model.embed_tokens
    model.model.get_input_embeddings = lambda: lambda ids: 2 * table(ids)


def _bidirectional(model: Any) -> None:
    decoder = model.model.language_model

    def more(module: Any, args: Any, given: dict[str, Any]) -> Any:
        length = given["inputs_embeds"].shape[1]
        return args, {**given, "attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool)}

    decoder.register_forward_pre_hook(more, with_kwargs=True)


def _deep(model: Any) -> None:
    def more(module: Any, args: Any, given: dict[str, Any]) -> Any:
        return args, {**given, "deepstack_visual_embeds": [torch.zeros(1)]}

    model.model.language_model.register_forward_pre_hook(more, with_kwargs=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [(_changed_words, "changes the embeddings of words"),
     (_bidirectional, "hands its decoder attention_mask beside embeddings"),
     (_deep, "hands its decoder deepstack_visual_embeds beside embeddings")],
)  # fmt: skip
def test_a_model_that_does_more_than_a_decoder_is_found_out(
    checkpoint: Callable[[str], Path], change: Callable[[Any], None], why: str
) -> None:
    model, prompter = parts_of(checkpoint("llava_onevision"))
    assert merger_of(model, [prompter.sample("image")])
    change(model)
    with pytest.raises(IncompatibleModel, match=why):
        merger_of(model, [prompter.sample("image")])


def test_the_weights_are_shared_and_the_checkpoint_stays_as_it_was(
    checkpoint: Callable[[str], Path],
) -> None:
    backend = load_backend(checkpoint("voxtral"))
    assert isinstance(backend, NativeBackend)
    assert isinstance(backend.loop, EngineLoop)
    merger = backend.loop._merger
    own = {weight.data_ptr() for weight in backend.model.parameters()}
    assert {weight.data_ptr() for weight in merger.words.parameters()} <= own
    assert backend.model.config.get_text_config()._attn_implementation == "sdpa"
    assert not backend.model.get_decoder()._forward_pre_hooks
    backend.close()
