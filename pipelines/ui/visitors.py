"""Whose file is it? Each visitor's files in Gradio's cache, which nobody else is to see.

A file belongs to who sent it and to whom the server named it. Browsers are told apart by a cookie;
programs without one are a single visitor, "", whose files are guarded from each other only by
paths that cannot be guessed. `pipelines.ui.guarding` asks here before Gradio serves or takes a
file and tells of tabs that come and go. Knows no study and no request.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

from pipelines.ui.uploads import KEEP_S


class Visitors:
    """Who may have which file below a folder, and what each has sent. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._owners: defaultdict[Path, set[str]] = defaultdict(set)
        self._sent: defaultdict[str, dict[Path, int]] = defaultdict(dict)
        self._tabs: Counter[str] = Counter()
        self._departures: dict[str, object] = {}
        self._swept_s = time.monotonic()

    def inside(self, path: str) -> Path | None:
        """The file below the folder that a path means, None if it lies elsewhere."""
        try:
            file = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a loop of links
            return None
        return file if file.is_relative_to(self.folder) else None

    def grant(self, visitor: str, path: str, *, sent: bool = False) -> None:
        """Let a visitor have a file of the folder, which he may himself have sent."""
        file = self.inside(path)
        if file is None or not file.is_file():
            return
        with self._lock:
            self._owners[file].add(visitor)
            if sent:
                self._sent[visitor][file] = file.stat().st_size

    def may_have(self, visitor: str, path: str) -> bool:
        """Whether a file of the folder was sent by a visitor or named to him."""
        file = self.inside(path)
        with self._lock:
            return file is not None and visitor in self._owners.get(file, ())

    def sent(self, visitor: str) -> tuple[int, int]:
        """How many files of a visitor are here, and their bytes."""
        with self._lock:
            files = self._sent.get(visitor, {})
            return len(files), sum(files.values())

    def arrive(self, visitor: str) -> None:
        """A tab was opened."""
        with self._lock:
            self._tabs[visitor] += 1
            self._departures.pop(visitor, None)

    def leave(self, visitor: str) -> object:
        """A tab was closed; returned is what `let_go` is to be given a while later."""
        departure = object()
        with self._lock:
            self._tabs[visitor] -= 1
            if not self._tabs[visitor]:
                del self._tabs[visitor]
                self._departures[visitor] = departure
        return departure

    def let_go(self, visitor: str, departure: object) -> None:
        """Delete a browser's files, if that was its last tab and none has been opened since."""
        with self._lock:
            if not visitor or self._departures.get(visitor) is not departure:
                return
            del self._departures[visitor]
            files = [file for file, owners in self._owners.items() if visitor in owners]
            for file in files:
                self._owners[file].discard(visitor)
            gone = [file for file in files if not self._owners[file]]
            self._forget(gone)
        self._delete(gone)

    def sweep(self, max_age_s: float = KEEP_S) -> None:
        """Delete what is older, whoever it belongs to."""
        limit = time.time() - max_age_s
        with self._lock:
            self._swept_s = time.monotonic()
            old = [f for f in self.folder.rglob("*") if f.is_file() and f.stat().st_ctime < limit]
            self._forget(old)
        self._delete(old)

    def sweep_in_time(self) -> None:
        """`sweep`, if the last time is a while ago."""
        if time.monotonic() - self._swept_s > KEEP_S / 10:
            self.sweep()

    def _forget(self, files: list[Path]) -> None:
        for file in files:
            self._owners.pop(file, None)
            for sent in self._sent.values():
                sent.pop(file, None)

    def _delete(self, files: list[Path]) -> None:
        """Files and the folders that they leave empty."""
        for file in files:
            file.unlink(missing_ok=True)
            for folder in file.parents:
                if folder == self.folder or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()


@cache
def all_visitors() -> Visitors:
    """This process's visitors, over a cache of Gradio's that is the process's own.

    Call it before a page is built: Gradio asks its environment where the cache is, once.
    """
    from gradio import processing_utils

    folder = Path(tempfile.mkdtemp(prefix="crossread-page-"))  # for this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # paths are hashes of content and this; Gradio keeps one in its package, which an image publishes
    processing_utils.hash_seed = secrets.token_bytes(32)
    return Visitors(folder)
