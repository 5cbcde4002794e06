"""Documents on disk: JSON under random names, each of one tenant and for a while.

Several replicas may share the folder: whatever stands on it is whole, because it is written beside
and then renamed. Knows not what the documents are about.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[a-z]+-[0-9a-f]{24}")
_SWEEP_S = 10.0  # between two looks for what has expired


class Shelf:
    """The documents in a folder.

    Args:
        folder: made if need be, private to this user.
        kind: what every name begins with.
        clock: tells seconds since the epoch.
    """

    def __init__(self, folder: Path, kind: str, clock: Callable[[], float] = time.time) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._kind, self._clock = folder, kind, clock
        self._swept = clock()

    def new_name(self) -> str:
        """A name that nobody can guess."""
        return f"{self._kind}-{secrets.token_hex(12)}"

    def path(self, name: str, suffix: str = "") -> Path:
        """Where something that belongs to a document lies."""
        return self._folder / f"{name}{suffix}"

    def put(self, name: str, document: Mapping[str, Any], tenant: str, *, keep_s: float) -> None:
        """Write a document, in place of what it was."""
        stands = {"tenant": tenant, "expires": self._clock() + keep_s, "document": document}
        fresh = self.path(name, f".{secrets.token_hex(4)}.new")
        fresh.write_text(json.dumps(stands), encoding="utf-8")
        fresh.replace(self.path(name, ".json"))
        if self._clock() - self._swept > _SWEEP_S:
            self.sweep()

    def get(self, tenant: str, name: str) -> dict[str, Any] | None:
        """A tenant's document; None if there is none of this name, or it has expired."""
        if not _NAME.fullmatch(name) or not name.startswith(f"{self._kind}-"):
            return None
        return self._read(self.path(name, ".json"), tenant)

    def of(self, tenant: str) -> list[dict[str, Any]]:
        """All documents of a tenant."""
        read = (self._read(path, tenant) for path in self._folder.glob(f"{self._kind}-*.json"))
        return [document for document in read if document is not None]

    def drop(self, name: str) -> None:
        """Remove a document and all that belongs to it."""
        for path in self._folder.glob(f"{name}*"):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what has expired."""
        self._swept = self._clock()
        for path in self._folder.glob(f"{self._kind}-*.json"):
            stands = _loaded(path)
            if stands is not None and stands["expires"] <= self._clock():
                self.drop(path.stem)

    def _read(self, path: Path, tenant: str) -> dict[str, Any] | None:
        stands = _loaded(path)
        if stands is None or stands["tenant"] != tenant or stands["expires"] <= self._clock():
            return None
        return dict(stands["document"])


def _loaded(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:  # never there, or dropped just now by another replica
        return None
