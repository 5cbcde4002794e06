"""How large a medium is, from its headers alone: for admission, before anything is decoded.

A message part in, a `MediaSize` out. Knows no model and counts no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from encoders.errors import MissingInput, UnreadableAudio, UnreadableImage
from multimodal.backends import MediaSize
from multimodal.messages import Message, Study, value_of


def measure_media(messages: Sequence[Message]) -> tuple[MediaSize, ...]:
    """Every medium of a conversation, in order.

    Raises:
        InputError: a medium that is missing, or not what it claims to be.
    """
    values = (value_of(part) for message in messages for part in message.parts)
    return tuple(measure(kind, value) for kind, value in values if kind != "text")


def measure(kind: str, value: Any) -> MediaSize:
    """One medium, as `multimodal.messages.value_of` names it.

    Raises:
        InputError: it is missing, or not what it claims to be.
    """
    return _MEASURES[kind](value)


def _image(value: Any) -> MediaSize:
    if hasattr(value, "shape"):
        return MediaSize("image", _area(value.shape), 1)
    if hasattr(value, "size"):
        return MediaSize("image", value.size[0] * value.size[1], 1)
    from PIL import Image

    path = _existing(value, "image")
    try:
        with Image.open(path) as picture:
            return MediaSize("image", picture.width * picture.height, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(
            f"{path.name!r} is not a picture whose header can be read; save it as PNG or JPEG"
        ) from error


def _video(value: Any) -> MediaSize:
    import av

    path = _existing(value, "video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnreadableImage(f"{path.name!r} has no pictures; give a video file")
            stream = container.streams.video[0]
            seconds = _seconds(container, stream)
            frames = stream.frames or round(seconds * float(stream.average_rate or 25))
            return MediaSize("video", stream.width * stream.height, max(frames, 1), seconds)
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableImage(
            f"{path.name!r} cannot be opened as video ({type(error).__name__});"
            " convert it to MP4 and try again"
        ) from error


def _audio(value: Any) -> MediaSize:
    import av

    samples, rate_hz = value if isinstance(value, tuple) else (value, 16000)
    if hasattr(samples, "shape"):
        return MediaSize("audio", seconds=max(samples.shape, default=0) / (rate_hz or 16000))
    name = "the recording" if isinstance(samples, bytes) else repr(Path(samples).name)
    file = BytesIO(samples) if isinstance(samples, bytes) else str(_existing(samples, "recording"))
    try:
        with av.open(file, mode="r") as container:
            if not container.streams.audio:
                raise UnreadableAudio(f"{name} has no sound track; give a recording")
            return MediaSize("audio", seconds=_seconds(container, container.streams.audio[0]))
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableAudio(
            f"{name} cannot be opened as audio ({type(error).__name__});"
            " convert it to WAV and try again"
        ) from error


def _dicom(value: Any) -> MediaSize:
    if isinstance(value, Study):
        return replace(_dicom(value.study), wanted=value.frames or 0)
    if hasattr(value, "voxels"):
        return MediaSize("dicom", _area(value.voxels.shape[1:]), len(value.voxels))
    if hasattr(value, "pixels"):  # views that are made already
        return MediaSize("dicom", _area(value.pixels.shape[2:]), len(value.pixels))
    from encoders.dicom.pictures import viewable

    series: Any = viewable(value)
    frames = sum(1 if f.frame is not None else f.stored.frames for f in series.files)
    return MediaSize("dicom", series.info.rows * series.info.columns, frames)


def _seconds(container: Any, stream: Any) -> float:
    """Of a stream, else of its container (in microseconds); a file without an index says neither."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _existing(value: Any, what: str) -> Path:
    path = Path(value)
    if not path.is_file():
        raise MissingInput(f"{what} {path.name!r} does not exist; check the path")
    return path


def _area(shape: Any) -> int:
    return int(shape[0]) * int(shape[1])


_MEASURES = {"image": _image, "video": _video, "audio": _audio, "dicom": _dicom}
