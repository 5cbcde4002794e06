"""What a browser sends -> what the pipelines take, and what they give back as files for a while."""

from __future__ import annotations

import base64
import mimetypes
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoders.errors import InvalidMessage, MissingInput
from multimodal.backends import DEMO
from multimodal.messages import Audio, Image, Part, Study, Video

KEEP_S = 1800  # uploads and results are deleted after half an hour
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
_CONTAINERS = (".mp4", ".mov", ".mkv", ".avi", ".webm")  # a phone's video or a browser's dictation


def new_place() -> Path:
    """A folder (not made yet) with a name nobody can guess, in Gradio's cache, which forgets it."""
    from gradio.utils import get_upload_folder

    return Path(get_upload_folder()) / secrets.token_hex(32)


def received(file: Any) -> Path:
    """A file of an endpoint's call: Gradio's description of an upload, or a data URL.

    Raises:
        InvalidMessage: neither.
    """
    if isinstance(file, Mapping):
        return Path(file["path"])
    head, comma, data = str(file).partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise InvalidMessage("give a file as an upload, or as a data:…;base64 URL")
    ending = mimetypes.guess_extension(head[len("data:") :].partition(";")[0]) or ""
    path = new_place() / f"file{ending}"
    path.parent.mkdir(parents=True)
    try:
        path.write_bytes(base64.b64decode(data, validate=True))
    except ValueError as error:
        raise InvalidMessage("the data URL is not base64; encode the file again") from error
    return path


@contextmanager
def one_input(files: Sequence[Path]) -> Iterator[Path]:
    """One upload as it is; several as one folder, each under its own name, while the block runs."""
    if len(files) == 1:
        yield files[0]
        return
    with tempfile.TemporaryDirectory(prefix="crossread-") as folder:
        yield _gathered(files, Path(folder))


def _gathered(files: Sequence[Path], folder: Path) -> Path:
    for number, file in enumerate(files):  # names may repeat: each gets a folder of its own
        link(file, folder / f"{number:05d}" / file.name)
    return folder


def link(file: Path, place: Path) -> Path:
    """A second name for a file, without copying it where both lie on one disk."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.hardlink_to(file.resolve())
    except OSError:
        shutil.copyfile(file, place)
    return place


def parts_of(files: Sequence[Path], folder: Path) -> tuple[Part, ...]:
    """Media in their order; DICOM files that come together are one study, gathered in a folder."""
    parts: list[Part] = []
    slices = [f for f in files if _kind(f) is Study]
    for file in files:
        kind = _kind(file)
        if kind is not Study:
            parts.append(kind(file))
        elif file == slices[0]:
            parts.append(Study(file if len(slices) == 1 else _gathered(slices, folder)))
    return tuple(parts)


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
