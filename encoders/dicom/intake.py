"""What a DICOM input consists of: file, folder or zip -> members, each a name and its bytes or path.

Knows containers and their limits, nothing of DICOM. Archive members are read in memory, so that
no name inside can lead outside.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from encoders.errors import UnreadableFile
from encoders.features import Problem

MAX_MEMBERS = 20_000
MAX_UNPACKED_BYTES = 4 * 2**30
MAX_RATIO = 200


def members(path: Path, problems: list[Problem]) -> Iterator[tuple[str, Path | bytes]]:
    """Every file of an input by its bare name; what is left out is added to `problems`.

    Raises:
        UnreadableFile: an archive that is broken, or unpacks to more than is safe.
    """
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield file.name, file
    elif zipfile.is_zipfile(path):
        yield from _zip_members(path, problems)
    else:
        yield path.name, path


def _zip_members(path: Path, problems: list[Problem]) -> Iterator[tuple[str, bytes]]:
    """Members are read in memory, so no name can escape; sizes are checked before unpacking."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
            total = sum(e.file_size for e in entries)
            packed = max(sum(e.compress_size for e in entries), 1)
            if (
                len(entries) > MAX_MEMBERS
                or total > MAX_UNPACKED_BYTES
                or (total > 2**26 and total / packed > MAX_RATIO)
            ):
                raise UnreadableFile(
                    f"{path.name!r} holds {len(entries)} files that unpack to {total / 2**20:.0f}"
                    f" MiB ({total / packed:.0f} times its size): refused as unsafe"
                )
            for entry in entries:
                name = PurePosixPath(entry.filename).name
                parts = PurePosixPath(entry.filename.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts:
                    problems.append(Problem("UNSAFE_PATH", "path leaves the archive", name))
                    continue
                yield name, archive.read(entry)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
        raise UnreadableFile(
            f"{path.name!r} is a broken or encrypted zip; pack it again"
        ) from error
