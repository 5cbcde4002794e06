"""The local backend: one composite, one request at a time, every medium encoded once.

A study's tower features and its keys and values are kept, so a further question about it costs
only its own words. Knows no pipeline and no report.
"""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from encoders.errors import ContextOverflow
from encoders.features import Modality, Problem
from multimodal.backends import (
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Novelty,
    Region,
    Token,
    Usage,
    refuse_options,
)
from multimodal.grounding import locate_regions
from multimodal.loading import load_composite
from multimodal.messages import Message, Study, value_of
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.novelty import NoveltyModel, describe_study, load_novelty
from multimodal.processing import AUDIO, IMAGE, REGION, Medium, MultimodalProcessor
from multimodal.rewind import can_crop, crop
from multimodal.sizes import measure
from multimodal.sparse import SparsityConfig, set_sparsity, sparse_mlps
from multimodal.streaming import TextStream, pick

NUM_CACHED_MEDIA = 8
_NOT_YET = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "logprobs", "json_schema", "queue_s", "deadline_s", "tenant")  # fmt: skip


@dataclass
class _Encoded:
    """A medium with its embeddings `[tokens, hidden]` and, for a study, its tower features."""

    key: str
    medium: Medium
    embeds: torch.Tensor
    features: torch.Tensor | None = None
    regions: tuple[Region, ...] | None = None


@dataclass
class _Prefix:
    """Keys and values of a prompt; `signature` says which token each belongs to."""

    signature: list[object] = field(default_factory=list)
    cache: DynamicCache | None = None
    gate: SparsityConfig | None = None


@dataclass
class _Request:
    """One request under way: its prompt's keys and values, the logits after it, its accounts."""

    options: GenerateOptions
    prefix: _Prefix
    logits: torch.Tensor
    num_encoded: int
    timings_s: dict[str, float]
    regions: tuple[Region, ...]
    problems: tuple[Problem, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prefix.signature)

    def finished(self, text: str, reason: Literal["stop", "length"], num_new: int = 0) -> Finished:
        """The request's last event."""
        usage = Usage(self.length, num_new, self.num_encoded, self.timings_s)
        return Finished(text, reason, usage, {}, self.regions, self.problems)


