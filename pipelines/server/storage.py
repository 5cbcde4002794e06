"""Uploaded files: kept for a while, under random names, each seen by its own tenant alone.

Names given by users are told back to their owner and nowhere else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.server.failures import ApiError, too_large
from pipelines.server.settings import Settings
from pipelines.server.shelf import Shelf

_MIB = 2**20


def no_such_file() -> ApiError:
    """There is no file of this name, or it is another's, or it has expired."""
    return ApiError(404, "no such file; it may have expired", "file_not_found")


@dataclass(frozen=True)
class StoredFile:
    """One upload."""

    id: str
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
    """All uploads of one server, or of all replicas that share the folder.

    Args:
        folder: where they lie.
        settings: how much a tenant may keep and how long.
        clock: tells seconds since the epoch.
    """

    def __init__(
        self, folder: Path, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._clock = settings, clock
        self._shelf = Shelf(folder, "file", clock)

    def add(
        self, source: BinaryIO, tenant: str, filename: str, *, purpose: str, keep_s: float | None
    ) -> StoredFile:
        """Keep a copy of an upload.

        Raises:
            ApiError: 413, the tenant has no room left.
        """
        name = self._shelf.new_name()
        path = self._shelf.path(name)
        with path.open("xb") as file:
            shutil.copyfileobj(source, file)
        now, size = self._clock(), path.stat().st_size
        if sum(f.num_bytes for f in self.of(tenant)) + size > self._settings.max_stored_mib * _MIB:
            path.unlink()
            raise too_large(
                f"your files may take {self._settings.max_stored_mib:g} MiB; delete some", "file"
            )
        kept = min(keep_s or self._settings.keep_s, self._settings.keep_s)
        stored = StoredFile(name, size, filename, purpose, now, now + kept)
        self._shelf.put(name, asdict(stored), tenant, keep_s=kept)
        return stored

    def get(self, tenant: str, name: str) -> StoredFile:
        """A tenant's file.

        Raises:
            ApiError: 404, there is none of this name, or it is another's, or it has expired.
        """
        found = self._shelf.get(tenant, name)
        if found is None:
            raise no_such_file()
        return StoredFile(**found)

    def path(self, tenant: str, name: str) -> Path:
        """Where a tenant's file lies; raises as `get` does."""
        return self._shelf.path(self.get(tenant, name).id)

    def of(self, tenant: str) -> list[StoredFile]:
        """A tenant's files, the newest first."""
        mine = [StoredFile(**document) for document in self._shelf.of(tenant)]
        return sorted(mine, key=lambda f: f.created, reverse=True)

    def delete(self, tenant: str, name: str) -> None:
        """Remove a tenant's file; raises as `get` does."""
        self._shelf.drop(self.get(tenant, name).id)

    def sweep(self) -> None:
        """Remove what has expired."""
        self._shelf.sweep()
