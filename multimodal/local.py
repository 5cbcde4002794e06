"""The local backend: one composite, one request at a time, every medium encoded once.

A study's tower features and its keys and values are kept, so a further question about it costs
only its own words. Knows no pipeline and no report.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache

from encoders.errors import ContextOverflow, IncompatibleModel, ModelNotFound
from encoders.features import Modality, Problem
from multimodal.backends import (
    Capabilities,
    Finished,
    GenerateOptions,
    Novelty,
    Region,
    Token,
    Usage,
)
from multimodal.grounding import locate_regions
from multimodal.messages import Audio, Image, Message, Part, Study, Text, Video
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.novelty import NoveltyModel, describe_study, load_novelty
from multimodal.processing import AUDIO, IMAGE, REGION, Medium, MultimodalProcessor

NUM_CACHED_MEDIA = 8


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
    """Keys and values of the last prompt; `signature` says which token each belongs to."""

    signature: list[object] = field(default_factory=list)
    cache: DynamicCache | None = None


class LocalBackend:
    """Runs a composite in this process. Safe to call from several threads, one at a time."""

    def __init__(
        self,
        model: MultimodalForConditionalGeneration,
        processor: MultimodalProcessor,
        name: str = "composite",
        novelty: NoveltyModel | None = None,
    ) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self._novelty = novelty
        self._media: OrderedDict[str, _Encoded] = OrderedDict()
        self._prefix = _Prefix()
        self._lock = threading.Lock()
        config = model.config.text_config
        self._max_len = int(getattr(config, "max_position_embeddings", 0) or 2**31)

    @classmethod
    def load(
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
        from transformers import AutoConfig, AutoProcessor

        from multimodal import register
        from multimodal.configuration import MultimodalConfig
        from multimodal.sparse import set_sparsity

        register()
        try:
            config = AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"no model at {Path(model).name!r}: give a folder with a config.json, or a Hub id"
                " while the network is reachable"
            ) from error
        if not isinstance(config, MultimodalConfig):
            raise IncompatibleModel(
                f"{Path(model).name!r} is a {config.model_type} checkpoint, not a CrossRead"
                " composite; join it with towers by multimodal.compose(backbone=…)"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        network = MultimodalForConditionalGeneration.from_pretrained(
            model, dtype="auto" if dtype == "auto" else getattr(torch, dtype)
        )
        if dtype == "auto" and device == "cpu":
            network = network.float()
        if sparsity is not None:
            set_sparsity(network.language_model, sparsity)
        processor = AutoProcessor.from_pretrained(model)
        folder = Path(model)
        name = config.name_or_path if not folder.is_dir() else folder.resolve().name
        return cls(network.to(device), processor, name, load_novelty(folder))

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
            self.name, frozenset(modalities), findings, self._max_len, bool(findings)
        )

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events; see `Backend.generate`.

        Raises:
            ContextOverflow: prompt and answer do not fit the model's context.
        """
        with self._lock, torch.inference_mode():
            yield from self._generate(messages, options or GenerateOptions())

    def novelty(self, study: Study) -> Novelty | None:
        """How unlike the validated studies this one is; see `Backend.novelty`."""
        if self._novelty is None:
            return None
        with self._lock, torch.inference_mode():
            encoded = self._encode_all([study])[0][0]
        medium, features = encoded.medium, encoded.features
        if features is None or medium.views is None or medium.geometry is None:
            return None
        vector = describe_study(medium.views, medium.geometry.numpy(), features)
        return Novelty(self._novelty.score(vector), self._novelty.limit, _reasons(medium.problems))

    # --- prompt -> embeddings ------------------------------------------------------------------

    def _generate(
        self, messages: Sequence[Message], options: GenerateOptions
    ) -> Iterator[Token | Finished]:
        started = time.perf_counter()
        parts = [p for m in messages for p in m.parts if not isinstance(p, Text)]
        media, num_new = self._encode_all(parts)
        encoded_s = time.perf_counter() - started
        text = self.processor.render([_plain(m) for m in messages])
        inputs = self.processor.join([text], [[e.medium for e in media]])
        ids = inputs.tensors["input_ids"][0]
        if len(ids) + options.max_new_tokens > self._max_len:
            raise ContextOverflow(
                f"the prompt takes {len(ids)} tokens and the answer up to"
                f" {options.max_new_tokens}, but {self.name} holds {self._max_len};"
                " shorten the text or give fewer pictures"
            )
        timings = {"encode": encoded_s}
        logits, cache = self._prefill(ids, media, timings)
        regions = self._regions(media) if options.ground else ()
        problems = inputs.problems
        if options.choices:
            probability = self._score(options.choices, logits, cache)
            best = max(probability, key=lambda choice: probability[choice])
            usage = Usage(len(ids), 0, num_new, timings)
            self._prefix.cache = self._cropped(cache, len(ids))
            yield Finished(best, "stop", usage, probability, regions, problems)
            return
        yield from self._decode(
            len(ids), (logits, cache), options, (timings, num_new, regions, problems)
        )

    def _encode_all(self, parts: Sequence[Part]) -> tuple[list[_Encoded], int]:
        """Every part encoded, from the cache where its content was seen before."""
        encoded, new = [], 0
        for part in parts:
            kind, value = _value(part)
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
        self, ids: torch.Tensor, media: Sequence[_Encoded], timings: dict[str, float]
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Logits after the prompt; keys and values shared with the last prompt are reused."""
        started = time.perf_counter()
        signature = self._signature(ids, media)
        old = self._prefix
        shared = 0
        if old.cache is not None:
            limit = min(len(old.signature), len(signature) - 1)
            while shared < limit and old.signature[shared] == signature[shared]:
                shared += 1
        cache = self._cropped(old.cache, shared) if shared else None
        cache = cache or DynamicCache(config=self.model.config.text_config)
        shared = cache.get_seq_length()
        embeds = self._embeds(ids, media)[:, shared:]
        self._prefix = _Prefix()  # not valid again until this prompt is through
        output = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True,
                            position_ids=self._positions(shared, embeds.shape[1]),
                            logits_to_keep=1)  # fmt: skip
        self._prefix = _Prefix(signature, cache)
        timings["prefill"] = time.perf_counter() - started
        return output.logits[0, -1].float(), cache

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

    def _cropped(self, cache: DynamicCache | None, length: int) -> DynamicCache | None:
        """`cache` cut to its first tokens; None where this kind of cache cannot be cut."""
        if cache is None or cache.get_seq_length() == length:
            return cache
        try:
            cache.crop(length)
        except (NotImplementedError, ValueError, AttributeError):
            return None
        return cache if cache.get_seq_length() == length else None

    def _positions(self, start: int, count: int) -> torch.Tensor:
        return torch.arange(start, start + count, device=self.model.device)[None]

    # --- embeddings -> answer ------------------------------------------------------------------

    def _step(self, token: int, position: int, cache: DynamicCache) -> torch.Tensor:
        ids = torch.tensor([[token]], device=self.model.device)
        output = self.model(
            input_ids=ids, past_key_values=cache, use_cache=True,
            position_ids=self._positions(position, 1),
        )  # fmt: skip
        return output.logits[0, -1].float()

    def _decode(
        self,
        length: int,
        state: tuple[torch.Tensor, DynamicCache],
        options: GenerateOptions,
        about: tuple[dict[str, float], int, tuple[Region, ...], tuple[Problem, ...]],
    ) -> Iterator[Token | Finished]:
        logits, cache = state
        timings, num_new, regions, problems = about
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(options.seed or 0)
        ends = self._end_ids()
        tokens: list[int] = []
        text, reason = "", "length"
        while len(tokens) < options.max_new_tokens:
            token = _pick(logits, options, generator)
            if token in ends:
                reason = "stop"
                break
            tokens.append(token)
            whole = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
            cut = _stop_at(whole, options.stop)
            piece = (whole if cut is None else whole[:cut])[len(text) :]
            if piece and not piece.endswith("�"):  # an unfinished multi-byte character
                text += piece
                yield Token(piece)
            if cut is not None:
                reason = "stop"
                break
            logits = self._step(token, length + len(tokens) - 1, cache)
        self._prefix.cache = self._cropped(cache, length)
        timings["decode"] = time.perf_counter() - started
        usage = Usage(length, len(tokens), num_new, timings)
        yield Finished(text.strip(), cast(Any, reason), usage, {}, regions, problems)

    def _score(
        self, choices: Sequence[str], logits: torch.Tensor, cache: DynamicCache
    ) -> dict[str, float]:
        """The probability of each choice as the whole answer, all choices together being 1."""
        length = cache.get_seq_length()
        tokenizer = self.processor.tokenizer
        scores = []
        for choice in choices:
            tokens = tokenizer.encode(choice, add_special_tokens=False)
            score, here = 0.0, logits
            for i, token in enumerate(tokens):
                score += float(here.log_softmax(-1)[token])
                if i + 1 < len(tokens):
                    here = self._step(token, length + i, cache)
            self._cropped(cache, length)
            scores.append(score)
        weights = torch.tensor(scores).softmax(0).tolist()
        return dict(zip(choices, weights, strict=True))

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


def _pick(logits: torch.Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    """Greedy at temperature 0, else nucleus sampling (Holtzman et al. 2020)."""
    if options.temperature <= 0:
        return int(logits.argmax())
    probability = (logits.cpu() / options.temperature).softmax(-1)
    ordered, index = probability.sort(descending=True)
    keep = ordered.cumsum(0) - ordered < options.top_p
    return int(index[torch.multinomial(ordered * keep, 1, generator=generator)])


def _stop_at(text: str, stops: Sequence[str]) -> int | None:
    places = [text.find(stop) for stop in stops if stop in text]
    return min(places) if places else None


def _value(part: Part) -> tuple[str, Any]:
    """A part's kind and value as the processor takes them."""
    if isinstance(part, Study):
        return "dicom", part.study
    if isinstance(part, Image):
        return "image", part.image
    if isinstance(part, Video):
        return "video", part.video
    assert isinstance(part, Audio)
    return "audio", part.audio if part.rate_hz is None else (part.audio, part.rate_hz)


def _plain(message: Message) -> dict[str, str]:
    """A message as role and plain string, media as their placeholder words."""
    from multimodal.processing import STUDY, VIDEO

    words = {Study: STUDY, Image: IMAGE, Video: VIDEO, Audio: AUDIO}
    content = "".join(p.text if isinstance(p, Text) else words[type(p)] for p in message.parts)
    return {"role": message.role, "content": content}


def _digest(kind: str, value: Any) -> str | None:
    """A content key known before decoding: a loaded volume has one, other media do not."""
    digest = getattr(value, "digest", None)
    return f"{kind}:{digest}" if isinstance(digest, str) else None


def _medium_digest(medium: Medium) -> str:
    """SHA-256 over everything the encoder will see of a medium."""
    sha = hashlib.sha256(medium.kind.encode())
    for tensor in (medium.pixels, medium.geometry, *medium.log_mel):
        if tensor is not None:
            sha.update(str(tuple(tensor.shape)).encode())
            sha.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return f"{medium.kind}:{sha.hexdigest()}"


def _reasons(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(p.message for p in problems)
