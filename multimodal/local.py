"""The local backend: composites, many requests at once, every medium encoded once.

Joins the encoder's thread, the engine's thread and the text that goes in and comes out. Knows no
pipeline and no report.
"""

from __future__ import annotations

import copy
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
)
from multimodal.encoding import Encoded, MediaEncoder, changeable, weights_revision
from multimodal.engine import sequence as seq
from multimodal.engine.assembly import Assembled, assemble, objective_of
from multimodal.engine.doctor import Diagnosis
from multimodal.engine.engine import Engine
from multimodal.engine.grammar import Grammars, JsonConstraint
from multimodal.engine.precision import FASTEST, fastest
from multimodal.events import EventStream
from multimodal.grounding import locate_regions
from multimodal.loading import load_composite, weights_sha256
from multimodal.measures import Measured
from multimodal.messages import Message, Study, value_of
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.novelty import NoveltyModel, describe_study, load_novelty
from multimodal.processing import AUDIO, IMAGE, REGION, MultimodalProcessor
from multimodal.review import ReviewWeights
from multimodal.sizes import measure
from multimodal.sparse import SparseMLP, set_sparsity, sparse_mlps
from multimodal.streaming import Answer


class LocalBackend:
    """Runs a composite in this process, for as many threads as ask.

    Args:
        model: the composite.
        processor: its own.
        name: by which it is told.
        novelty: distances from what it was validated on.
        folder: of its weights.
        objective: "ttft", "throughput" or "even"; None for `CROSSREAD_OBJECTIVE`, else "even".
        dtype_why: what the model's dtype was chosen by, where it was.
    """

    def __init__(
        self,
        model: MultimodalForConditionalGeneration,
        processor: MultimodalProcessor,
        name: str = "composite",
        novelty: NoveltyModel | None = None,
        *,
        folder: Path | None = None,
        objective: str | None = None,
        dtype_why: str = "",
    ) -> None:
        self._folder, self._dtype_why = folder, dtype_why
        self.model, self.processor, self.name = model.eval(), processor, name
        self._novelty = novelty
        self._encoder = MediaEncoder(model, processor)
        weakref.finalize(self, MediaEncoder.close, self._encoder)
        self._lock = threading.Lock()  # fast tokenizers are not made for several threads
        self._decoder = copy.deepcopy(processor.tokenizer)  # the engine's own
        self._adaptive = objective_of(objective)
        self._model_len = int(
            getattr(model.config.text_config, "max_position_embeddings", 0) or 2**31
        )

    @property
    def engine(self) -> Engine:
        """The engine, made at first use."""
        return self._assembled.engine

    @cached_property
    def _assembled(self) -> Assembled:
        with self._lock:
            made = self.__dict__.get("_assembled")  # by a thread that was quicker
            if made is None:
                network, way = (
                    self.model.language_model,
                    partial(_way, sparse_mlps(self.model), changeable(self.model.parameters())),
                )
                made = assemble(
                    network, self._model_len, self._adaptive, way, dtype_why=self._dtype_why
                )
                self.__dict__["_assembled"] = made
                weakref.finalize(self, Engine.close, made.engine)
            return made

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        sparsity: float | None = None,
        objective: str | None = None,
    ) -> LocalBackend:
        """Load a composite's folder or Hub id.

        Raises:
            ModelNotFound: no model there.
            IncompatibleModel: a model that is not a composite.
        """
        loaded_as = "auto" if dtype == FASTEST else dtype
        network, processor = load_composite(model, device=device, dtype=loaded_as)
        if sparsity is not None:
            set_sparsity(network, sparsity)
        why = ""
        if dtype == FASTEST:
            chosen = fastest(network.eval().language_model, objective_of(objective))
            network, why = network.to(chosen.dtype), str(chosen)
        folder = Path(model)
        home = folder if folder.is_dir() else None
        name = folder.resolve().name if home else str(model)
        return cls(
            network, processor, name, load_novelty(folder),
            folder=home, objective=objective, dtype_why=why,
        )  # fmt: skip

    @property
    def sparsity(self) -> float | None:
        """The share of MLP neurons left out per token; None where nothing may be."""
        mlps = sparse_mlps(self.model)
        return mlps[0].config.sparsity if mlps else None

    def at_sparsity(self, share: float) -> LocalBackend:
        """A twin on the same weights that leaves out another share; this one stays as it is.

        Raises:
            IncompatibleModel: the model's MLPs cannot be made sparse.
        """
        shared: dict[int, Any] = {id(t): t for t in self.model.parameters()}
        shared |= {id(t): t for t in self.model.buffers()}
        twin = copy.deepcopy(self.model, shared)
        set_sparsity(twin, share)
        return self._over(twin)

    def renewed(self) -> LocalBackend:
        """The same model with an engine of its own, as a forked process needs it."""
        return self._over(self.model)

    def _over(self, model: MultimodalForConditionalGeneration) -> LocalBackend:
        return LocalBackend(
            model, self.processor, self.name, self._novelty, folder=self._folder,
            objective=self._adaptive.objective, dtype_why=self._dtype_why,
        )  # fmt: skip

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
            one_by_one=self._assembled.one_by_one, json_schema=self._grammars.possible,
            review=ReviewWeights.read(config.review_weights),
        )  # fmt: skip

    @property
    def _max_len(self) -> int:
        """Positions of a prompt and its answer: what the model was made for, and memory holds."""
        return min(self._model_len, self.engine.runner.capacity())

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_sha256(self._folder)

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events; see `Backend.generate`. Media are read and encoded in this call.

        Raises:
            InputError: a medium that cannot be read, or holds values that are no numbers; a
                JSON schema that cannot be enforced.
            ContextOverflow: prompt and answer do not fit the model's context.
        """
        options = options or GenerateOptions()
        asked_s, started = time.monotonic(), time.perf_counter()
        constraint = self._constraint(options)
        plain, parts = self.processor.flatten(messages)
        with torch.inference_mode():
            media, num_encoded = self._encoder.encode(parts, options.tenant)
            timings_s = {"encode": time.perf_counter() - started}
            with self._lock:
                text = self.processor.render(plain)
                shown = [e.medium for e in media]
                ids = torch.tensor(self.processor.ids_of(text, [(m.kind, m.words) for m in shown]))
            self._check_length(len(ids), options)
            regions = self._regions(media) if options.ground else ()
            embeds, content = self._embeds(ids, media), self._content(ids, media)
        problems = tuple(p for medium in shown for p in medium.problems)
        choices = tuple(map(self._encode_choice, options.choices))
        media_tokens: Counter[Modality] = Counter()
        for encoded in media:
            media_tokens[encoded.medium.kind] += len(encoded.embeds)
        usage = Usage(len(ids), 0, num_encoded, timings_s, dict(media_tokens))
        finished = Finished("", "stop", usage, {}, regions, problems)
        stream = EventStream(lambda: self.engine.cancel(sequence))
        fitted = self.model.config.choice_calibration or {}
        calibration = fitted.get(next(iter(options.choices), ""), (1.0, 0.0))
        answer = Answer(stream.put, self._decoder, options, finished, calibration)
        sequence = seq.Sequence(
            options, embeds, content, answer.tell, self._end_ids,
            choices, constraint, asked_s=asked_s,
        )  # fmt: skip
        self.engine.submit(sequence)
        return stream

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
        self._constraint(options or GenerateOptions())
        return Estimate(num_tokens, most, sizes)

    def load(self) -> Load:
        """How busy this backend is now."""
        load = self.engine.load()
        neurons: dict[tuple[str, str], float] = {}
        for mlp in sparse_mlps(self.model):
            neurons["engine_mlp_neurons", str(mlp.layer)] = mlp.tally.neurons
            neurons["engine_mlp_neurons_run", str(mlp.layer)] = mlp.tally.run
        measured = load.measured | self._encoder.measures.told() | Measured(neurons)
        return replace(load, measured=measured)

    def diagnose(self) -> Diagnosis:
        """What the engine chose on this machine, and why; runs a few steps to see."""
        return self._assembled.diagnose()

    def close(self) -> None:
        """End the threads and forget what is cached; requests under way end as cancelled."""
        self._encoder.close()
        if "_assembled" in self.__dict__:
            self.engine.close()

    def novelty(self, study: Study) -> Novelty | None:
        """How unlike the validated studies this one is; see `Backend.novelty`."""
        if self._novelty is None:
            return None
        with torch.inference_mode():
            encoded = self._encoder.encode([value_of(study)])[0][0]
        medium, features = encoded.medium, encoded.features
        if features is None or medium.views is None or medium.geometry is None:
            return None
        vector = describe_study(medium.views, medium.geometry.numpy(), features)
        return Novelty(self._novelty.score(vector), self._novelty.limit, _reasons(medium.problems))

    # --- prompt ----------------------------------------------------------------------------------

    def _check_length(self, num_tokens: int, options: GenerateOptions) -> int:
        """Tokens of the answer at most; refuses what the context cannot hold."""
        choices = [len(self._encode_choice(choice)) for choice in options.choices]
        most = max(choices, default=options.max_new_tokens)
        if num_tokens + most > self._max_len:
            raise ContextOverflow(
                f"the prompt takes {num_tokens} tokens and the answer up to {most}, but"
                f" {self.name} holds {self._max_len}; shorten the text, give fewer pictures"
                " or let it answer in fewer tokens"
            )
        return most

    def _encode_choice(self, choice: str) -> tuple[int, ...]:
        with self._lock:
            return tuple(self.processor.tokenizer.encode(choice, add_special_tokens=False))

    def _constraint(self, options: GenerateOptions) -> JsonConstraint | None:
        return self._grammars.json(options.json_schema) if options.json_schema else None

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._decoder, self.model.config.text_config.vocab_size, self._end_ids)

    def _embeds(self, ids: torch.Tensor, media: Sequence[Encoded]) -> torch.Tensor:
        """`[length, hidden]`."""
        device = self.model.device
        embeds = self.model.get_input_embeddings()(ids[None].to(device))
        if media:
            slots = torch.isin(ids, self._slot_ids).to(device)[None]
            features = torch.cat([e.embeds for e in media])
            embeds = self.model.splice(embeds, slots, features, "media")
        return embeds[0]

    def _content(self, ids: torch.Tensor, media: Sequence[Encoded]) -> np.ndarray:
        """Each token's id, or for a media token the number of what stands there."""
        content = ids.numpy().astype(np.int64)
        if media:
            numbers = [np.arange(e.first, e.first - len(e.embeds), -1) for e in media]
            content[torch.isin(ids, self._slot_ids).numpy()] = np.concatenate(numbers)
        return content

    @cached_property
    def _slot_ids(self) -> torch.Tensor:
        convert = self.processor.tokenizer.convert_tokens_to_ids
        return torch.tensor([convert(token) for token in (IMAGE, AUDIO, REGION)])

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [ends])

    def _regions(self, media: Sequence[Encoded]) -> tuple[Region, ...]:
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


def _way(mlps: Sequence[SparseMLP], parameters: Sequence[torch.nn.Parameter]) -> tuple[object, int]:
    """How a model computes just now: its gates and its weights."""
    return (mlps[0].config if mlps else None, weights_revision(parameters))


def _reasons(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(p.message for p in problems)
