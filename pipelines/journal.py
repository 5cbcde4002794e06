"""A file of JSON lines that survives `kill -9`: what a long job has done, one line a result.

The first line holds the job's settings. A line is whole on the disk before the next job starts; a
torn last line is cut off when the file is opened again. Knows nothing of what the lines say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from encoders.errors import InvalidOption, UnreadableFile, UnsafeOutput


class Journal:
    """An open journal; `done` maps the key of every line written so far to that line.

    Args:
        path: the file, made where there is none.
        settings: what the results depend on; a journal of other settings is refused.
        key: name of the field that tells lines apart.

    Raises:
        UnsafeOutput: another process has it open, or it is no journal.
        InvalidOption: it was begun with other settings.
        UnreadableFile: a line in its middle is damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], key: str) -> None:
        self._path, self._key = path, key
        self.done: dict[str, Mapping[str, Any]] = {}
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise UnsafeOutput(
                f"{path.name!r} cannot be written: {error.strerror}; choose another --out"
            ) from error
        try:
            self._lock()
            self._resume(dict(settings))
        except BaseException:  # whatever it is, the file and its lock are let go
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on the disk when this returns."""
        self._append(line)
        self.done[str(line[self._key])] = line

    def _append(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UnsafeOutput(
                f"{self._path.name!r} cannot be written on: {error.strerror}; what it holds is"
                " kept, go on when there is room"
            ) from error

    def _lock(self) -> None:
        import fcntl  # the kernel lets go of the lock when the process ends, however it ends

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UnsafeOutput(
                f"another run is writing {self._path.name!r}; wait for it or choose another --out"
            ) from error

    def _resume(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and data and not data.startswith(b'{"settings"'[: len(data)]):
            raise self._foreign()
        if len(whole) < len(data):
            self._file.truncate(len(whole))
        lines = [self._parsed(number, line) for number, line in enumerate(whole.splitlines(), 1)]
        if not lines:
            self._append({"settings": settings})
            return
        begun = lines[0].get("settings")
        if not isinstance(begun, dict):
            raise self._foreign()
        differing = sorted(k for k in {*begun, *settings} if begun.get(k) != settings.get(k))
        if differing:
            raise InvalidOption(
                f"{self._path.name!r} was begun with another {' and '.join(differing)}; go on as"
                " then, or choose another --out"
            )
        self.done = {str(line.get(self._key)): line for line in lines[1:]}

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == 1:
                raise self._foreign() from error
            raise UnreadableFile(
                f"line {number} of {self._path.name!r} is damaged; remove it and its input is read"
                " again"
            ) from error
        if not isinstance(value, dict):
            raise self._foreign()
        return value

    def _foreign(self) -> UnsafeOutput:
        return UnsafeOutput(
            f"{self._path.name!r} is not a file of results and is left as it is; choose another"
            " --out"
        )
