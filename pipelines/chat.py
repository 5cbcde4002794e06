"""Free conversation about text, pictures, video, sound and DICOM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast, overload

from encoders.errors import InvalidMessage
from multimodal.backends import Backend, Finished, GenerateOptions, Token, collect
from multimodal.messages import Message, from_openai, user
from pipelines.batch import Failed, run_each

Chat = str | Message | Mapping[str, Any] | Sequence[Message] | Sequence[Mapping[str, Any]]


class ChatPipeline:
    """`pipeline("chat")`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is an iterable of str
        self, chat: Chat, options: GenerateOptions | None = None, *, stream: Literal[False] = False
    ) -> Finished: ...
    @overload
    def __call__(
        self, chat: Chat, options: GenerateOptions | None = None, *, stream: Literal[True]
    ) -> Iterator[Token | Finished]: ...
    @overload
    def __call__(
        self, chat: Iterable[Chat], options: GenerateOptions | None = None
    ) -> Iterator[Finished | Failed]: ...

    def __call__(
        self,
        chat: Chat | Iterable[Chat],
        options: GenerateOptions | None = None,
        *,
        stream: bool = False,
    ) -> Finished | Iterator[Token | Finished] | Iterator[Finished | Failed]:
        """Answer a conversation (a string, messages, OpenAI-style dicts), or each of an iterable.

        With `stream` the answer's pieces come as they are made, `Finished` last.

        Raises:
            InvalidMessage: a malformed message, an empty conversation, many to be streamed.
        """
        if not _is_chat(chat):
            if stream:
                raise InvalidMessage("stream one conversation at a time; many come as answers")
            chats = cast("Iterable[Chat]", chat)
            return run_each(chats, lambda one: self._one(one, options), "chats")
        one = cast("Chat", chat)
        return self.backend.generate(_messages(one), options) if stream else self._one(one, options)

    def _one(self, chat: Chat, options: GenerateOptions | None) -> Finished:
        return collect(self.backend.generate(_messages(chat), options))


def _is_chat(chat: object) -> bool:
    """A sequence of turns is one conversation; any other iterable holds several."""
    if isinstance(chat, str | Message | Mapping):
        return True
    return isinstance(chat, Sequence) and all(isinstance(m, Message | Mapping) for m in chat)


def _messages(chat: Chat) -> list[Message]:
    if isinstance(chat, str):
        return [user(chat)]
    turns: list[Any] = [chat] if isinstance(chat, Message | Mapping) else list(chat)
    if not turns:
        raise InvalidMessage("the conversation is empty; give at least one user message")
    return [m if isinstance(m, Message) else from_openai([m], at)[0] for at, m in enumerate(turns)]
