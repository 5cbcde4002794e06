"""A multimodal checkpoint as the engine runs it: its decoder alone, its prompts as embeddings.

The checkpoint's own code encodes the media and puts them into the prompt; it is stopped at the door
of its decoder, and what it hands over there is the prompt. Knows no message.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from encoders.errors import IncompatibleModel
from multimodal.encoding import CACHE_BYTES
from multimodal.engine.runner import why_not_packed
from multimodal.native_prompt import Prompt

# what a decoder is handed beside embeddings that the engine has for itself
_USUAL = ("inputs_embeds", "position_ids", "attention_mask", "past_key_values", "cache_position")


@dataclass(frozen=True)
class Embedded:
    """A prompt as embeddings `[length, hidden]`.

    Attributes:
        content: what stands at each position, as `engine.sequence.Sequence` wants it.
        num_encoded: media that were encoded for it, and not before.
    """

    embeds: torch.Tensor
    content: np.ndarray
    num_encoded: int = 0


@dataclass(frozen=True)
class _Media:
    """Embeddings of all media tokens of a prompt; the first has the number `first`."""

    rows: torch.Tensor
    first: int


class _Reached(Exception):
    """The decoder was called; ends the model's own pass before it."""


class Merger:
    """Makes embeddings of prompts, from any thread; media are encoded once.

    Args:
        model: the checkpoint.
        words: the part of it that writes, a causal language model; the model itself if it only reads.
        budget_bytes: of embeddings that are kept; the longest unused go first.
    """

    def __init__(self, model: Any, words: Any, *, budget_bytes: int = CACHE_BYTES) -> None:
        self.model, self.words, self._budget = model, words, budget_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], _Media] = OrderedDict()
        self._numbers = itertools.count(-1, -1)

    def forget(self) -> None:
        """Let go of what is kept of media."""
        with self._lock:
            self._kept.clear()

    def close(self) -> None:
        """Let go of everything."""
        self.forget()

    @torch.inference_mode()
    def embed(self, prompt: Prompt, tenant: str = "") -> Embedded:
        """The prompt with its media; those that this tenant gave before are not encoded again."""
        ids = prompt.tensors["input_ids"][0]
        embeds = self.words.get_input_embeddings()(ids.to(self.model.device))
        content = ids.numpy().astype(np.int64)
        if not prompt.kinds:
            return Embedded(embeds, content)
        key = (tenant, prompt.media_key)
        with self._lock:
            known = key in self._kept
            if not known:
                self._keep(key, self.handed(prompt)["inputs_embeds"][0][prompt.media_tokens])
            self._kept.move_to_end(key)
            media = self._kept[key]
        embeds[prompt.media_tokens] = media.rows
        content[prompt.media_tokens.numpy()] = media.first - np.arange(len(media.rows))
        return Embedded(embeds, content, 0 if known else len(prompt.kinds))

    @torch.inference_mode()
    def handed(self, prompt: Prompt) -> dict[str, Any]:
        """What the model's `generate` hands to its decoder for a prompt."""
        found: dict[str, Any] = {}

        def reached(module: Any, args: Any, given: Mapping[str, Any]) -> None:
            found.update(given)
            raise _Reached

        decoder = self.model.get_decoder()
        with decoder.register_forward_pre_hook(reached, with_kwargs=True):
            try:
                tensors = moved(self.model, prompt.tensors)
                self.model.generate(**tensors, do_sample=False, max_new_tokens=1)
            except _Reached:
                return found
        raise IncompatibleModel(f"{type(self.model).__name__} never calls its decoder")

    def _keep(self, key: tuple[str, str], rows: torch.Tensor) -> None:
        first = next(self._numbers)
        for _ in range(len(rows) - 1):
            next(self._numbers)
        self._kept[key] = _Media(rows, first)
        held = sum(media.rows.nbytes for media in self._kept.values())
        while held > self._budget and len(self._kept) > 1:
            held -= self._kept.popitem(last=False)[1].rows.nbytes


def merger_of(model: Any, samples: Iterable[Prompt]) -> Merger:
    """A multimodal checkpoint's merger.

    Args:
        model: the checkpoint.
        samples: a prompt with each kind of media that it takes, to try it with.

    Raises:
        IncompatibleModel: its decoder needs more than embeddings in a row, saying what.
    """
    decoder, name = model.get_decoder(), type(model).__name__
    if reason := why_not_packed(decoder):
        raise IncompatibleModel(reason)
    if getattr(model, "peft_config", None):
        raise IncompatibleModel(f"{name} changes its weights with the medium (adapters)")
    merger = Merger(model, _words_of(model, decoder))
    for sample in samples:
        _check_handed(merger, sample, name)
        _check_words(merger, sample, name)
    return merger


def moved(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A processor's tensors on the model's device, floats in its dtype."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def _words_of(model: Any, decoder: Any) -> Any:
    """The part that writes, as transformers' causal language model, on the model's own weights."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config, name = decoder.config, type(model).__name__
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise IncompatibleModel(f"the decoder of {name} is no language model of its own")
    if decoder is model.base_model:
        raise IncompatibleModel(f"the decoder of {name} merges media into the prompt itself")
    with torch.device("meta"):
        words = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](copy.deepcopy(config))
    words.config = config
    setattr(words, words.base_model_prefix, decoder)
    words.set_output_embeddings(model.get_output_embeddings())
    if left := [key for key, weight in words.named_parameters() if weight.is_meta]:
        raise IncompatibleModel(f"{name} has no {left[0]}, which its decoder would need alone")
    return words.eval()


def _check_handed(merger: Merger, sample: Prompt, name: str) -> None:
    """Refuse a model that hands its decoder more than embeddings in a row."""
    given, ids = merger.handed(sample), sample.tensors["input_ids"][0]
    embeds, positions = given.get("inputs_embeds"), given.get("position_ids")
    if embeds is None:
        raise IncompatibleModel(f"the decoder of {name} merges media into the prompt itself")
    in_a_row = torch.arange(len(ids), device=embeds.device)[None]
    if positions is not None and not torch.equal(positions, in_a_row):
        raise IncompatibleModel(f"{name} turns positions in a way of its own")
    more = [key for key, value in given.items() if key not in _USUAL and _is_more(value)]
    if given.get("attention_mask") is not None:
        more.append("attention_mask")
    if more:
        raise IncompatibleModel(f"{name} hands its decoder {', '.join(more)} beside embeddings")
    looked_up = merger.words.get_input_embeddings()(ids.to(embeds.device))
    if not torch.equal(embeds[0][~sample.media_tokens], looked_up[~sample.media_tokens]):
        raise IncompatibleModel(f"{name} changes the embeddings of words")


@torch.inference_mode()
def _check_words(merger: Merger, sample: Prompt, name: str) -> None:
    """Refuse a model that answers words otherwise than the part of it that writes."""
    ids = sample.tensors["input_ids"][:, ~sample.media_tokens].to(merger.words.device)
    wanted, found = (
        network(input_ids=ids, use_cache=False).logits[0, -1]
        for network in (merger.model, merger.words)
    )
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3):
        raise IncompatibleModel(f"{name} changes what its decoder answers")


def _is_more(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, list | dict) and bool(value))
