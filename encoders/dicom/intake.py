"""What a DICOM input consists of: file, folder, DICOMDIR, zip or tar -> members by bare name.

Knows containers and their limits. A member of an archive is read in memory when it is asked for;
nothing is unpacked under its own name, so no name or link inside can lead outside. What cannot be
read out of order (tar.gz) is inflated once into a file without a name that goes when it is closed.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from encoders.dicom import tags
from encoders.dicom.elements import Flaw, read_elements, text
from encoders.dicom.kinds import MEDIA_DIRECTORY
from encoders.dicom.vocabulary import shown_name
from encoders.errors import MissingInput, UnreadableFile
from encoders.features import Problem

MAX_MEMBERS = 20_000
MAX_UNPACKED_BYTES = 4 * 2**30
MAX_RATIO = 200
SMALL = 2**26  # what unpacks to less is safe at any ratio
_LOCAL_HEADER = 30  # bytes, then the name and the extra field (APPNOTE 4.3.7)
_MAX_TAR_HEADER = 2**20


@dataclass(frozen=True)
class Packed:
    """A member of a zip or tar, read when asked for."""

    archive: Path | _Nameless
    offset: int  # of its bytes
    packed_size: int
    size: int
    deflated: bool = False
    crc: int | None = None  # CRC-32 of what it unpacks to

    def read_bytes(self) -> bytes:
        """All of it.

        Raises:
            OSError: the archive is gone or the member broken.
        """
        data = self.read_start(self.size)
        if len(data) != self.size or self.crc not in (None, zlib.crc32(data)):
            raise OSError("a broken archive member")
        return data

    def read_start(self, size: int) -> bytes:
        """Up to `size` first bytes."""
        size = min(size, self.size)
        with _opened(self.archive) as file:
            file.seek(self.offset)
            if not self.deflated:
                return file.read(min(size, self.packed_size))
            machine = zlib.decompressobj(-zlib.MAX_WBITS)
            out, left = b"", self.packed_size
            try:
                while len(out) < size and left > 0 and not machine.eof:
                    chunk = file.read(min(left, max(size, 2**16)))
                    left -= len(chunk) or left
                    out += machine.decompress(machine.unconsumed_tail + chunk, size - len(out))
                return out
            except zlib.error as error:
                raise OSError("a broken archive member") from error


@contextmanager
def _opened(archive: Path | _Nameless) -> Iterator[IO[bytes]]:
    if isinstance(archive, Path):
        with archive.open("rb") as file:
            yield file
    else:
        with archive.lock:
            yield archive.file


class _Nameless:
    """A file without a name, there as long as a member refers to it; one reader at a time."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.lock = threading.Lock()

    def __del__(self) -> None:
        self.file.close()


Origin = Path | bytes | Packed
Member = tuple[str, Origin]


def read_start(origin: Origin, size: int) -> bytes:
    """Up to `size` first bytes of a member."""
    if isinstance(origin, bytes):
        return origin[:size]
    if isinstance(origin, Packed):
        return origin.read_start(size)
    with origin.open("rb") as file:
        return file.read(size)


def members(path: Path, problems: list[Problem]) -> Iterator[Member]:
    """Every file of an input by its bare name; what is left out is added to `problems`.

    Raises:
        MissingInput: the path does not exist.
        UnreadableFile: an archive that is broken, or unpacks to more than is safe.
    """
    if not path.exists():
        raise MissingInput(f"{path.name!r} does not exist; give a DICOM file, folder, zip or tar")
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield file.name, file
        return
    try:
        start = read_start(path, 2**10)
    except OSError as error:
        words = f"{shown_name(path.name)!r} cannot be opened ({type(error).__name__})"
        raise UnreadableFile(f"{words}; check its permissions") from error
    if start[:2] == b"PK" and zipfile.is_zipfile(path):
        yield from _zip_members(path, problems)
    elif start[257:262] == b"ustar" or start[:2] == b"\x1f\x8b":
        yield from _tar_members(path, start[:2] == b"\x1f\x8b", problems)
    elif start[128:132] == b"DICM" and MEDIA_DIRECTORY.encode() in start:
        yield from _directory_members(path, problems)
    else:
        yield path.name, path


def _zip_members(path: Path, problems: list[Problem]) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise UnreadableFile(f"{shown_name(path.name)!r} is a broken zip; pack it again") from error
    _require_safe(path, len(entries), sum(e.file_size for e in entries))
    with path.open("rb") as file:
        for entry in entries:
            if not _is_left_out(entry.filename, _flaw_of(entry), problems):
                yield _base_name(entry.filename), _zip_member(path, file, entry)


def _flaw_of(entry: zipfile.ZipInfo) -> str:
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a link"
    if entry.flag_bits & 1:
        return "encrypted"
    plain = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return "" if plain else "packed by another method than deflate; pack it again"


