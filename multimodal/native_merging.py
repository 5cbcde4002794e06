"""A multimodal checkpoint as the engine runs it: its decoder alone, its prompts as embeddings.

The checkpoint's own code encodes the media and puts them into the prompt; it is stopped at the door
of its decoder, and what it hands over there is the prompt. Prompts that wait are encoded as one.
Knows no message.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from encoders.errors import IncompatibleModel
from multimodal.encoding import CACHE_BYTES
from multimodal.engine.runner import turns_in_space, why_not_packed
from multimodal.loading import entrance_of
from multimodal.measures import Measures
from multimodal.native_prompt import Prompt

# what a decoder is handed beside embeddings that the engine has for itself
_USUAL = ("inputs_embeds", "position_ids", "attention_mask", "past_key_values", "cache_position")
_JOINED_BYTES = 2**26  # of the tensors of prompts that are encoded as one; a larger one goes alone
Key = tuple[str, str]  # a tenant, and the digest of a prompt's media


@dataclass(frozen=True)
class Embedded:
    """A prompt as embeddings `[length, hidden]`.

    Attributes:
        content: what stands at each position, as `engine.sequence.Sequence` wants it.
        turns: where each position lies in time and space, likewise.
        num_encoded: media that were encoded for it, and not before.
    """

    embeds: torch.Tensor
    content: np.ndarray
    turns: np.ndarray | None = None
    num_encoded: int = 0


@dataclass(frozen=True)
class _Media:
    """Embeddings of all media tokens of a prompt; the first has the number `first`."""

    rows: torch.Tensor
    first: int


@dataclass(frozen=True, eq=False)
class _Job:
    """Media to be encoded."""

    key: Key
    prompt: Prompt
    done: Future[_Media] = field(default_factory=Future)


class _Reached(Exception):
    """The decoder was called; ends the model's own pass before it."""


