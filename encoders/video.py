"""Moving pictures: frames evenly spaced in time, each with its second. From there on it is vision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from encoders.errors import MissingInput, UnreadableImage

if TYPE_CHECKING:
    from PIL.Image import Image


def sample_frames(path: Path, num_frames: int = 8) -> list[tuple[Image, float]]:
    """Up to `num_frames` (RGB picture, seconds) pairs from the middles of equal stretches.

    Raises:
        MissingInput: no such file.
        UnreadableImage: not a video, or one without frames.
    """
    import av

    if not path.is_file():
        raise MissingInput(f"video {path.name!r} does not exist; check the path")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnreadableImage(f"{path.name!r} has no pictures; give a video file")
            times = [f.time or 0.0 for f in container.decode(video=0)]
            if not times:
                raise UnreadableImage(f"{path.name!r} holds no frame that can be decoded")
            wanted = _middles(len(times), num_frames)
            container.seek(0)
            return [
                (frame.to_image().convert("RGB"), times[index])
                for index, frame in enumerate(container.decode(video=0))
                if index in wanted
            ]
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableImage(
            f"{path.name!r} cannot be decoded as video ({type(error).__name__});"
            " convert it to MP4 and try again"
        ) from error


def _middles(total: int, count: int) -> set[int]:
    count = min(count, total)
    return {int((k + 0.5) * total / count) for k in range(count)}


def has_pictures(path: Path) -> bool:
    """Whether a container holds a moving picture; false for sound alone and what is no container."""
    import av

    try:
        with av.open(str(path)) as container:
            return bool(container.streams.video)
    except (av.FFmpegError, ValueError, OSError):
        return False
