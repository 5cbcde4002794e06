"""Free conversation about text, pictures, video, sound and DICOM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

from multimodal.backends import Backend, Finished, GenerateOptions, Token, collect
from multimodal.messages import Message, from_openai, user

Chat = str | Message | Sequence[Message] | Sequence[Mapping[str, Any]]


class ChatPipeline:
    """`pipeline("chat")`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @overload
    def __call__(
        self, chat: Chat, options: GenerateOptions | None = None, *, stream: Literal[False] = False
    ) -> Finished: ...
    @overload
    def __call__(
        self, chat: Chat, options: GenerateOptions | None = None, *, stream: Literal[True]
    ) -> Iterator[Token | Finished]: ...

    def __call__(
        self, chat: Chat, options: GenerateOptions | None = None, *, stream: bool = False
    ) -> Finished | Iterator[Token | Finished]:
        """Answer a conversation: a string, messages, or OpenAI-style dicts.

        With `stream` the answer's pieces come as they are made, `Finished` last.

        Raises:
            InvalidMessage: a malformed message.
        """
        events = self.backend.generate(_messages(chat), options)
        if stream:
            return events
        return collect(events)


def _messages(chat: Chat) -> list[Message]:
    if isinstance(chat, str):
        return [user(chat)]
    if isinstance(chat, Message):
        return [chat]
    return [m if isinstance(m, Message) else from_openai([m])[0] for m in chat]