class Merger:
    """Makes embeddings of prompts, from any thread; media are encoded once.

    Whichever thread has the turn encodes what waits of all of them.

    Args:
        model: the checkpoint.
        words: the part of it that writes, a causal language model; the model itself if it only reads.
        budget_bytes: of embeddings that are kept; the longest unused go first.

    Attributes:
        joins: whether prompts may be encoded as one; see `try_joining`.
        measures: of encoding: batches, seconds, and what was encoded already.
    """

    def __init__(self, model: Any, words: Any, *, budget_bytes: int = CACHE_BYTES) -> None:
        self.model, self.words, self._budget = model, words, budget_bytes
        self.joins, self.measures = False, Measures()
        self._in_space = turns_in_space(getattr(words, "config", None))
        self._turn = threading.Lock()  # of who runs the model
        self._lock = threading.Lock()  # of what follows
        self._kept: OrderedDict[Key, _Media] = OrderedDict()
        self._under_way: dict[Key, _Job] = {}
        self._waiting: list[_Job] = []
        self._numbers = itertools.count(-1, -1)

    def check(self) -> None:
        """Nothing: it runs in this process, which is there."""

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
        media, is_new = self._media((tenant, prompt.media_key), prompt)
        embeds[prompt.media_tokens] = media.rows
        content[prompt.media_tokens.numpy()] = media.first - np.arange(len(media.rows))
        return Embedded(embeds, content, self.turns(prompt), len(prompt.kinds) * is_new)

    @torch.inference_mode()
    def handed(self, tensors: Mapping[str, torch.Tensor], door: Any = None) -> dict[str, Any]:
        """What the model's `generate` hands to its decoder, or to another `door`, for a prompt."""
        found: dict[str, Any] = {}

        def reached(module: Any, args: Any, given: Mapping[str, Any]) -> None:
            found.update(given)
            raise _Reached

        door = self.model.get_decoder() if door is None else door
        with door.register_forward_pre_hook(reached, with_kwargs=True):
            try:
                self.model.generate(**moved(self.model, tensors), do_sample=False, max_new_tokens=1)
            except _Reached:
                return found
        raise IncompatibleModel(f"{type(self.model).__name__} never calls its decoder")

    def turns(self, prompt: Prompt) -> np.ndarray | None:
        """Where the prompt's positions lie in time and space, `[3, length]`; encodes nothing."""
        if not self._in_space:
            return None
        with self._turn:
            positions = self.handed(prompt.tensors, self.model).get("position_ids")
        return None if positions is None else positions[-3:, 0].cpu().numpy()

    def rows(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """Embeddings of the media tokens of each prompt, all encoded as one."""
        embeds = self.handed(joined(prompts))["inputs_embeds"][0]
        own = embeds.split([len(prompt.media_tokens) for prompt in prompts])
        return [rows[prompt.media_tokens] for rows, prompt in zip(own, prompts, strict=True)]

    def try_joining(self, pairs: Iterable[tuple[Prompt, Prompt]]) -> None:
        """Encode prompts as one from now on if each pair then gives what each of it gives alone."""
        self.joins = all(fit_together(*pair) and self._alike(pair) for pair in pairs)

    def _alike(self, prompts: Sequence[Prompt]) -> bool:
        tolerance = (
            torch.finfo(self.model.dtype).eps ** 0.5
        )  # batches of other sizes round otherwise
        try:
            found = self.rows(prompts)
        except (RuntimeError, ValueError, IndexError):
            return False
        alone = [self.rows([prompt])[0] for prompt in prompts]
        return all(
            bool((rows - wanted).abs().max() <= tolerance * wanted.abs().max())
            for rows, wanted in zip(found, alone, strict=True)
        )

    # --- media, each once ------------------------------------------------------------------------

    def _media(self, key: Key, prompt: Prompt) -> tuple[_Media, bool]:
        """What a prompt's media became, and whether this call set it going."""
        with self._lock:
            self._count("encoder_cache_queries", prompt)
            is_new = key not in self._kept and key not in self._under_way
            if not is_new:
                self._count("encoder_cache_hits", prompt)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], False
            if is_new:
                self._under_way[key] = _Job(key, prompt)
                self._waiting.append(self._under_way[key])
            job = self._under_way[key]
        while not job.done.done():
            with self._turn:
                if jobs := self._take():
                    self._encode(jobs)
        return job.done.result(), is_new

    def _take(self) -> list[_Job]:
        """Media that can be encoded as one, the longest waiting first; it may be none."""
        with self._lock:
            taken: list[_Job] = []
            num_bytes = 0
            for job in self._waiting:
                num_bytes += sum(tensor.nbytes for tensor in job.prompt.tensors.values())
                if taken and (not self.joins or num_bytes > _JOINED_BYTES):
                    break
                if not taken or fit_together(taken[0].prompt, job.prompt):
                    taken.append(job)
            self._waiting = [job for job in self._waiting if job not in taken]
            return taken

    def _encode(self, jobs: Sequence[_Job]) -> None:
        started = time.perf_counter()
        try:
            rows = self.rows([job.prompt for job in jobs])
        except Exception as error:  # of one of them: again one by one, to fail that one alone
            for job in jobs if len(jobs) > 1 else ():
                self._encode([job])
            if len(jobs) == 1:
                with self._lock:
                    del self._under_way[jobs[0].key]
                jobs[0].done.set_exception(error)
            return
        self._measure(jobs, time.perf_counter() - started)
        for job, own in zip(jobs, rows, strict=True):
            with self._lock:
                media = self._keep(job.key, own)
                del self._under_way[job.key]
            job.done.set_result(media)

    def _keep(self, key: Key, rows: torch.Tensor) -> _Media:
        first = next(self._numbers)
        for _ in range(len(rows) - 1):
            next(self._numbers)
        self._kept[key] = _Media(rows, first)
        held = sum(media.rows.nbytes for media in self._kept.values())
        while held > self._budget and len(self._kept) > 1:
            held -= self._kept.popitem(last=False)[1].rows.nbytes
        return self._kept[key]

    def _count(self, name: str, prompt: Prompt) -> None:
        for modality in prompt.modalities:
            self.measures.count(name, modality)

    def _measure(self, jobs: Sequence[_Job], seconds: float) -> None:
        """Each modality's share of the time is that of its media tokens."""
        self.measures.observe("encoder_batch_size", sum(len(job.prompt.kinds) for job in jobs))
        tokens: Counter[str] = Counter()
        for job in jobs:
            told = job.prompt.tokens_by_modality
            tokens.update(dict.fromkeys(job.prompt.modalities, 1) if told is None else told)
        for modality, count in tokens.items():
            share = count / tokens.total()
            self.measures.observe("encoder_time_seconds", seconds * share, modality)


