"""Media of a request: from content parts to messages whose media are files of this request alone.

Writes bytes to a private folder and tells kinds by their first bytes; decodes nothing. Addresses
are fetched from allowed hosts only, never from a private network.
"""

from __future__ import annotations

import binascii
import re
import shutil
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from encoders.errors import RemoteError
from multimodal.messages import Audio, Image, Message, Part, Study, Text, Video
from pipelines.server.bodies import (
    AudioPart,
    FilePart,
    ImagePart,
    MediaOptions,
    MediaPart,
    TextPart,
    Turn,
)
from pipelines.server.failures import ApiError, refused, too_large
from pipelines.server.settings import Settings
from pipelines.server.storage import Store, no_such_file

Kind = type[Image] | type[Audio] | type[Video] | type[Study]
_MIB = 2**20
_PIECE = 2**18  # letters of base64, a multiple of four
_DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_SOUNDS = (b"fLaC", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9")
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b")


def kind_of(file: Path) -> Kind | None:
    """What a file is by its first bytes, None if nothing that a model takes.

    DICOM needs its preamble; an archive is taken for DICOM.
    """
    with file.open("rb") as opened:
        head = opened.read(264)
    if head[128:132] == b"DICM" or head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return Study
    if head.startswith(_PICTURES) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return Image
    if head.startswith(_SOUNDS) or (head[:4], head[8:12]) == (b"RIFF", b"WAVE"):
        return Audio
    if head[4:8] == b"ftyp" or head.startswith((b"\x1aE\xdf\xa3", b"OggS", b"RIFF")):
        from encoders.video import has_pictures

        return Video if has_pictures(file) else Audio
    return None


class Media:
    """The media of one request, in a folder that goes with it.

    Args:
        store: where uploaded files are.
        tenant: whose request it is.
        settings: limits, and the hosts that may be asked.
    """

    def __init__(self, store: Store, tenant: str, settings: Settings) -> None:
        self._store, self._tenant, self._settings = store, tenant, settings
        self._folder: Path | None = None  # made for the first medium: most requests have none
        self._num = 0

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def messages(self, turns: Sequence[Turn]) -> list[Message]:
        """A conversation; DICOM files that follow each other in a turn are one study.

        Raises:
            ApiError: 400, 404 or 413, naming the part.
        """
        return [self._message(turn, f"messages.{at}") for at, turn in enumerate(turns)]

    def file(self, value: str, where: str) -> Path:
        """An uploaded file by its id, or a data URL, as a file of this request."""
        if value.startswith("file-"):
            return self._linked(value)
        return self._from_url(value, where)

    def recording(self, source: BinaryIO) -> Path:
        """A form's file as a file of this request.

        Raises:
            ApiError: 400, 413.
        """
        path = self._fresh()
        with path.open("wb") as file:
            shutil.copyfileobj(source, file)
        if path.stat().st_size > self._settings.max_item_mib * _MIB:
            raise self._too_heavy("file")
        self._typed(path, "file", Audio)
        return path

    def study(self, values: Sequence[str], where: str) -> Path:
        """One DICOM input of one or several files."""
        files = [self.file(value, f"{where}.{at}") for at, value in enumerate(values)]
        for file in files:
            if kind_of(file) is not Study:
                raise _unfit(where, "DICOM or an archive of it")
        return self._together(files)

    def _message(self, turn: Turn, where: str) -> Message:
        parts: list[Part] = []
        bodies = [(body, f"{where}.content.{at}") for at, body in enumerate(turn.content)]
        found = [(self._part(body, named), body, named) for body, named in bodies]
        for is_study, run in groupby(found, lambda each: isinstance(each[0], Study)):
            listed = list(run)
            parts += [self._study(listed)] if is_study else [part for part, *_ in listed]
        role = "system" if turn.role == "developer" else turn.role
        return Message(role, tuple(parts))

    def _part(self, body: TextPart | MediaPart, where: str) -> Part:
        if isinstance(body, TextPart):
            return Text(body.text)
        if isinstance(body, ImagePart):
            return self._typed(self._from_url(body.image_url.url, where), where, Image)
        if isinstance(body, AudioPart):
            return self._typed(self._from_base64(body.input_audio.data, where), where, Audio)
        if isinstance(body, FilePart):
            value = body.file
            given = [v for v in (value.file_id, value.file_data) if v is not None]
            if len(given) != 1:
                raise ApiError(
                    400, f"{where}.file needs one of file_id and file_data", "invalid_value",
                    param=f"{where}.file",
                )  # fmt: skip
            by_id = value.file_id is not None
            path = self._linked(given[0]) if by_id else self._from_url(given[0], where)
            part = self._typed(path, where)
            if body.media_options is not None and not isinstance(part, Study):
                raise refused(f"{where}.media_options", "they go with DICOM")
            return part
        return self._typed(self._from_url(body.video_url.url, where), where, Video)

    def _study(self, files: Sequence[tuple[Part, TextPart | MediaPart, str]]) -> Study:
        """The study of files that follow each other, shown as one of them says.

        Raises:
            ApiError: 400, two of them say it differently.
        """
        options = MediaOptions()
        for _, body, where in files:
            given = body.media_options if isinstance(body, FilePart) else None
            if given is not None and options not in (MediaOptions(), given):
                raise ApiError(
                    400, f"{where}.media_options differ from those of the same study's other files",
                    "invalid_value", param=f"{where}.media_options",
                )  # fmt: skip
            options = given or options
        paths = [part.study for part, *_ in files if isinstance(part, Study)]
        together = self._together([path for path in paths if isinstance(path, Path)])
        asked = options.window
        window = None if asked is None else (asked.center, asked.width)
        return Study(together, window, options.frames)

    def _typed(self, file: Path, where: str, wanted: Kind | None = None) -> Part:
        """A file as the part that it is."""
        kind = kind_of(file)
        if kind is None or (wanted is not None and kind is not wanted):
            what = wanted.__name__.lower() if wanted else "picture, sound, video or DICOM"
            raise _unfit(where, what)
        return kind(file)

    def _from_url(self, url: str, where: str) -> Path:
        if not url.startswith("data:"):
            return self._fetched(url, where)
        head = _DATA.match(url)
        if head is None:
            raise ApiError(
                400, f"{where} must be a data URL in base64 or the address of an allowed host",
                "invalid_value", param=where,
            )  # fmt: skip
        return self._from_base64(url[head.end() :], where)

    def _from_base64(self, text: str, where: str) -> Path:
        if len(text) * 3 / 4 > self._settings.max_item_mib * _MIB + 2:
            raise self._too_heavy(where)
        path = self._fresh()
        try:
            with path.open("wb") as file:  # in pieces, or it would keep everybody waiting for 0.1 s
                for start in range(0, len(text), _PIECE):
                    file.write(binascii.a2b_base64(text[start : start + _PIECE], strict_mode=True))
        except (binascii.Error, ValueError):
            raise ApiError(400, f"{where} is not base64", "invalid_value", param=where) from None
        return path

    def _fetched(self, url: str, where: str) -> Path:
        """A medium of an allowed host; no redirect is followed and no private address asked."""
        from encoders.dicom.guarded import Access, GuardedSession, limited

        host = _host_of(url)
        if not self._settings.media_hosts:
            raise ApiError(
                400, f"{where} is an address, and this server fetches none; send a data URL",
                "remote_url_off", param=where,
            )  # fmt: skip
        refusal = ApiError(
            400, f"{where} cannot be fetched from its host", "remote_url_refused", param=where
        )
        if host not in self._settings.media_hosts:
            raise refusal
        limit, patience_s = int(self._settings.max_item_mib * _MIB), self._settings.queue_s
        path = self._fresh()
        try:
            with GuardedSession(url, Access(max_seconds=patience_s)) as session:
                response = session.get(url, stream=True, timeout=20)
                if response.status_code != 200:
                    raise refusal
                with path.open("wb") as file:
                    file.writelines(limited(response, limit, patience_s))
        except (RemoteError, OSError):  # of requests too, whose errors quote the address
            raise refusal from None
        return path

    def _together(self, files: Sequence[Path]) -> Path:
        """One file as it is, several as a folder of them."""
        if len(files) == 1:
            return files[0]
        folder = self._fresh()
        folder.mkdir()
        for number, file in enumerate(files):
            file.rename(folder / f"{number:05d}")
        return folder

    def _linked(self, name: str) -> Path:
        """A second name for an uploaded file, so that it stays while the request runs."""
        path = self._fresh()
        try:
            path.hardlink_to(self._store.path(self._tenant, name))
        except FileNotFoundError:  # it expired between the two
            raise no_such_file() from None
        except OSError:  # the shared folder lies on another disk
            shutil.copyfile(self._store.path(self._tenant, name), path)
        return path

    def _fresh(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="crossread-request-"))
        self._num += 1
        return self._folder / f"medium-{self._num}"

    def _too_heavy(self, where: str) -> ApiError:
        limit = self._settings.max_item_mib
        return too_large(f"{where} holds more than {limit:g} MiB; upload it to /v1/files", where)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _unfit(where: str, wanted: str) -> ApiError:
    return ApiError(400, f"{where} is not {wanted}", "unsupported_file", param=where)
