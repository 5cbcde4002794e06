"""The native backend: a checkpoint that transformers implements, multimodal or reading only.

Its processor writes the prompt (`multimodal.native_prompt`), its own `generate` prepares the model,
and the answer is made here token by token. The last study's keys and values are kept, so that a
further question about it costs only its own words. Knows no pipeline and no report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from encoders.errors import ContextOverflow
from multimodal.backends import (
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Novelty,
    Token,
    Usage,
)
from multimodal.engine import sequence as seq
from multimodal.engine.grammar import Grammars, JsonConstraint
from multimodal.engine.sampling import pick
from multimodal.loading import weights_sha256
from multimodal.messages import Message, Study
from multimodal.native_families import family_of
from multimodal.native_loading import load_native
from multimodal.native_prompt import Prompt, Prompter
from multimodal.rewind import can_crop, crop, fork, slides
from multimodal.sizes import measure_media
from multimodal.streaming import Answer

_LETTERS_PER_TOKEN, _TOKENS_PER_PICTURE, _TOKENS_PER_SECOND = 4, 256, 25  # as most models have it


@dataclass
class _Prefix:
    """Keys and values of a prompt that was run; `key` says of which media and for whom."""

    key: tuple[str, str]
    ids: list[int]
    cache: Any
    rope: Any = None  # what Qwen's models remember of the pictures' places


@dataclass
class _Run:
    """A prompt under way: the model's state after the tokens so far, and the logits after them."""

    model: Any
    ids: torch.Tensor
    state: dict[str, Any]
    logits: torch.Tensor  # [vocabulary]

    def step(self, token: int) -> None:
        """Take a token and compute the logits after it."""
        self.ids = torch.cat([self.ids, self.ids.new_tensor([[token]])], 1)
        inputs = self.model.prepare_inputs_for_generation(
            self.ids, next_sequence_length=1, **self.state
        )
        output = self.model(**inputs, return_dict=True)
        self.state = self.model._update_model_kwargs_for_generation(output, self.state)
        self.logits = output.logits[0, -1].float()

    def log_probability(self, tokens: Sequence[int]) -> float:
        """Of these tokens as the beginning of the answer; the run itself stays where it is."""
        here = replace(self, state=dict(self.state))
        if (cache := here.state.get("past_key_values")) is not None and len(tokens) > 1:
            here.state["past_key_values"] = fork(cache)
        total = float(self.logits.log_softmax(-1)[tokens[0]])
        for before, token in pairwise(tokens):
            here.step(before)
            total += float(here.logits.log_softmax(-1)[token])
        return total


