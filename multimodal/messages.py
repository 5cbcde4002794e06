"""Messages: the one input type of every door (API, CLI, server, UI, batch).

A `Message` is a role and parts. `from_openai` reads OpenAI content parts, extended by
`{"type": "dicom", "dicom": ...}`; nothing here decodes media.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoders.errors import InvalidMessage

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PilImage

    from encoders.dicom.volume import Volume

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Text:
    """Words."""

    text: str


@dataclass(frozen=True)
class Image:
    """A picture: a file or a PIL image."""

    image: Path | PilImage


@dataclass(frozen=True)
class Video:
    """A moving picture in a file."""

    video: Path


@dataclass(frozen=True)
class Audio:
    """A recording: a file, or mono samples with their rate in Hz."""

    audio: Path | np.ndarray
    rate_hz: int | None = None


@dataclass(frozen=True)
class Study:
    """A DICOM input: a file, folder or zip (its default series is used), or a loaded volume."""

    study: Path | Volume


Part = Text | Image | Video | Audio | Study


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The words of this turn, media left out."""
        return " ".join(part.text for part in self.parts if isinstance(part, Text))


def user(*parts: Part | str) -> Message:
    """A user turn; plain strings become `Text` parts."""
    return Message("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


def from_openai(messages: Sequence[Mapping[str, Any]], first: int = 0) -> list[Message]:
    """Messages from OpenAI / Hugging Face chat dicts, counted from `first` where one is wrong.

    Raises:
        InvalidMessage: a role or part this project does not know, named in the message.
    """
    return [_message(message, index) for index, message in enumerate(messages, first)]


def _message(message: Mapping[str, Any], index: int) -> Message:
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise InvalidMessage(
            f"messages[{index}].role is {role!r}; use 'system', 'user' or 'assistant'"
        )
    content = message.get("content", "")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise InvalidMessage(
            f"messages[{index}].content must be a string or a list of parts,"
            f" not {type(content).__name__}"
        )
    return Message(
        role, tuple(_part(p, f"messages[{index}].content[{i}]") for i, p in enumerate(content))
    )


def _part(part: Mapping[str, Any], where: str) -> Part:
    kind = part.get("type")
    value = next((part[k] for k in (kind, "url", "path") if k in part), None) if kind else None
    if value is None:
        raise InvalidMessage(f"{where} has type {kind!r} but no value under that name")
    if kind == "text":
        return Text(str(value))
    if isinstance(value, str):
        value = Path(value)
    if kind == "image":
        return Image(value)
    if kind == "video":
        return Video(value)
    if kind == "audio":
        return Audio(value, part.get("rate_hz"))
    if kind == "dicom":
        return Study(value)
    raise InvalidMessage(
        f"{where}.type is {kind!r}; known parts are text, image, video, audio and dicom"
    )
