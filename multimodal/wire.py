"""Messages as OpenAI's content parts: what of them leaves for a server, and in which form.

Pictures go as PNG of their pixels alone, sound as 16 kHz WAV, a study as labelled pictures by a
view profile. Nothing else of a file goes: no name, no header, no metadata.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.errors import InvalidMessage
from encoders.features import Problem
from multimodal import prompts
from multimodal.drawing import picture_of, sound_of, study_views, view_pictures
from multimodal.measures import Measures
from multimodal.messages import Audio, Image, Message, Part, Study, Text, value_of

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

NUM_PICTURES = 32  # of one study, at most


@dataclass(frozen=True)
class Written:
    """Messages as JSON, the number of media drawn anew, and what was wrong with media."""

    messages: tuple[Mapping[str, Any], ...]
    num_encoded: int
    problems: tuple[Problem, ...] = ()

    @property
    def has_media(self) -> bool:
        """Whether anything but words is sent."""
        return any(not isinstance(message["content"], str) for message in self.messages)


@dataclass(frozen=True)
class _Drawn:
    """A medium as content parts."""

    parts: tuple[Mapping[str, Any], ...]
    problems: tuple[Problem, ...] = ()


class Wire:
    """Writes messages; the last loaded study is kept, so that further questions draw nothing."""

    def __init__(self) -> None:
        self.measures = Measures()
        self._last: tuple[str, _Drawn] = ("", _Drawn(()))

    def write(
        self, messages: Sequence[Message], choices: Sequence[str] = (), tenant: str = ""
    ) -> Written:
        """Messages as JSON, the last one asking for one of `choices` if there are any.

        A study is kept for its tenant only.

        Raises:
            InputError: a medium that cannot be read, or whose pictures may show patient data.
            InvalidMessage: a video, which the protocol does not know.
        """
        written: list[Mapping[str, Any]] = []
        problems: list[Problem] = []
        num_encoded = 0
        for message in messages:
            content: list[Mapping[str, Any]] = []
            for part in message.parts:
                drawn, new = self._draw(part, tenant)
                content += drawn.parts
                problems += drawn.problems
                num_encoded += new
            if choices and message is messages[-1]:
                content.append(_text(prompts.ONE_OF.format(choices=", ".join(choices))))
            written.append({"role": message.role, "content": _plain(content)})
        return Written(tuple(written), num_encoded, tuple(dict.fromkeys(problems)))

    def _draw(self, part: Part, tenant: str) -> tuple[_Drawn, bool]:
        """A part as content parts, and whether it is a medium drawn anew."""
        if isinstance(part, Text):
            return _Drawn((_text(part.text),)), False
        kind, value = value_of(part)
        digest = getattr(value, "digest", "") if isinstance(part, Study) else ""
        key = digest and f"{tenant} {digest}"
        if key and self._last[0] == key:
            return self._last[1], False
        with self.measures.timed("media_decode_seconds", kind):
            drawn = _drawn(part)
        if key:
            self._last = (key, drawn)
        return drawn, True


def _drawn(part: Part) -> _Drawn:
    if isinstance(part, Image):
        return _picture(part)
    if isinstance(part, Audio):
        return _recording(part)
    if not isinstance(part, Study):
        raise InvalidMessage(
            "the OpenAI protocol takes no video; give single pictures of it instead"
        )
    return _study(part)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _plain(content: list[Mapping[str, Any]]) -> str | list[Mapping[str, Any]]:
    """Words alone as a string, the form that every server and chat template takes."""
    if all(part["type"] == "text" for part in content):
        return "\n".join(part["text"] for part in content)
    return content


def _png(image: PilImage) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _picture(part: Image) -> _Drawn:
    image, problems = picture_of(part)
    return _Drawn((_png(image),), problems)


def _recording(part: Audio) -> _Drawn:
    from encoders.audio import RATE_HZ

    samples = sound_of(part)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    return _Drawn(({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},))


def _study(part: Study) -> _Drawn:
    """Each view's picture with its label behind it, as MedGemma's own prompts have them."""
    (views,) = study_views(part, ("medgemma-ct",), NUM_PICTURES)
    parts: list[Mapping[str, Any]] = []
    for picture, label in zip(view_pictures(views), views.labels, strict=True):
        parts += [_png(picture), _text(label)]
    return _Drawn(tuple(parts), views.problems)
