"""How a native checkpoint runs that the engine cannot: by transformers' own steps, in turns of a token.

Its own `generate` prepares the model, so whatever a family does with positions, masks and media is
done as there. The last study's keys and values are kept. Tensors and token ids in, events out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from encoders.errors import InvalidPixels
from multimodal.backends import Finished, GenerateOptions, Load, Token, Usage
from multimodal.engine import sequence as seq
from multimodal.engine.doctor import Choice, Diagnosis, placed
from multimodal.engine.engine import NOT_FINITE
from multimodal.engine.sampling import pick
from multimodal.native_families import ADAPTERS
from multimodal.native_merging import moved
from multimodal.native_prompt import Prompt
from multimodal.rewind import can_crop, crop, fork, slides
from multimodal.streaming import Answer


@dataclass(frozen=True)
class Request:
    """A prompt and what is wanted of the model.

    Attributes:
        asked_s: when it came, by the monotonic clock.
        encode_s: seconds that the prompt took to write, and its media to encode.
        choices: token ids of each choice.
        ends: tokens that end an answer.
    """

    prompt: Prompt
    options: GenerateOptions
    tokenizer: Any
    asked_s: float
    encode_s: float
    choices: tuple[tuple[int, ...], ...] = ()
    ends: frozenset[int] = frozenset()
    constraint: seq.Constraint | None = None

    def answer(self, put: Callable[[Any], None], num_encoded: int) -> Answer:
        """What turns outcomes into events."""
        timings_s = {"encode": self.encode_s}
        told = self.prompt.tokens_by_modality
        usage = Usage(len(self.ids), 0, num_encoded, timings_s, told)
        finished = Finished("", "stop", usage, problems=self.prompt.problems)
        return Answer(put, self.tokenizer, self.options, finished)

    def sequence(
        self,
        embeds: torch.Tensor,
        content: np.ndarray,
        tell: Callable[[seq.Outcome], bool],
        turns: np.ndarray | None = None,
    ) -> seq.Sequence:
        """The request as the engine sees it."""
        return seq.Sequence(
            self.options, embeds, content, tell, self.ends, self.choices, self.constraint,
            turns, asked_s=self.asked_s,
        )  # fmt: skip

    @property
    def ids(self) -> torch.Tensor:
        """Tokens of the prompt, `[length]`."""
        return self.prompt.tensors["input_ids"][0]


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
    rope: Any = None

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


class OwnLoop:
    """Runs requests by transformers' own steps; several are answered in turns of a token.

    Args:
        model: the checkpoint.
        one_by_one: why it does not run on the engine.
    """

    def __init__(self, model: Any, one_by_one: str) -> None:
        self.model, self.one_by_one = model, one_by_one
        self._lock = threading.Lock()
        self._prefix: _Prefix | None = None
        self._running, self._closed = 0, False
        loaded = getattr(model, "peft_config", ())
        self._adapters = {
            kind: name
            for kind, name in ADAPTERS.get(model.config.model_type, {}).items()
            if name in loaded
        }
        self._used: str | None = None

    def capacity(self) -> int:
        """Positions that fit; as many as the model was made for."""
        return 2**31

    def load(self) -> Load:
        """How busy it is now."""
        return Load(running=min(self._running, 1), waiting=max(self._running - 1, 0), slots=1)

    def diagnose(self) -> Diagnosis:
        """Where it runs and why no engine runs it; nothing is chosen by measuring."""
        return Diagnosis(
            (*placed(self.model), Choice("batching", "one by one", self.one_by_one)), {}
        )

    def forget(self) -> None:
        """Let go of what is kept of the last study."""
        self._prefix = None

    def close(self) -> None:
        """Let go of everything; answers under way end as cancelled."""
        self._closed, self._prefix = True, None

    def answer(self, request: Request) -> Iterator[Token | Finished]:
        """The events of a request; closing the iterator cancels it."""
        self._running += 1
        try:
            # inference mode is entered for each step, never left on in the caller's code
            events = torch.inference_mode()(self._answer)(request)
            while True:
                # in turns, so that an answer abandoned half-way holds nobody up
                with self._lock:
                    event = next(events, None)
                if event is None:
                    return
                yield event
        finally:
            self._running -= 1

    def _answer(self, request: Request) -> Iterator[Token | Finished]:
        events: list[Any] = []
        cache = self._shared(request.prompt, request.options.tenant)
        num_encoded = len(request.prompt.kinds) if cache is None else 0
        answer = request.answer(events.append, num_encoded)
        sequence = request.sequence(torch.empty(0), request.ids.numpy(), answer.tell)
        if sequence.is_late(time.monotonic()):
            answer.tell(seq.Ended("timeout"))
            yield from events
            return
        sequence.begun_s = time.monotonic()
        adapter = self._adapter_for(request.prompt)
        self._use(adapter)
        run: _Run | None = self._prefill(request.prompt, cache)
        try:
            assert run is not None
            for outcome in self._outcomes(run, sequence):
                if not answer.tell(outcome):  # a stop string
                    answer.tell(seq.Ended("stop"))
                yield from events
                self._use(adapter)  # others may have had their turns
                if any(isinstance(event, Finished) for event in events):
                    return
                events.clear()
        except Exception:  # passed on; a step that failed half-way left keys of some layers only
            run = None
            raise
        finally:
            if run is not None:
                self._keep(run, request)

    def _outcomes(self, run: _Run, sequence: seq.Sequence) -> Iterator[seq.Outcome]:
        """What becomes of a prompt that was run, token by token."""
        if sequence.choices:
            yield seq.Scored(tuple(map(run.log_probability, sequence.choices)))
            yield seq.Ended("stop")
            return
        for count in range(sequence.options.max_new_tokens):
            if count:
                run.step(sequence.tokens[-1])
            if self._closed or sequence.is_late(time.monotonic()):
                yield seq.Ended("cancelled" if self._closed else "timeout")
                return
            if not bool(run.logits.amax().isfinite()):
                raise InvalidPixels(NOT_FINITE)
            (picked,) = pick(run.logits[None], [sequence])
            if picked.token in sequence.ends:
                yield seq.Ended("stop")
                return
            if sequence.constraint is not None:
                sequence.constraint.advance(picked.token)
            sequence.tokens.append(picked.token)
            yield picked
        yield seq.Ended("length")

    def _adapter_for(self, prompt: Prompt) -> str | None:
        """The adapter for seeing where there are pictures, else the one for hearing, else none."""
        fitting = (name for kind, name in self._adapters.items() if kind in prompt.kinds)
        return next(fitting, None)

    def _use(self, adapter: str | None) -> None:
        if adapter == self._used:
            return
        if adapter is None:
            self.model.disable_adapters()
        else:
            self.model.enable_adapters()
            self.model.set_adapter(adapter)
        self._used = adapter

    def _prefill(self, prompt: Prompt, cache: DynamicCache | None) -> _Run:
        """The model after the prompt; of media that `cache` holds already only the words run."""
        tensors = moved(self.model, prompt.tensors)
        if cache is None:
            cache = self._new_cache()
        else:
            words = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
            tensors = {k: v for k, v in tensors.items() if k in words}
        return self.model.generate(
            **tensors, past_key_values=cache, custom_generate=_begin, do_sample=False,
            max_new_tokens=1,
        )  # fmt: skip

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

    def _keep(self, run: _Run, request: Request) -> None:
        cache = run.state.get("past_key_values")
        if cache is None or not can_crop(cache):
            return
        ids = run.ids[0, : cache.get_seq_length()].tolist()
        key = (request.prompt.media_key, request.options.tenant)
        self._prefix = _Prefix(key, ids, cache, run.rope)


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
    rope = getattr(getattr(model, "model", None), "rope_deltas", None)
    return _Run(model, input_ids, state, output.logits[0, -1].float(), rope)