def joined(prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """Prompts behind each other as one, with the media of all."""
    return {
        name: torch.cat(
            [prompt.tensors[name] for prompt in prompts], 1 if _is_long(prompts[0], name) else 0
        )
        for name in prompts[0].tensors
    }


def fit_together(a: Prompt, b: Prompt) -> bool:
    """Whether the tensors of two prompts can be joined: their media are of one shape."""
    return a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[n].dtype == b.tensors[n].dtype
        and (_is_long(a, n) or a.tensors[n].shape[1:] == b.tensors[n].shape[1:])
        and _is_long(a, n) == _is_long(b, n)
        for n in a.tensors
    )


def _is_long(prompt: Prompt, name: str) -> bool:
    """Whether a tensor has a value for each token of the prompt."""
    return prompt.tensors[name].shape == prompt.tensors["input_ids"].shape


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
    """A processor's tensors where the model takes them, floats in its dtype."""
    device = entrance_of(model)
    return {
        name: tensor.to(device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def _words_of(model: Any, decoder: Any) -> Any:
    """The part that writes, as transformers' causal language model, on the model's own weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config, name = decoder.config, type(model).__name__
    if decoder is model.base_model:
        raise IncompatibleModel(f"the decoder of {name} merges media into the prompt itself")
    with torch.device("meta"):
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            words = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](copy.deepcopy(config))
        else:  # Qwen-VL's text has no class of its own; this one's is a decoder and a last layer
            words = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1))
    words.config = config
    setattr(words, words.base_model_prefix, decoder)
    words.set_output_embeddings(model.get_output_embeddings())
    if left := [key for key, weight in words.named_parameters() if weight.is_meta]:
        raise IncompatibleModel(f"{name} has no {left[0]}, which its decoder would need alone")
    return words.eval()


def _check_handed(merger: Merger, sample: Prompt, name: str) -> None:
    """Refuse a model that hands its decoder more than embeddings in a row."""
    given, ids = merger.handed(sample.tensors), sample.tensors["input_ids"][0]
    embeds, positions = given.get("inputs_embeds"), given.get("position_ids")
    if embeds is None:
        raise IncompatibleModel(f"the decoder of {name} merges media into the prompt itself")
    if positions is not None and not _are_known(positions.cpu(), merger.turns(sample)):
        raise IncompatibleModel(f"{name} turns positions in a way of its own")
    more = [key for key, value in given.items() if key not in _USUAL and _is_more(value)]
    if given.get("attention_mask") is not None:
        more.append("attention_mask")
    if more:
        raise IncompatibleModel(f"{name} hands its decoder {', '.join(more)} beside embeddings")
    looked_up = merger.words.get_input_embeddings()(ids.to(embeds.device))
    if not torch.equal(embeds[0][~sample.media_tokens], looked_up[~sample.media_tokens]):
        raise IncompatibleModel(f"{name} changes the embeddings of words")


def _are_known(positions: torch.Tensor, turns: np.ndarray | None) -> bool:
    """Whether the decoder counts positions in a row, or as the merger says that they lie in space."""
    in_a_row = torch.arange(positions.shape[-1])
    if turns is None or positions.ndim == 2:
        return torch.equal(positions, in_a_row[None])
    text = positions[:-3]  # Qwen's models count them in a row before, for the mask
    return torch.equal(positions[-3:, 0], torch.from_numpy(turns)) and bool(
        (text == in_a_row).all()
    )


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