def _zip_member(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> Packed:
    file.seek(max(entry.header_offset, 0) + _LOCAL_HEADER - 4)
    lengths = file.read(4)
    name_and_extra = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    offset = max(entry.header_offset, 0) + _LOCAL_HEADER + name_and_extra
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    return Packed(path, offset, entry.compress_size, entry.file_size, deflated, entry.CRC)


def _tar_members(path: Path, gzipped: bool, problems: list[Problem]) -> Iterator[Member]:
    archive, whole = _inflated(path) if gzipped else (path, True)
    entries: list[tarfile.TarInfo] = []
    with _opened(archive) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - tarfile.BLOCKSIZE, 0))
        whole = whole and not any(file.read(tarfile.BLOCKSIZE))  # a whole one ends with zeros
        file.seek(0)
        try:
            for entry in _tar_entries(path, file):
                if entry.offset_data + entry.size <= end or not _is_plain(entry):
                    entries.append(entry)
                else:
                    whole = False
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            if not entries:
                name = shown_name(path.name)
                raise UnreadableFile(f"{name!r} is a broken tar; pack it again") from error
            whole = False
    if not whole:
        words = f"the archive is broken after {len(entries)} members; the rest is lost"
        problems.append(Problem("TRUNCATED_ARCHIVE", words, path.name))
    for entry in entries:
        flaw = "" if _is_plain(entry) else "a link or device"
        if not _is_left_out(entry.name, flaw, problems):
            yield _base_name(entry.name), Packed(archive, entry.offset_data, entry.size, entry.size)


def _tar_entries(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Members that are no folders, as long as they are safe in number and size."""
    count = total = 0
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        while (entry := tar.next()) is not None:
            if not entry.isdir():
                count, total = count + 1, total + entry.size
                _require_safe(path, count, total)
                yield entry


def _is_plain(entry: tarfile.TarInfo) -> bool:
    return entry.isreg() and not entry.issparse()


def _inflated(path: Path) -> tuple[_Nameless, bool]:
    """What a .gz unpacks to, and whether that is all of it."""
    out, total = _Nameless(), 0
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as packed:
            while chunk := packed.read1(2**16):
                total += len(chunk)
                _require_safe(path, 0, total)
                out.file.write(chunk)
    except (OSError, EOFError, zlib.error):
        return out, False
    return out, True


class _Headers:
    """A file to tarfile, which reads headers of any length into memory; no more than sane ones."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_TAR_HEADER:
            raise tarfile.ReadError("a header larger than any")
        return self.file.read(size)


def _directory_members(path: Path, problems: list[Problem]) -> Iterator[Member]:
    """The files a DICOMDIR refers to (PS3.3 F), as far as they lie under its own folder."""
    try:
        found = read_elements(lambda size: read_start(path, size), tags.DIRECTORY)
    except Flaw as flaw:
        problems.append(Problem(flaw.code, str(flaw), path.name))
        return
    records = found.values.get(tags.DIRECTORY_RECORDS, ())
    if found.flaw:
        problems.append(Problem(found.flaw.code, str(found.flaw), path.name))
    if not records:
        problems.append(Problem("MISSING_FILE", "the DICOMDIR names no file", path.name))
    root, seen = path.parent.resolve(), set()
    for record in records:
        reference = text(record.get(tags.REFERENCED_FILE))
        parts = [part.strip(" \0") for part in reference.split("\\")]
        if not reference or reference in seen:
            continue
        seen.add(reference)
        if any(part in ("", ".", "..") or "/" in part or ":" in part for part in parts):
            problems.append(Problem("UNSAFE_PATH", "a reference that leaves the folder", path.name))
            continue
        file = _find_below(root, parts)
        if file is None or file == root / path.name:
            problems.append(Problem("MISSING_FILE", "named by the DICOMDIR, not there", parts[-1]))
        elif not file.resolve().is_relative_to(root):
            problems.append(Problem("UNSAFE_PATH", "a reference that leaves the folder", path.name))
        elif file.name == path.name:  # some write a directory of directories
            yield from _directory_members(file, problems)
        else:
            yield file.name, file


def _find_below(root: Path, parts: list[str]) -> Path | None:
    """The file a reference means, also where top folders were left off or names put in lower case
    when the disc was copied."""
    for first in range(len(parts)):
        for names in (parts[first:], [part.lower() for part in parts[first:]]):
            if (file := root.joinpath(*names)).is_file():
                return file
    return None


def _require_safe(path: Path, count: int, total: int) -> None:
    ratio = total / max(path.stat().st_size, 1)
    if count > MAX_MEMBERS or total > MAX_UNPACKED_BYTES or (total > SMALL and ratio > MAX_RATIO):
        files = f"{count} files or more, " if count else ""
        raise UnreadableFile(
            f"{shown_name(path.name)!r} unpacks to {files}{total / 2**20:.0f} MiB or more,"
            f" {ratio:.0f} times its size: refused as unsafe"
        )


def _is_left_out(name: str, flaw: str, problems: list[Problem]) -> bool:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        problems.append(Problem("UNSAFE_PATH", "path leaves the archive", _base_name(name)))
    elif flaw:
        problems.append(Problem("UNSAFE_MEMBER", f"not a plain file: {flaw}", _base_name(name)))
    else:
        return False
    return True


def _base_name(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name
