"""Messages: the one input type of every door (API, CLI, server, UI, batch).

A `Message` is a role and parts. `from_openai` reads OpenAI content parts, extended by
`{"type": "dicom", "dicom": ...}`; nothing here decodes sound, video or DICOM.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoders.errors import InvalidMessage

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PilImage

    from encoders.dicom import Series, Volume

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
    """A recording: a file, a file's bytes, or samples with their rate in Hz."""

    audio: Path | bytes | np.ndarray
    rate_hz: int | None = None


@dataclass(frozen=True)
class Study:
    """A DICOM input: a path (its default series is used), a series, or a loaded volume.

    Attributes:
        window: centre and width in HU, to be shown in place of the model's own windows.
        frames: pictures at most, evenly chosen, where the model would take more.

    Raises:
        InvalidMessage: a width that is not above 0, or no picture.
    """

    study: Path | Series | Volume
    window: tuple[float, float] | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not self.window[1] > 0:
            raise InvalidMessage(f"window has the width {self.window[1]:g} HU; it must be above 0")
        if self.frames is not None and self.frames < 1:
            raise InvalidMessage(f"frames is {self.frames}; at least 1 picture must be shown")


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

    A part is `{"type": "text", "text": …}`, or `image`, `video`, `audio` or `dicom` with its value
    under its type's name, `url` or `path`; `dicom` also with `window` and `frames`, see `Study`. OpenAI's `image_url` (a data URL) and `input_audio`
    (base64) are read too; nothing is fetched from the network.

    Raises:
        InvalidMessage: a role or part this project does not know, named in the message.
    """
    return [
        _message(message, f"messages[{index}]") for index, message in enumerate(messages, first)
    ]


def to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Chat dicts that `from_openai` reads back as the same messages."""
    return [
        {"role": message.role, "content": [_part_dict(part) for part in message.parts]}
        for message in messages
    ]


def value_of(part: Part) -> tuple[str, Any]:
    """A part's type name and value; a recording with its rate is a pair.

    A study that is to be shown in another way than the model's is its own value.
    """
    if isinstance(part, Text):
        return "text", part.text
    if isinstance(part, Image):
        return "image", part.image
    if isinstance(part, Video):
        return "video", part.video
    if isinstance(part, Study):
        plain = part.window is None and part.frames is None
        return "dicom", part.study if plain else part
    return "audio", part.audio if part.rate_hz is None else (part.audio, part.rate_hz)


def _part_dict(part: Part) -> dict[str, Any]:
    kind, value = value_of(part)
    if isinstance(part, Audio):
        return {"type": kind, "audio": part.audio, "rate_hz": part.rate_hz}
    if isinstance(part, Study):
        asked = {"window": part.window, "frames": part.frames}
        told = {name: wish for name, wish in asked.items() if wish is not None}
        return {"type": kind, kind: part.study, **told}
    return {"type": kind, kind: value}


def _message(message: Mapping[str, Any], where: str) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidMessage(f"{where} must be a dict with role and content, not {_type(message)}")
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise InvalidMessage(f"{where}.role is {role!r}; use 'system', 'user' or 'assistant'")
    content = message.get("content", "")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidMessage(
            f"{where}.content must be a string or a list of parts, not {_type(content)}"
        )
    return Message(role, tuple(_part(p, f"{where}.content[{i}]") for i, p in enumerate(content)))


def _part(part: Mapping[str, Any], where: str) -> Part:
    if not isinstance(part, Mapping):
        raise InvalidMessage(f"{where} must be a dict with a type, not {_type(part)}")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _BUILD:
        raise InvalidMessage(
            f"{where}.type is {kind!r}; known parts are text, image, video, audio and dicom"
        )
    value = next((part[k] for k in (kind, "url", "path") if part.get(k) is not None), None)
    if value is None:
        raise InvalidMessage(f"{where} has type {kind!r} but no value under that name")
    try:
        return _BUILD[kind](value, part)
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidMessage(
            f"{where} of type {kind!r} has a value that cannot be used ({error})"
        ) from error


def _text(value: Any, _part: Mapping[str, Any]) -> Text:
    return Text(_checked(value, str))


def _image(value: Any, _part: Mapping[str, Any]) -> Image:
    if hasattr(value, "convert") or hasattr(value, "__array__"):  # a PIL picture or an array
        return Image(value)
    return Image(Path(_checked(value, str, Path)))


def _video(value: Any, _part: Mapping[str, Any]) -> Video:
    return Video(Path(_checked(value, str, Path)))


def _audio(value: Any, part: Mapping[str, Any]) -> Audio:
    rate = part.get("rate_hz")
    if isinstance(value, tuple) and len(value) == 2:
        value, rate = value
    if not isinstance(value, bytes) and not hasattr(value, "__array__"):
        value = Path(_checked(value, str, Path))
    return Audio(value, None if rate is None else _checked(rate, int))


def _study(value: Any, part: Mapping[str, Any]) -> Study:
    if not (hasattr(value, "voxels") or hasattr(value, "pixels")):  # no volume nor its views
        value = Path(_checked(value, str, Path))
    window, frames = part.get("window"), part.get("frames")
    if window is not None:
        center, width = window
        window = (float(_checked(center, int, float)), float(_checked(width, int, float)))
    return Study(value, window, None if frames is None else _checked(frames, int))


def _image_url(value: Any, _part: Mapping[str, Any]) -> Image:
    from io import BytesIO

    import PIL.Image

    url = _checked(value["url"] if isinstance(value, Mapping) else value, str)
    head, comma, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        raise ValueError("an image_url must be a data:image/…;base64 URL; give files as 'image'")
    try:
        return Image(PIL.Image.open(BytesIO(base64.b64decode(data, validate=True))))
    except OSError as error:
        raise ValueError("the data is no picture") from error


def _input_audio(value: Any, _part: Mapping[str, Any]) -> Audio:
    return Audio(base64.b64decode(_checked(value["data"], str), validate=True))


_BUILD: dict[str, Callable[[Any, Mapping[str, Any]], Part]] = {
    "text": _text, "image": _image, "video": _video, "audio": _audio, "dicom": _study,
    "image_url": _image_url, "input_audio": _input_audio,
}  # fmt: skip


def _checked(value: Any, *types: type) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError(f"a {_type(value)}, not {' or '.join(t.__name__ for t in types)}")
    return value


def _type(value: object) -> str:
    return type(value).__name__
