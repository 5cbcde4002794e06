"""Chat completions, completions and token counts, as OpenAI's protocol has them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from encoders.features import Problem
from multimodal.backends import Finished, GenerateOptions, Logprob, Token, Usage
from multimodal.messages import Message, user
from pipelines.server.admission import Ticket
from pipelines.server.bodies import ChatBody, CompletionBody, TextPart, TokenizeBody, Turn
from pipelines.server.desk import Desk
from pipelines.server.exchange import Exchange
from pipelines.server.failures import refused
from pipelines.server.media import Media

Event = Token | Finished


@dataclass(frozen=True)
class _Form:
    """How one of the two protocols writes an answer."""

    endpoint: str
    prefix: str
    whole: str
    chunk: str

    def head(self, desk: Desk, *, chunk: bool) -> dict[str, Any]:
        """What every object of an answer begins with."""
        return {
            "id": f"{self.prefix}-{uuid.uuid4().hex}", "object": self.chunk if chunk else self.whole,
            "created": int(time.time()), "model": desk.name,
        }  # fmt: skip

    def choice(
        self, text: str | None, told: Sequence[Logprob] | None, reason: str | None, *, chunk: bool
    ) -> dict[str, Any]:
        """One piece of an answer, or all of it; no text in a stream's last chunk."""
        logprobs = None if told is None else _logprobs(told)
        base = {"index": 0, "logprobs": logprobs, "finish_reason": reason}
        if self.endpoint == "completions":
            return {**base, "text": text or ""}
        if chunk:
            return {**base, "delta": {} if text is None else {"content": text}}
        return {**base, "message": {"role": "assistant", "content": text, "refusal": None}}


_CHAT = _Form("chat", "chatcmpl", "chat.completion", "chat.completion.chunk")
_PLAIN = _Form("completions", "cmpl", "text_completion", "text_completion")


async def chat(desk: Desk, exchange: Exchange) -> None:
    """POST /v1/chat/completions."""
    async with desk.admitted(exchange) as ticket:
        body = await exchange.read(ChatBody)
        desk.check_model(body.model)
        options = body.options(desk.settings.max_new_tokens)
        media = desk.media(ticket)
        messages = await _read(media, body.messages)
        await _answer(desk, exchange, ticket, _CHAT, _Asked(body, messages, options))


async def complete(desk: Desk, exchange: Exchange) -> None:
    """POST /v1/completions: the prompt is put to the model as a user's turn."""
    async with desk.admitted(exchange) as ticket:
        body = await exchange.read(CompletionBody)
        desk.check_model(body.model)
        options = body.options(desk.settings.max_new_tokens)
        asked = _Asked(body, [user(body.prompt)], options)
        await _answer(desk, exchange, ticket, _PLAIN, asked)


async def tokenize(desk: Desk, exchange: Exchange) -> None:
    """POST /v1/tokenize: how many tokens a prompt takes, its media counted by their headers."""
    async with desk.admitted(exchange) as ticket:
        body = await exchange.read(TokenizeBody)
        desk.check_model(body.model)
        media = desk.media(ticket)
        if (body.prompt is None) == (body.messages is None):
            raise refused("prompt", "give either it or messages")
        messages = [user(body.prompt or "")]
        if body.messages is not None:
            messages = await _read(media, body.messages)
        estimate = await desk.weigh(ticket, messages, GenerateOptions(max_new_tokens=1))
        limit = desk.capabilities.max_len
        await exchange.answer({"count": estimate.prompt_tokens, "max_model_len": limit})


async def _read(media: Media, turns: Sequence[Turn]) -> list[Message]:
    """A conversation: words at once, media on a thread, as looking at them may take long."""
    if all(isinstance(part, TextPart) for turn in turns for part in turn.content):
        return media.messages(turns)
    return await asyncio.to_thread(media.messages, turns)


@dataclass(frozen=True)
class _Asked:
    """A request, read."""

    body: ChatBody | CompletionBody
    messages: Sequence[Message]
    options: GenerateOptions


async def _answer(
    desk: Desk, exchange: Exchange, ticket: Ticket, form: _Form, asked: _Asked
) -> None:
    await desk.weigh(ticket, asked.messages, asked.options)
    work = desk.run(ticket, lambda backend: backend.generate(asked.messages, asked.options))
    async with aclosing(work) as events:
        if asked.body.stream:
            finished = await _stream(desk, exchange, form, asked, events)
        else:
            finished = await _whole(desk, exchange, form, asked, events)
    desk.meters.finished(form.endpoint, time.monotonic() - ticket.entered, finished.reason)


async def _whole(
    desk: Desk, exchange: Exchange, form: _Form, asked: _Asked, events: AsyncGenerator[Event, None]
) -> Finished:
    told: list[Logprob] | None = None if asked.options.logprobs is None else []
    async for event in events:
        if isinstance(event, Token) and told is not None:
            told += event.logprobs
    finished = _ended(event)
    choice = form.choice(finished.text, told, finished.reason, chunk=False)
    answer = {**form.head(desk, chunk=False), "choices": [choice], "usage": _usage(finished.usage)}
    await exchange.answer(answer | _warnings(finished.problems))
    return finished


async def _stream(
    desk: Desk, exchange: Exchange, form: _Form, asked: _Asked, events: AsyncGenerator[Event, None]
) -> Finished:
    head = form.head(desk, chunk=True)
    usage: dict[str, Any] = {"usage": None} if asked.body.wants_usage else {}

    async def send(*choices: Mapping[str, Any], **more: Any) -> None:
        await exchange.event({**head, "choices": choices, **usage, **more})

    first: dict[str, Any] = {"role": "assistant"} if form is _CHAT else {}
    async for event in events:
        if isinstance(event, Finished):
            break
        told = None if asked.options.logprobs is None else event.logprobs
        choice = form.choice(event.text, told, None, chunk=True)
        if first:
            choice["delta"], first = {**first, **choice["delta"]}, {}
        await send(choice)
    finished = _ended(event)
    last = form.choice(None, None, finished.reason, chunk=True)
    await send(last, **_warnings(finished.problems))
    if asked.body.wants_usage:
        await send(usage=_usage(finished.usage))
    await exchange.event("[DONE]")
    await exchange.end_events()
    return finished


def _ended(event: Event) -> Finished:
    assert isinstance(event, Finished), "a backend must end with Finished"
    return event


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.new_tokens,
        "total_tokens": usage.prompt_tokens + usage.new_tokens,
    }


def _warnings(problems: Sequence[Problem]) -> dict[str, Any]:
    """What was wrong with media, beside OpenAI's own fields; nothing if nothing was."""
    return {"warnings": [asdict(p) for p in problems]} if problems else {}


def _logprobs(told: Sequence[Logprob]) -> dict[str, Any]:
    content = [
        {**_token(t.text, t.logprob), "top_logprobs": [_token(*pair) for pair in t.top]}
        for t in told
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