class LocalBackend:
    """Runs a composite in this process.

    Several threads may ask at once: answers are made token by token in turn, and one that is
    abandoned half-way holds nobody up.
    """

    def __init__(
        self,
        model: MultimodalForConditionalGeneration,
        processor: MultimodalProcessor,
        name: str = "composite",
        novelty: NoveltyModel | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        self._folder = folder
        self.model, self.processor, self.name = model.eval(), processor, name
        self._novelty = novelty
        self._media: OrderedDict[str, _Encoded] = OrderedDict()
        self._prefix = _Prefix()
        self._lock = threading.Lock()
        config = model.config.text_config
        self._max_len = int(getattr(config, "max_position_embeddings", 0) or 2**31)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        sparsity: float | None = None,
    ) -> LocalBackend:
        """Load a composite's folder or Hub id.

        Raises:
            ModelNotFound: no model there.
            IncompatibleModel: a model that is not a composite.
        """
        network, processor = load_composite(model, device=device, dtype=dtype)
        if sparsity is not None:
            set_sparsity(network, sparsity)
        folder = Path(model)
        home = folder if folder.is_dir() else None
        name = folder.resolve().name if home else str(model)
        return cls(network, processor, name, load_novelty(folder), folder=home)

    def capabilities(self) -> Capabilities:
        """What this composite can do."""
        config = self.model.config
        modalities: set[Modality] = {"text"}
        if config.vision_config is not None:
            modalities |= {"image", "video", "dicom"}
        if config.audio_config is not None:
            modalities.add("audio")
        findings = tuple((name, bool(sided)) for name, sided in config.findings)
        return Capabilities(
            self.name, frozenset(modalities), findings, self._max_len, bool(findings),
            self._weights_sha256, f"view profile {config.view_profile}",
        )  # fmt: skip

    @cached_property
    def _weights_sha256(self) -> str:
        """Of the checkpoint's weight files in the order of their names; "" if it has no folder."""
        files = sorted(self._folder.glob("*.safetensors")) if self._folder else []
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as weights:
                while block := weights.read(2**24):
                    digest.update(block)
        return digest.hexdigest() if files else ""

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events; see `Backend.generate`.

        Raises:
            ContextOverflow: prompt and answer do not fit the model's context.
        """
        refuse_options(options or GenerateOptions(), _NOT_YET, "a composite")
        # inference mode is entered for each step, never left on in the caller's code between two
        events = torch.inference_mode()(self._answer)(messages, options or GenerateOptions())
        while True:
            with self._lock:
                event = next(events, None)
            if event is None:
                return
            yield event

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What `generate` would take; see `Backend.estimate`.

        Raises:
            ContextOverflow: prompt and answer do not fit the model's context.
            InputError: a medium that is missing, or not what it claims to be.
        """
        plain, parts = self.processor.flatten(messages)
        sizes = tuple(measure(kind, value) for kind, value in parts)
        with self._lock:
            num_tokens = self.processor.num_tokens(self.processor.render(plain), sizes)
            most = self._check_length(num_tokens, options or GenerateOptions())
        return Estimate(num_tokens, most, sizes)

    def load(self) -> Load:
        """How busy this backend is now."""
        return Load()

    def close(self) -> None:
        """Let go of what is cached."""

    def novelty(self, study: Study) -> Novelty | None:
        """How unlike the validated studies this one is; see `Backend.novelty`."""
        if self._novelty is None:
            return None
        with self._lock, torch.inference_mode():
            encoded = self._encode_all([value_of(study)])[0][0]
        medium, features = encoded.medium, encoded.features
        if features is None or medium.views is None or medium.geometry is None:
            return None
        vector = describe_study(medium.views, medium.geometry.numpy(), features)
        return Novelty(self._novelty.score(vector), self._novelty.limit, _reasons(medium.problems))

    # --- prompt -> embeddings ------------------------------------------------------------------

    def _answer(
        self, messages: Sequence[Message], options: GenerateOptions
    ) -> Iterator[Token | Finished]:
        request = self._begin(messages, options)
        try:
            if options.choices:
                yield self._choose(request)
            else:
                yield from self._decode(request)
        finally:
            self._prefix = request.prefix

    def _begin(self, messages: Sequence[Message], options: GenerateOptions) -> _Request:
        """Encode what is new of the media and run the prompt."""
        started = time.perf_counter()
        plain, parts = self.processor.flatten(messages)
        media, num_encoded = self._encode_all(parts)
        timings_s = {"encode": time.perf_counter() - started}
        text = self.processor.render(plain)
        inputs = self.processor.join([text], [[e.medium for e in media]])
        ids = inputs.tensors["input_ids"][0]
        self._check_length(len(ids), options)
        started = time.perf_counter()
        logits, prefix = self._prefill(ids, media)
        timings_s["prefill"] = time.perf_counter() - started
        regions = self._regions(media) if options.ground else ()
        return _Request(options, prefix, logits, num_encoded, timings_s, regions, inputs.problems)

    def _check_length(self, num_tokens: int, options: GenerateOptions) -> int:
        """Tokens of the answer at most; refuses what the context cannot hold."""
        encode = self.processor.tokenizer.encode
        choices = [len(encode(c, add_special_tokens=False)) for c in options.choices]
        most = max(choices, default=options.max_new_tokens)
        if num_tokens + most > self._max_len:
            raise ContextOverflow(
                f"the prompt takes {num_tokens} tokens and the answer up to {most}, but"
                f" {self.name} holds {self._max_len}; shorten the text or give fewer pictures"
            )
        return most

    def _encode_all(self, parts: Sequence[tuple[str, Any]]) -> tuple[list[_Encoded], int]:
        """Every part encoded, from the cache where its content was seen before."""
        encoded, new = [], 0
        for kind, value in parts:
            key = _digest(kind, value)
            if key is not None and key in self._media:
                self._media.move_to_end(key)
            else:
                medium = self.processor.prepare(kind, value)
                key = key or _medium_digest(medium)
                if key not in self._media:
                    self._media[key] = self._encode(key, medium)
                    new += 1
                while len(self._media) > NUM_CACHED_MEDIA:
                    self._media.popitem(last=False)
            encoded.append(self._media[key])
        return encoded, new

    def _encode(self, key: str, medium: Medium) -> _Encoded:
        model, device = self.model, self.model.device
        if medium.kind == "audio":
            lengths = torch.tensor([mel.shape[1] for mel in medium.log_mel])
            longest = int(lengths.max())
            mels = [torch.nn.functional.pad(m, (0, longest - m.shape[1])) for m in medium.log_mel]
            frames = model.encode_audio(torch.stack(mels).to(device), lengths.to(device))
            return _Encoded(key, medium, torch.cat([model.audio_projector(f) for f in frames]))
        assert medium.pixels is not None
        assert medium.geometry is not None
        batches = medium.pixels.to(device).split(32)
        features = torch.cat([model.encode_images(b) for b in batches])
        study = torch.full((len(features),), 0 if medium.kind == "dicom" else -1, device=device)
        views, regions = model.project_images(features, medium.geometry.to(device), study)
        return _Encoded(key, medium, torch.cat([views, regions]), features)

    def _prefill(
        self, ids: torch.Tensor, media: Sequence[_Encoded]
    ) -> tuple[torch.Tensor, _Prefix]:
        """Logits after the prompt; keys and values it shares with the last one are reused."""
        signature = self._signature(ids, media)
        old, self._prefix = self._prefix, _Prefix()  # taken: no other request may crop it now
        mlps = sparse_mlps(self.model)
        gate = mlps[0].config if mlps else None
        shared, limit = 0, min(len(old.signature), len(signature) - 1)
        while shared < limit and old.signature[shared] == signature[shared]:
            shared += 1
        cache = old.cache
        if cache is None or old.gate != gate or not crop(cache, shared):
            cache, shared = DynamicCache(config=self.model.config.text_config), 0
            cache.activate_past_recording()  # so that sliding windows can be wound back
        logits = self._step(self._embeds(ids, media)[:, shared:], cache, last_only=True)
        return logits[-1], _Prefix(signature, cache, gate)

    def _embeds(self, ids: torch.Tensor, media: Sequence[_Encoded]) -> torch.Tensor:
        device = self.model.device
        embeds = self.model.get_input_embeddings()(ids[None].to(device))
        slots = torch.isin(ids, self._slot_ids()).to(device)[None]
        if not media:
            return embeds
        features = torch.cat([e.embeds for e in media])
        return self.model.splice(embeds, slots, features, "media")

    def _slot_ids(self) -> torch.Tensor:
        convert = self.processor.tokenizer.convert_tokens_to_ids
        return torch.tensor([convert(token) for token in (IMAGE, AUDIO, REGION)])

    def _signature(self, ids: torch.Tensor, media: Sequence[_Encoded]) -> list[object]:
        """Each token's id, or for a media token the digest and index of what stands there."""
        content = iter([(e.key, i) for e in media for i in range(len(e.embeds))])
        slots = set(self._slot_ids().tolist())
        return [next(content) if i in slots else i for i in ids.tolist()]

    # --- embeddings -> answer ------------------------------------------------------------------

    def _step(
        self, embeds: torch.Tensor, cache: DynamicCache, *, last_only: bool = False
    ) -> torch.Tensor:
        """Embeddings `[1, k, hidden]` after what `cache` holds -> logits `[k or 1, vocabulary]`."""
        start = cache.get_seq_length()
        positions = torch.arange(start, start + embeds.shape[1], device=embeds.device)[None]
        output = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True,
                            position_ids=positions, logits_to_keep=int(last_only))  # fmt: skip
        return output.logits[0].float()

    def _step_tokens(self, tokens: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.model.device)
        return self._step(self.model.get_input_embeddings()(ids), cache)

    def _decode(self, request: _Request) -> Iterator[Token | Finished]:
        options, logits, cache = request.options, request.logits, request.prefix.cache
        assert cache is not None
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(options.seed or 0)
        ends, stream = self._end_ids(), TextStream(self.processor.tokenizer, options.stop)
        count = 0
        reason: Literal["stop", "length"] = "length"
        while count < options.max_new_tokens:
            token = pick(logits, options, generator)
            if token in ends:
                reason = "stop"
                break
            count += 1
            if piece := stream.push(token):
                yield Token(piece)
            if stream.stopped:
                reason = "stop"
                break
            if count < options.max_new_tokens:
                logits = self._step_tokens([token], cache)[-1]
        if piece := stream.close():
            yield Token(piece)
        request.timings_s["decode"] = time.perf_counter() - started
        yield request.finished(stream.text.strip(), reason, count)

    def _choose(self, request: _Request) -> Finished:
        """The likeliest choice, and of each the probability; those of all choices add up to 1."""
        started, tokenizer = time.perf_counter(), self.processor.tokenizer
        scores = []
        for choice in request.options.choices:
            tokens = tokenizer.encode(choice, add_special_tokens=False)
            scores.append(self._log_probability(tokens, request))
        weights = torch.tensor(scores).softmax(0).tolist()
        chances = dict(zip(request.options.choices, weights, strict=True))
        request.timings_s["decode"] = time.perf_counter() - started
        best = max(chances, key=lambda choice: chances[choice])
        return replace(request.finished(best, "stop"), choices=chances)

    def _log_probability(self, tokens: Sequence[int], request: _Request) -> float:
        """Of these tokens as the beginning of the answer."""
        cache, logits = request.prefix.cache, request.logits[None]
        assert cache is not None
        if len(tokens) > 1:
            if not can_crop(cache):
                cache = copy.deepcopy(cache)
            logits = torch.cat([logits, self._step_tokens(tokens[:-1], cache)])
            if cache is request.prefix.cache:
                crop(cache, request.length)
        log_probability = logits.log_softmax(-1)
        return sum(float(row[token]) for row, token in zip(log_probability, tokens, strict=True))

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    def _regions(self, media: Sequence[_Encoded]) -> tuple[Region, ...]:
        found: list[Region] = []
        for encoded in media:
            medium = encoded.medium
            if medium.kind != "dicom" or encoded.features is None or medium.geometry is None:
                continue
            if encoded.regions is None and self.model.config.findings:
                num = self.processor.senses["vision"]["tokens_per_view"]
                sources = [s for s in medium.sources if s is not None][::num]
                geometry = medium.geometry.to(self.model.device)
                encoded.regions = locate_regions(self.model, encoded.features, geometry, sources)
            found.extend(encoded.regions or ())
        return tuple(found)


def _digest(kind: str, value: Any) -> str | None:
    """A content key known before decoding: a loaded volume has one, other media do not."""
    digest = getattr(value, "digest", None)
    return f"{kind}:{digest}" if isinstance(digest, str) else None


def _medium_digest(medium: Medium) -> str:
    """SHA-256 over everything the encoder will see of a medium, and where it says it came from."""
    sha = hashlib.sha256(repr((medium.kind, medium.sources, medium.problems)).encode())
    for tensor in (medium.pixels, medium.geometry, *medium.log_mel):
        if tensor is not None:
            sha.update(str(tuple(tensor.shape)).encode())
            sha.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return f"{medium.kind}:{sha.hexdigest()}"


def _reasons(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(p.message for p in problems)
