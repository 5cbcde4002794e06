"""The native backend: a checkpoint that transformers implements, multimodal or reading only.

Its processor writes the prompt (`multimodal.native_prompt`). One whose decoder can be packed runs on
the engine (`native_engine`), any other multimodal one by transformers' own steps (`native_loop`).
Knows no pipeline and no report.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from encoders.errors import ContextOverflow, IncompatibleModel, InvalidOption
from multimodal.backends import (
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Novelty,
    Token,
)
from multimodal.engine.adaptive import Adaptive
from multimodal.engine.assembly import assemble, objective_of
from multimodal.engine.doctor import Diagnosis, mapped
from multimodal.engine.grammar import Grammars, JsonConstraint
from multimodal.engine.precision import FASTEST, fastest
from multimodal.loading import devices_of, weights_sha256
from multimodal.messages import Message, Study
from multimodal.native_engine import EngineLoop
from multimodal.native_families import family_of
from multimodal.native_loading import load_native
from multimodal.native_loop import OwnLoop, Request
from multimodal.native_merging import Merger, merger_of
from multimodal.native_prompt import Prompt, Prompter
from multimodal.native_split import SplitModel
from multimodal.sizes import measure_media

_LETTERS_PER_TOKEN, _TOKENS_PER_PICTURE, _TOKENS_PER_SECOND = 4, 256, 25  # as most models have it


class NativeBackend:
    """Runs a checkpoint of transformers in this process; several threads may ask at once."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str = "native",
        *,
        folder: Path | None = None,
        objective: str | None = None,
        split: SplitModel | None = None,
        dtype_why: str = "",
    ) -> None:
        self._dtype_why = dtype_why
        self.model, self.processor, self.name, self._folder = model, processor, name, folder
        text_config = model.config.get_text_config(decoder=True)
        max_len = int(getattr(text_config, "max_position_embeddings", 0) or 2**31)
        self.prompter = Prompter(processor, family_of(model.config.model_type), name, max_len)
        self.loop = self._make_loop(max_len, objective_of(objective), split)
        self._max_len = min(max_len, self.loop.capacity())
        self._lock = threading.Lock()  # fast tokenizers are not made for several threads
        self._decoder = copy.deepcopy(self.prompter.tokenizer)  # the loop's own

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        objective: str | None = None,
        tensor_parallel: int = 1,
        device_map: str | None = None,
    ) -> NativeBackend:
        """Load a checkpoint's folder or Hub id; see `load_native`, and `SplitModel` for several ranks."""
        split = None
        if dtype == FASTEST and (tensor_parallel > 1 or device_map is not None):
            raise InvalidOption(
                "dtype 'fastest' is tried in one process on one device; give the dtype by its name"
            )
        if tensor_parallel > 1:
            if device_map is not None:
                raise InvalidOption(
                    "tensor_parallel and device_map exclude each other; leave one out"
                )
            split = SplitModel(model, tensor_parallel, device=device, dtype=dtype)
            network, processor = split.words, split.processor
        else:
            loaded_as = "auto" if dtype == FASTEST else dtype
            network, processor = load_native(
                model, device=device, dtype=loaded_as, device_map=device_map
            )
        folder = Path(model)
        home = folder if folder.is_dir() else None
        name = folder.resolve().name if home else str(model)
        make = partial(cls, network, processor, name, folder=home, objective=objective)
        if dtype != FASTEST:
            return make(split=split)
        tried = make()
        chosen = fastest(tried.writer, objective_of(objective))
        tried.close()
        network.to(chosen.dtype)
        return make(dtype_why=str(chosen))

    @property
    def writer(self) -> Any:
        """The language model whose steps an engine runs.

        Raises:
            InvalidOption: there is no engine, requests take turns.
        """
        if isinstance(self.loop, EngineLoop):
            return self.loop.model
        raise InvalidOption(
            f"{self.name} has no steps of an engine to try: {self.loop.one_by_one}; give the dtype by"
            " its name"
        )

    def _make_loop(
        self, max_len: int, adaptive: Adaptive, split: SplitModel | None
    ) -> OwnLoop | EngineLoop:
        if split is not None:
            return EngineLoop(split, split.assembled(adaptive))
        if len(devices_of(self.model)) > 1:
            return OwnLoop(
                self.model, "it lies on several devices (device_map), a step after the other"
            )
        merger, kinds = Merger(self.model, self.model), sorted(self.prompter.kinds)
        if kinds:
            try:
                merger = merger_of(self.model, map(self.prompter.sample, kinds))
                sample = self.prompter.sample
                merger.try_joining([(sample(kind), sample(kind, 1)) for kind in kinds])
            except IncompatibleModel as why:
                return OwnLoop(self.model, f"it runs by transformers' own loop: {why}")
        made = assemble(merger.words, max_len, adaptive, dtype_why=self._dtype_why)
        return EngineLoop(merger, made)

    def capabilities(self) -> Capabilities:
        """What this checkpoint can do; what it was validated on, it does not say."""
        made = type(self.processor).__name__
        if "dicom" in self.prompter.modalities:
            family = self.prompter.family
            made += (
                f", CT by {' and '.join(family.ct_profiles)}, {family.num_slices} slices at most"
            )
        return Capabilities(
            self.name, self.prompter.modalities, (), self._max_len, False,
            self._weights_sha256, made, knows_forms=False,
            one_by_one=self.loop.one_by_one, json_schema=self._grammars.possible,
        )  # fmt: skip

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_sha256(self._folder)

    def novelty(self, study: Study) -> Novelty | None:
        """None: no checkpoint tells what it was validated on."""
        return None

    def load(self) -> Load:
        """How busy this backend is now."""
        load = self.loop.load()
        return replace(load, measured=load.measured | self.prompter.measures.told())

    def diagnose(self) -> Diagnosis:
        """What was chosen on this machine, and why; an engine runs a few steps to see."""
        told = self.loop.diagnose()
        return replace(told, choices=(*told.choices, *mapped(self.model)))

    def close(self) -> None:
        """Let go of threads and memory; answers under way end as cancelled."""
        self.loop.close()

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What `generate` would take; exact for words, a guess where media's processor is not run.

        Raises:
            ContextOverflow: words and answer do not fit the model's context.
            InputError: a medium that is missing, a text or a turn that the model refuses.
        """
        options = options or GenerateOptions()
        sizes = measure_media(messages)
        if not sizes:
            with self._lock:
                prompt = self.prompter.write(messages, options.choices)
                most = self._check_length(prompt, options)
            return Estimate(prompt.tensors["input_ids"].shape[1], most)
        family = self.prompter.family
        letters = sum(len(message.text) for message in messages)
        most = family.num_slices * len(family.ct_profiles)
        pictures = sum(s.num_shown(most) for s in sizes)
        heard = sum(s.seconds for s in sizes if s.modality == "audio")
        tokens = letters // _LETTERS_PER_TOKEN + pictures * _TOKENS_PER_PICTURE
        tokens += int(heard * _TOKENS_PER_SECOND)
        with self._lock:
            return Estimate(tokens, self._longest(options), sizes)

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events; see `Backend.generate`.

        Raises:
            IncompatibleModel: a medium that the model does not take.
            InputError: a medium that cannot be read, a text or a turn that the model refuses.
            ContextOverflow: prompt and answer do not fit the model's context.
        """
        options, asked_s = options or GenerateOptions(), time.monotonic()
        started = time.perf_counter()
        with self._lock:
            prompt = self.prompter.write(messages, options.choices, options.tenant)
            choices = tuple(tuple(self.prompter.encode_choice(c, prompt)) for c in options.choices)
            self._check_length(prompt, options)
            constraint = self._constraint(options)
        events = self.loop.answer(
            Request(
                prompt, options, self._decoder, asked_s, time.perf_counter() - started,
                choices, self._end_ids, constraint,
            )
        )  # fmt: skip
        try:
            yield from events
        finally:
            events.close()  # type: ignore[attr-defined]

    def _constraint(self, options: GenerateOptions) -> JsonConstraint | None:
        return self._grammars.json(options.json_schema) if options.json_schema else None

    @cached_property
    def _grammars(self) -> Grammars:
        vocab_size = self.model.config.get_text_config(decoder=True).vocab_size
        return Grammars(self.prompter.tokenizer, vocab_size, self._end_ids)

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.prompter.tokenizer.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [ends])

    def _check_length(self, prompt: Prompt, options: GenerateOptions) -> int:
        """Tokens of the answer at most; refuses what the context cannot hold."""
        length, most = prompt.tensors["input_ids"].shape[1], self._longest(options)
        if length + most > self._max_len:
            raise ContextOverflow(
                f"the prompt takes {length} tokens and the answer up to {most}, but {self.name}"
                f" holds {self._max_len}; shorten the text, give fewer pictures"
                " or let it answer in fewer tokens"
            )
        return most

    def _longest(self, options: GenerateOptions) -> int:
        """Tokens of the answer at most."""
        choices = [len(self.prompter.encode_choice(choice)) for choice in options.choices]
        return max(choices, default=options.max_new_tokens)
