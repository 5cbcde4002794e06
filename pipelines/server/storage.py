"""Uploaded files: kept for a while, under random names, each seen by its own tenant alone.

They lie in a private folder that goes with the server. Names given by users are told back to their
owner and nowhere else.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.server.failures import ApiError, too_large
from pipelines.server.settings import Settings

_MIB = 2**20


def no_such_file() -> ApiError:
    """There is no file of this name, or it is another's, or it has expired."""
    return ApiError(404, "no such file; it may have expired", "file_not_found")


@dataclass(frozen=True)
class StoredFile:
    """One upload."""

    id: str
    tenant: str
    path: Path
    num_bytes: int
    filename: str
    purpose: str
    created: float
    expires: float

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id, "object": "file", "bytes": self.num_bytes, "filename": self.filename,
            "purpose": self.purpose, "created_at": int(self.created),
            "expires_at": int(self.expires), "status": "processed",
        }  # fmt: skip


class Store:
    """All uploads of one server; safe to use from any thread."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._files: dict[str, StoredFile] = {}
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="crossread-files-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def add(
        self, source: BinaryIO, tenant: str, filename: str, *, purpose: str, keep_s: float | None
    ) -> StoredFile:
        """Keep a copy of an upload.

        Raises:
            ApiError: 413, the tenant has no room left.
        """
        self.sweep()
        name = f"file-{secrets.token_hex(12)}"
        path = self._folder / name
        with path.open("xb") as file:
            shutil.copyfileobj(source, file)
        now, size = self._clock(), path.stat().st_size
        kept = min(keep_s or self._settings.keep_s, self._settings.keep_s)
        stored = StoredFile(name, tenant, path, size, filename, purpose, now, now + kept)
        with self._lock:
            used = sum(f.num_bytes for f in self._files.values() if f.tenant == tenant)
            fits = used + size <= self._settings.max_stored_mib * _MIB
            if fits:
                self._files[name] = stored
        if not fits:
            path.unlink()
            raise too_large(
                f"your files may take {self._settings.max_stored_mib:g} MiB; delete some", "file"
            )
        return stored

    def get(self, tenant: str, name: str) -> StoredFile:
        """A tenant's file.

        Raises:
            ApiError: 404, there is none of this name, or it is another's, or it has expired.
        """
        self.sweep()
        found = self._files.get(name)
        if found is None or found.tenant != tenant:
            raise no_such_file()
        return found

    def of(self, tenant: str) -> list[StoredFile]:
        """A tenant's files, the newest first."""
        self.sweep()
        mine = [f for f in list(self._files.values()) if f.tenant == tenant]
        return sorted(mine, key=lambda f: f.created, reverse=True)

    def delete(self, tenant: str, name: str) -> None:
        """Remove a tenant's file; raises as `get` does."""
        self._drop(self.get(tenant, name))

    def sweep(self) -> None:
        """Remove what has expired."""
        now = self._clock()
        for file in list(self._files.values()):
            if file.expires <= now:
                self._drop(file)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _drop(self, file: StoredFile) -> None:
        with self._lock:
            self._files.pop(file.id, None)
        file.path.unlink(missing_ok=True)
