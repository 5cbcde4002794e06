"""Stand-ins by a keyed hash: the same value and key give the same stand-in, and nobody without the
key can go back or check a guess (HMAC-SHA256, RFC 2104).

Knows values and dates, no tags.
"""

from __future__ import annotations

import base64
import hmac
import re
import uuid
from datetime import date, timedelta

MIN_KEY_BYTES = 16
MAX_SHIFT_DAYS = 3650
DUMMY_DATE = "19000101"
_STANDARD_UIDS = "1.2.840.10008."  # SOP classes, syntaxes, coding schemes: they identify nobody


class Pseudonyms:
    """Stand-ins under one key.

    Args:
        key: at least 16 bytes, from `secrets.token_bytes`; who has it can link and check guesses.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256")

    def uid(self, value: str) -> str:
        """A UID for a UID (PS3.5 B.2, from a UUID); those of the standard itself stay."""
        bare = value.strip(" \0")
        if not bare or bare.startswith(_STANDARD_UIDS):
            return bare
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', bare)[:16], version=4).int}"

    def word(self, kind: str, value: str) -> str:
        """Sixteen capitals and digits for a value, fit for every VR of names, labels and codes."""
        return "ANON" + base64.b32encode(self._digest(kind, value.strip(" \0"))).decode()[:12]

    def shift_days(self, patient: str) -> int:
        """By how many days the dates of a patient move, always into the past."""
        number = int.from_bytes(self._digest("dates", patient)[:8], "big")
        return -1 - number % MAX_SHIFT_DAYS


def shifted(value: str, days: int) -> str | None:
    """A date (DA) or date and time (DT) moved by days, its time and zone kept; None if it is none.

    Years or months alone (PS3.5 6.2 allows them in DT) cannot be moved and give None.
    """
    found = re.fullmatch(r"(\d{4})[.]?(\d{2})[.]?(\d{2})(\d{0,6}(?:\.\d{1,6})?)([+-]\d{4})?", value)
    if found is None:
        return None
    try:
        moved = date(int(found[1]), int(found[2]), int(found[3])) + timedelta(days)
    except (ValueError, OverflowError):
        return None
    return f"{moved:%Y%m%d}{found[4]}{found[5] or ''}" if moved.year >= 1000 else None
