"""The remote backend: the model of a server that speaks the OpenAI protocol (vLLM, SGLang, a gateway).

Messages go out as `multimodal.wire` writes them, the answer streams back as events. Knows no
pipeline, and of the model only what the server tells.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from encoders.errors import BadAnswer, NotFound
from encoders.features import Modality
from multimodal.backends import (
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Logprob,
    Novelty,
    Reason,
    Token,
    Usage,
    refuse_options,
)
from multimodal.messages import Message, Study
from multimodal.openai_server import Chunk, NotAccepted, OpenAIServer, Patience
from multimodal.sizes import measure_media
from multimodal.wire import NUM_PICTURES, Wire, Written

_ENDS: dict[str, Reason] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "length": "length", "timeout": "timeout"
}  # fmt: skip
_UNKNOWN_LENGTH = 2**31
_MIN_MASS = 0.5  # of the first token, that must lie on choices for their probabilities to be told
_NUM_LOGPROBS = 20  # the most that OpenAI's protocol and vLLM's default allow
_NOT_OPENAI = ("top_k", "min_p", "repetition_penalty")
_LETTERS_PER_TOKEN, _TOKENS_PER_PICTURE, _TOKENS_PER_SECOND = 4, 256, 25  # as most models have it


@dataclass
class _Answer:
    """An answer as it comes in.

    `first` are the likeliest tokens at its beginning, `told` what the last chunk tells of its own.
    """

    text: str = ""
    reason: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    first: Sequence[Mapping[str, Any]] = ()
    told: Sequence[Mapping[str, Any]] = ()

    def take(self, chunk: Chunk) -> str:
        """Add one chunk of the stream; returns its piece of text."""
        self.usage, self.told = chunk.get("usage") or self.usage, ()
        if not chunk.get("choices"):
            return ""
        choice = chunk["choices"][0]
        self.reason = choice.get("finish_reason") or self.reason
        self.told = (choice.get("logprobs") or {}).get("content") or ()
        if self.told and not self.first:
            self.first = self.told[0].get("top_logprobs") or ()
        piece = choice["delta"].get("content") or ""
        self.text += piece
        return piece

    def logprobs(self) -> tuple[Logprob, ...]:
        """Of the tokens of the last chunk."""
        return tuple(
            Logprob(
                t["token"], float(t["logprob"]),
                top=tuple((o["token"], float(o["logprob"])) for o in t.get("top_logprobs") or ()),
            )
            for t in self.told
            if t["logprob"] is not None
        )  # fmt: skip

    def spent(self, sent: Written, timings_s: Mapping[str, float]) -> Usage:
        """What the server says it cost; 0 tokens where it says nothing."""
        prompt, new = (int(self.usage.get(f"{k}_tokens") or 0) for k in ("prompt", "completion"))
        media_tokens: Mapping[Modality, int] | None = None if sent.has_media else {}
        return Usage(prompt, new, sent.num_encoded, timings_s, media_tokens)


class RemoteBackend:
    """Asks the model of a server; several threads may ask at once.

    Args:
        url: base address, `https://host/v1`; `#name` behind it picks one of several models.
        patience: time limits and retries.

    Raises:
        InvalidOption: an address or key that cannot be used.
        RemoteError: the server cannot be used, or has no such model.
    """

    def __init__(self, url: str, *, patience: Patience | None = None) -> None:
        address, _, wanted = url.partition("#")
        self._server = OpenAIServer(address, patience)
        self._wire = Wire()
        self._tells_logprobs = True
        self.name, self._max_len = self._find_model(wanted)

    def _find_model(self, wanted: str) -> tuple[str, int]:
        """Name and context length of the model to ask."""
        with self._server.sensible():
            entries = self._server.get("models")["data"]
            lengths = {
                str(e["id"]): int(e.get("max_model_len") or _UNKNOWN_LENGTH) for e in entries
            }
        name = next(iter(lengths)) if len(lengths) == 1 and not wanted else wanted
        if name in lengths:
            return name, lengths[name]
        names = ", ".join(sorted(lengths)[:20])[:500] or "none"
        why = f"{wanted!r} is not among them" if wanted else "one must be chosen"
        raise NotFound(
            f"the models of {self._server.host} are: {names}; {why}: write #NAME behind the address"
        )

    def capabilities(self) -> Capabilities:
        """What this backend can do; whether its model sees and hears, no server tells."""
        return Capabilities(
            self.name, frozenset({"text", "image", "audio", "dicom"}), (), self._max_len, False,
            preprocessing=f"OpenAI parts, at most {NUM_PICTURES} pictures of a study",
            knows_forms=False,
        )  # fmt: skip

    def novelty(self, study: Study) -> Novelty | None:
        """None: no server tells what its model was validated on."""
        return None

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What `generate` would take; the tokens are a guess, as only the server can count them."""
        sizes = measure_media(messages)
        letters = sum(len(message.text) for message in messages)
        pictures = sum(s.num_shown(NUM_PICTURES) for s in sizes)
        heard = sum(s.seconds for s in sizes if s.modality == "audio")
        tokens = letters // _LETTERS_PER_TOKEN + pictures * _TOKENS_PER_PICTURE
        new = (options or GenerateOptions()).max_new_tokens
        return Estimate(tokens + int(heard * _TOKENS_PER_SECOND), new, sizes)

    def load(self) -> Load:
        """How long media took to draw; how busy the server is it tells by refusing."""
        return Load(measured=self._wire.measures.told())

    def close(self) -> None:
        """Nothing is held: each request has a connection of its own."""

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events; see `Backend.generate`. Closing the iterator hangs up.

        With `choices` their probabilities are told where the server gives log-probabilities and
        the model's first token decides; else `Finished.choices` is empty.

        Raises:
            InvalidOption: an option that OpenAI's protocol does not have.
            InputError: a part that cannot be read or sent.
            ContextOverflow: the server says that the prompt is too long.
            RemoteError: it cannot be reached, refuses, takes too long or answers nonsense.
        """
        options = options or GenerateOptions()
        refuse_options(options, _NOT_OPENAI, "the OpenAI protocol")
        asked = started = time.perf_counter()
        sent = self._wire.write(messages, options.choices, options.tenant)
        timings_s = {"encode": time.perf_counter() - started}
        answer, started = _Answer(), time.perf_counter()
        for chunk in self._ask(self._body(sent.messages, options), choosing=bool(options.choices)):
            with self._server.sensible():
                piece = answer.take(chunk)
                logprobs = answer.logprobs() if options.logprobs is not None else ()
            if (piece or logprobs) and not options.choices:
                timings_s.setdefault("first_token", time.perf_counter() - started)
                yield Token(piece, logprobs)
            if _is_late(options, time.perf_counter() - asked, answer):
                answer.reason = "timeout"
                break
        timings_s["decode"] = time.perf_counter() - started
        with self._server.sensible():
            usage = answer.spent(sent, timings_s)
            chances = _chances(answer.first, options.choices)
        text = answer.text.strip()
        if options.choices and answer.reason != "timeout":
            text = max(chances, key=chances.__getitem__) if chances else self._chosen(text, options)
        yield Finished(text, self._reason(answer), usage, chances, (), sent.problems)

    def _ask(self, body: dict[str, Any], *, choosing: bool) -> Iterator[Chunk]:
        """The stream; asked for anew without log-probabilities where the server refuses those."""
        try:
            yield from self._server.stream("chat/completions", body)
        except NotAccepted:
            if not choosing:
                raise
            plain = {k: v for k, v in body.items() if k not in ("logprobs", "top_logprobs")}
            yield from self._server.stream("chat/completions", plain)
            self._tells_logprobs = False

    def _body(
        self, messages: Sequence[Mapping[str, Any]], options: GenerateOptions
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name, "messages": messages, "max_tokens": options.max_new_tokens,
            "temperature": 0.0 if options.choices else options.temperature,
            "top_p": options.top_p, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(options, name):
                body[name] = getattr(options, name)
        if options.json_schema:
            schema = {"name": "answer", "schema": json.loads(options.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if options.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": options.logprobs}
        if options.seed is not None:
            body["seed"] = options.seed
        if options.stop:
            body["stop"] = list(options.stop)
        if options.choices and self._tells_logprobs:
            body |= {"logprobs": True, "top_logprobs": _NUM_LOGPROBS}
        return body

    def _chosen(self, text: str, options: GenerateOptions) -> str:
        """The choice that an answer in words begins with, the longest where several fit."""
        said = text.lower().lstrip("\"'*` ")
        fitting = [
            choice
            for choice in options.choices
            if said.startswith(choice.lower()) and not said[len(choice) :][:1].isalnum()
        ]
        if not fitting:
            raise BadAnswer(
                f"{self.name} answers none of {', '.join(options.choices)}; use a model that"
                " follows instructions"
            )
        return max(fitting, key=len)

    def _reason(self, answer: _Answer) -> Reason:
        if answer.reason not in _ENDS:
            why = "its filter" if answer.reason == "content_filter" else "a reason of its own"
            raise BadAnswer(f"{self._server.host} withheld the rest of an answer for {why}")
        return _ENDS[answer.reason]


def _is_late(options: GenerateOptions, spent_s: float, answer: _Answer) -> bool:
    begun = bool(answer.text)
    limits = (options.deadline_s, None if begun else options.queue_s)
    return any(limit is not None and spent_s > limit for limit in limits)


def _chances(first: Sequence[Mapping[str, Any]], choices: Sequence[str]) -> dict[str, float]:
    """Probability of each choice by the answer's likeliest first tokens; {} where they don't tell.

    A token counts for the one choice that it begins. Where most of the probability lies on tokens
    that begin no choice, or several, the first token says too little.
    """
    mass = dict.fromkeys(choices, 0.0)
    for entry in first:
        start = entry["token"].strip(" \n.,:;!\"'*`").lower()
        fitting = [c for c in choices if start and c.lower().startswith(start)]
        if len(fitting) == 1:
            mass[fitting[0]] += math.exp(min(entry["logprob"], 0.0))
    total = sum(mass.values())
    return {c: m / total for c, m in mass.items()} if total >= _MIN_MASS else {}
