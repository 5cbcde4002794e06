"""PS3.15 Table E.1-1 as data: what to do with an attribute under the profile and its options.

`attributes.csv` and `devices.csv` are made by `make_tables.py`. Knows tags and letters, no files.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from encoders.errors import InvalidOption

EDITION = "2026c"
Action = Literal["X", "Z", "D", "U", "K", "C"]
RETAIN = (
    "uids", "device", "institution", "patient", "dates", "modified-dates", "safe-private",
)  # fmt: skip
CLEAN = ("pixels", "graphics", "structured-content", "descriptors")
# CID 7050: the code that tells of each option; 113102, clean recognizable features, is not ours
CODES = {
    "pixels": ("113101", "Clean Pixel Data Option"),
    "graphics": ("113103", "Clean Graphics Option"),
    "structured-content": ("113104", "Clean Structured Content Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
    "dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "modified-dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
    "safe-private": ("113111", "Retain Safe Private Option"),
    "institution": ("113112", "Retain Institution Identity Option"),
}
BASIC = ("113100", "Basic Application Confidentiality Profile")
_PRIVATE, _CURVE = "GGGGEEEE", "50XXXXXX"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    `action` is the profile's, possibly a compound (`X/Z/D`); `type` and `nested_type` are the
    strictest Type the attribute has in PS3.3, in the data set itself and inside sequences;
    `options` holds K or C for each option that overrides the profile.
    """

    tag: str
    name: str
    action: str
    type: str
    nested_type: str
    options: Mapping[str, Action]

    def basic(self, nested: bool) -> Action:
        """The profile's action, a compound decided by the strictest Type, so the result is valid.

        Type 3 is removed, Type 2 emptied, Type 1 given a dummy, where the compound offers it, else
        the next stricter. `X/Z/U*` keeps the sequence with its UIDs replaced, valid for any Type.
        """
        offered = self.action.split("/")
        if "U*" in offered:
            return "K"
        kind = (self.nested_type if nested else self.type) or "3"
        wishes = {"1": "DZXU", "2": "ZDXU", "3": "XZDU"}[kind]
        chosen = next(letter for letter in wishes if letter in offered)
        return chosen  # type: ignore[return-value]


@dataclass(frozen=True)
class Profile:
    """The basic profile with some options on.

    Raises:
        InvalidOption: an option that does not exist, or both kinds of dates.
    """

    retain: frozenset[str] = frozenset()
    clean: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for given, known in ((self.retain, RETAIN), (self.clean, CLEAN)):
            if given - set(known):
                strange = ", ".join(sorted(given - set(known)))
                raise InvalidOption(f"unknown option {strange}; there are {', '.join(known)}")
        if {"dates", "modified-dates"} <= self.retain:
            raise InvalidOption("retain either dates or modified-dates, not both")

    def action(self, row: Row, *, nested: bool = False) -> Action:
        """What to do with an attribute; an option's K beats another's C beats the profile."""
        found = {row.options[o] for o in self.retain | self.clean if o in row.options}
        return "K" if "K" in found else "C" if "C" in found else row.basic(nested)

    def codes(self) -> list[tuple[str, str]]:
        """Code value and meaning of the profile and each option, for (0012,0064)."""
        return [BASIC, *(CODES[o] for o in CODES if o in self.retain | self.clean)]


def row_of(tag: int) -> Row | None:
    """The row of an attribute, those of whole groups included; None where the table has none."""
    group = tag >> 16
    if group % 2:
        return table()[_PRIVATE]
    if group & 0xFF00 == 0x5000:
        return table()[_CURVE]
    if group & 0xFF00 == 0x6000:
        return table().get(f"60XX{tag & 0xFFFF:04X}")
    return table().get(f"{tag:08X}")


@cache
def table() -> Mapping[str, Row]:
    """Every row by its tag in eight hexadecimal digits, X and G standing for any."""
    rows = {}
    for record in read_csv("attributes.csv"):
        options = {o: record[o.replace("-", "_")] for o in (*RETAIN, *CLEAN) if o != "pixels"}
        rows[record["tag"]] = Row(
            record["tag"], record["name"], record["action"], record["type"],
            record["nested_type"], {o: letter for o, letter in options.items() if letter},
        )  # fmt: skip
    return rows


def read_csv(name: str) -> Iterable[dict[str, Any]]:
    """The records of a data file beside this one, its comment lines left out."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return csv.DictReader(line for line in lines if not line.startswith("#"))