class NativeBackend:
    """Runs a checkpoint of transformers in this process.

    Several threads may ask at once: answers are made token by token in turn.
    """

    def __init__(
        self, model: Any, processor: Any, name: str = "native", *, folder: Path | None = None
    ) -> None:
        self.model, self.processor, self.name, self._folder = model, processor, name, folder
        text_config = model.config.get_text_config(decoder=True)
        self._max_len = int(getattr(text_config, "max_position_embeddings", 0) or 2**31)
        family = family_of(model.config.model_type)
        self.prompter = Prompter(processor, family, name, self._max_len)
        self._lock = threading.Lock()
        self._prefix: _Prefix | None = None
        self._running, self._closed = 0, False

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str = "auto", dtype: str = "auto"
    ) -> NativeBackend:
        """Load a checkpoint's folder or Hub id; see `load_native`."""
        network, processor = load_native(model, device=device, dtype=dtype)
        folder = Path(model)
        home = folder if folder.is_dir() else None
        return cls(network, processor, folder.resolve().name if home else str(model), folder=home)

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
            one_by_one="it runs by transformers' own loop",
        )  # fmt: skip

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_sha256(self._folder)

    def novelty(self, study: Study) -> Novelty | None:
        """None: no checkpoint tells what it was validated on."""
        return None

    def load(self) -> Load:
        """How busy this backend is now; it answers one after the other."""
        return Load(running=min(self._running, 1), waiting=max(self._running - 1, 0), slots=1)

    def close(self) -> None:
        """Let go of what is kept of the last study; answers under way end as cancelled."""
        self._closed, self._prefix = True, None

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What `generate` would take; the tokens of media are a guess, as their processor is not run."""
        sizes = measure_media(messages)
        family = self.prompter.family
        letters = sum(len(message.text) for message in messages)
        most = family.num_slices * len(family.ct_profiles)
        pictures = sum(min(s.frames, most) for s in sizes)
        heard = sum(s.seconds for s in sizes if s.modality == "audio")
        tokens = letters // _LETTERS_PER_TOKEN + pictures * _TOKENS_PER_PICTURE
        tokens += int(heard * _TOKENS_PER_SECOND)
        return Estimate(tokens, self._longest(options or GenerateOptions()), sizes)

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
        self._running += 1
        try:
            # inference mode is entered for each step, never left on in the caller's code
            events = torch.inference_mode()(self._answer)(messages, options, asked_s)
            while True:
                # answers are made in turns, so that one abandoned half-way holds nobody up
                with self._lock:
                    event = next(events, None)
                if event is None:
                    return
                yield event
        finally:
            self._running -= 1

    # --- prompt -> keys and values ------------------------------------------------------------

    def _answer(
        self, messages: Sequence[Message], options: GenerateOptions, asked_s: float
    ) -> Iterator[Token | Finished]:
        if options.queue_s is not None and time.monotonic() - asked_s > options.queue_s:
            yield Finished("", "timeout", Usage(0, 0, 0))
            return
        started = time.perf_counter()
        prompt = self.prompter.write(messages, options.choices, options.tenant)
        ids = prompt.tensors["input_ids"][0]
        self._check_length(len(ids), options)
        cache = self._shared(prompt, options.tenant)
        usage = Usage(len(ids), 0, 0 if cache is not None else prompt.num_media,
                      {"encode": time.perf_counter() - started})  # fmt: skip
        events: list[Any] = []
        answer = Answer(events.append, self.prompter.tokenizer, options,
                        Finished("", "stop", usage, problems=prompt.problems))  # fmt: skip
        run = self._prefill(prompt, cache)
        sequence = seq.Sequence(
            options, torch.empty(0), ids.numpy(), answer.tell, asked_s=asked_s,
            begun_s=time.monotonic(), constraint=self._constraint(options),
        )  # fmt: skip
        try:
            for outcome in self._outcomes(run, sequence, prompt):
                if not answer.tell(outcome):  # a stop string
                    answer.tell(seq.Ended("stop"))
                yield from events
                if any(isinstance(event, Finished) for event in events):
                    return
                events.clear()
        finally:
            self._keep(run, prompt, options.tenant)

    def _outcomes(
        self, run: _Run, sequence: seq.Sequence, prompt: Prompt
    ) -> Iterator[seq.Picked | seq.Scored | seq.Ended]:
        """What becomes of a prompt that was run, token by token."""
        options = sequence.options
        if options.choices:
            choices = (self._encode_choice(choice, prompt) for choice in options.choices)
            yield seq.Scored(tuple(map(run.log_probability, choices)))
            yield seq.Ended("stop")
            return
        for count in range(options.max_new_tokens):
            if count:
                run.step(sequence.tokens[-1])
            if self._closed or sequence.is_late(time.monotonic()):
                yield seq.Ended("cancelled" if self._closed else "timeout")
                return
            (picked,) = pick(run.logits[None], [sequence])
            if picked.token in self._end_ids:
                yield seq.Ended("stop")
                return
            if sequence.constraint is not None:
                sequence.constraint.advance(picked.token)
            sequence.tokens.append(picked.token)
            yield picked
        yield seq.Ended("length")

    def _constraint(self, options: GenerateOptions) -> JsonConstraint | None:
        return self._grammars.json(options.json_schema) if options.json_schema else None

    @cached_property
    def _grammars(self) -> Grammars:
        vocab_size = self.model.config.get_text_config(decoder=True).vocab_size
        return Grammars(self.prompter.tokenizer, vocab_size, self._end_ids)

    def _encode_choice(self, choice: str, prompt: Prompt | None = None) -> list[int]:
        """A choice's tokens; after a colon the answer begins with a space."""
        lead = " " if prompt and prompt.text.endswith(":") else ""
        return self.prompter.tokenizer.encode(lead + choice, add_special_tokens=False)

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.prompter.tokenizer.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [ends])

    def _check_length(self, length: int, options: GenerateOptions) -> None:
        most = self._longest(options)
        if length + most > self._max_len:
            raise ContextOverflow(
                f"the prompt takes {length} tokens and the answer up to {most}, but {self.name}"
                f" holds {self._max_len}; shorten the text or give fewer pictures"
            )

    def _longest(self, options: GenerateOptions) -> int:
        """Tokens of the answer at most."""
        choices = [len(self._encode_choice(choice)) for choice in options.choices]
        return max(choices, default=options.max_new_tokens)

    def _prefill(self, prompt: Prompt, cache: DynamicCache | None) -> _Run:
        """The model after the prompt; of media that `cache` holds already only the words run."""
        tensors = {k: self._moved(v) for k, v in prompt.tensors.items()}
        if cache is None:
            cache = self._new_cache()
        else:
            words = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
            tensors = {k: v for k, v in tensors.items() if k in words}
        return self.model.generate(
            **tensors,
            past_key_values=cache,
            custom_generate=_begin,
            do_sample=False,
            max_new_tokens=1,
        )

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.model.device, dtype)

    def _new_cache(self) -> DynamicCache | None:
        """An empty cache that can be wound back; None for models that bring one of their own."""
        if getattr(self.model, "_is_stateful", False):
            return None
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        cache.activate_past_recording()
        return cache

    def _shared(self, prompt: Prompt, tenant: str) -> DynamicCache | None:
        """The last prompt's cache, wound back to what both have in common; None where it is no use."""
        old, self._prefix = self._prefix, None  # taken: no other request may crop it now
        if old is None or old.key != (prompt.media_key, tenant):
            return None
        ids = prompt.tensors["input_ids"][0].tolist()
        shared, limit = 0, min(len(old.ids), len(ids) - 1)
        while shared < limit and old.ids[shared] == ids[shared]:
            shared += 1
        if prompt.media_tokens[shared:].any():
            return None
        if slides(old.cache) and prompt.media_tokens.any():
            # always to the same place: a window that was wound back can't be wound back further
            shared = int(prompt.media_tokens.nonzero().max()) + 1
        if not crop(old.cache, shared):
            return None
        if old.rope is not None:
            self.model.model.rope_deltas = old.rope
        return old.cache

    def _keep(self, run: _Run, prompt: Prompt, tenant: str) -> None:
        cache = run.state.get("past_key_values")
        if cache is None or not can_crop(cache):
            return
        ids = run.ids[0, : cache.get_seq_length()].tolist()
        rope = getattr(getattr(self.model, "model", None), "rope_deltas", None)
        self._prefix = _Prefix((prompt.media_key, tenant), ids, cache, rope)


def _begin(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **state: Any,
) -> _Run:
    """What `generate` calls in place of its own loop, with everything prepared: runs the prompt."""
    output = model._prefill(input_ids, generation_config, state)
    state = model._update_model_kwargs_for_generation(output, state)
    return _Run(model, input_ids, state, output.logits[0, -1].float())
