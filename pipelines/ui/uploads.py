"""What a browser sends -> what the pipelines take, and what they give back as files for a while."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoders.errors import MissingInput
from multimodal.backends import DEMO
from multimodal.messages import Audio, Image, Message, Part, Study, Text, Video

KEEP_S = 1800  # uploads and results are deleted after half an hour
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
_CONTAINERS = (".mp4", ".mov", ".mkv", ".avi", ".webm")  # a phone's video or a browser's dictation


@contextmanager
def one_input(files: Sequence[Path]) -> Iterator[Path]:
    """One upload as it is; several as one folder, each under its own name, while the block runs."""
    if len(files) == 1:
        yield files[0]
        return
    with tempfile.TemporaryDirectory(prefix="crossread-") as folder:
        for number, file in enumerate(files):  # names may repeat: each gets a folder of its own
            place = Path(folder) / f"{number:05d}"
            place.mkdir()
            _link(file, place / file.name)
        yield Path(folder)


def _link(file: Path, place: Path) -> None:
    """A second name for a file, without copying it where both lie on one disk."""
    try:
        place.hardlink_to(file.resolve())
    except OSError:
        shutil.copyfile(file, place)


def messages_of(history: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Gradio's history as messages; what one side said in a row is one message."""
    turns: list[tuple[Any, list[Path], list[str]]] = []
    for turn in history:
        if not turns or turns[-1][0] != turn["role"]:
            turns.append((turn["role"], [], []))
        content = turn["content"]
        for item in content if isinstance(content, list | tuple) else [content]:
            if isinstance(item, str):
                turns[-1][2].append(item)
            elif item.get("type") == "text":
                turns[-1][2].append(item["text"])
            else:
                turns[-1][1].append(Path((item.get("file") or item)["path"]))
    return [Message(role, _parts(files, " ".join(words))) for role, files, words in turns]


def message_of(turn: Mapping[str, Any]) -> Message:
    """What is in the chat box: its files, then its words."""
    files = [Path(f if isinstance(f, str) else f["path"]) for f in turn.get("files") or ()]
    return Message("user", _parts(files, turn.get("text") or ""))


def _parts(files: Sequence[Path], words: str) -> tuple[Part, ...]:
    """Media in their order; DICOM files that come together are one study."""
    parts: list[Part] = []
    slices = [f for f in files if _kind(f) is Study]
    for file in files:
        kind = _kind(file)
        if kind is not Study:
            parts.append(kind(file))
        elif file == slices[0]:
            parts.append(_study(slices))
    return (*parts, Text(words)) if words or not parts else tuple(parts)


def _kind(file: Path) -> type[Image] | type[Audio] | type[Video] | type[Study]:
    """By its ending; everything that is no picture, sound or video is taken for DICOM."""
    ending = file.suffix.lower()
    if ending in _PICTURES:
        return Image
    if ending in _RECORDINGS:
        return Audio
    if ending in _CONTAINERS:
        from encoders.video import has_pictures

        return Video if has_pictures(file) else Audio
    return Study


def _study(files: Sequence[Path]) -> Study:
    if len(files) == 1:
        return Study(files[0])
    from encoders.dicom import load_volume

    with one_input(files) as folder:
        return Study(load_volume(folder))


def load_sample() -> tuple[list[str], str]:
    """The shipped study's files and its report.

    Raises:
        MissingInput: this copy of CrossRead has no sample.
    """
    folder = DEMO / "sample"
    if not (folder / "report.txt").is_file():
        raise MissingInput("this installation has no sample study; `make train-demo` makes one")
    files = [str(f) for f in sorted((folder / "study").iterdir())]
    return files, (folder / "report.txt").read_text(encoding="utf-8")
