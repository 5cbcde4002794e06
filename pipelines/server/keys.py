"""API keys: a file of tenants with the SHA-256 of their keys; the keys themselves are nowhere kept.

A line is `tenant:digest`; a tenant may have several. Empty lines and those that begin with # are
passed over.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import InputError, MissingInput

_LINE = re.compile(r"(?P<tenant>[A-Za-z0-9_.-]{1,64}):(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True)
class Keys:
    """Who may ask: (tenant, SHA-256 of a key) pairs."""

    entries: tuple[tuple[str, bytes], ...]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """The keys of a file.

        Raises:
            MissingInput: no such file.
            InputError: a line that is not `tenant:sha256`, or no key at all.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MissingInput(
                f"key file {path.name!r} cannot be read ({type(error).__name__}); see docs/serving.md"
            ) from None
        entries = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise InputError(
                    f"line {number} of key file {path.name!r} is not tenant:sha256; write the"
                    " SHA-256 of the key in hexadecimal, never the key itself"
                )
            entries.append((match["tenant"], bytes.fromhex(match["digest"])))
        if not entries:
            raise InputError(f"key file {path.name!r} holds no key; nobody could ask")
        return cls(tuple(entries))

    @property
    def num_tenants(self) -> int:
        """How many different tenants there are."""
        return len({tenant for tenant, _ in self.entries})

    def tenant_of(self, key: str) -> str | None:
        """Whose key this is, None if nobody's; takes the same time whichever it is."""
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for tenant, known in self.entries:
            if hmac.compare_digest(digest, known):
                found = tenant
        return found
