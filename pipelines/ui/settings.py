"""How one page is run: its model, login and limits, from environment variables.

docs/environment.md has the table. A value that cannot be used is refused by its name; what a
variable holds is never told, since it may be a password.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from encoders.errors import InvalidOption

_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """One page's settings.

    Attributes:
        model: composite folder, Hub id or server; None for the shipped demo checkpoint.
        sparsity: share of MLP neurons left out per token; None as saved.
        logins: names with their passwords; without any, the page is open.
        max_upload_mib: of one file, and `max_session_mib` of all that a visitor uploads.
        max_files: of one visitor.
        max_pixels: of one picture, or of all slices or frames of one study or film.
        max_seconds: of one recording or film.
        max_waiting: requests that may wait; who comes then is told to try later.
        num_at_once: requests that are answered at the same time.
    """

    model: str | None = None
    sparsity: float | None = None
    logins: tuple[tuple[str, str], ...] = ()
    max_upload_mib: int = 1024
    max_session_mib: int = 4096
    max_files: int = 5000
    max_pixels: int = 600_000_000  # a CT of 2,000 slices of 512 x 512 is 524 million
    max_seconds: int = 3600
    max_waiting: int = 32
    num_at_once: int = 4

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """What the variables `CROSSREAD_MODEL`, `CROSSREAD_SPARSITY`, … say; defaults for the rest.

        Raises:
            InvalidOption: a value that cannot be used.
        """
        said = os.environ if environment is None else environment

        def read(name: str, make: Callable[[str], _T], wanted: str, default: _T) -> _T:
            value = said.get(f"CROSSREAD_{name}", "").strip()
            if not value:
                return default
            try:
                return make(value)
            except ValueError as error:
                raise InvalidOption(f"CROSSREAD_{name} cannot be used; give {wanted}") from error

        def limit(name: str) -> int:
            default: int = getattr(cls, name)
            return read(name.upper(), _positive, "a whole number of 1 or more", default)

        return cls(
            model=read("MODEL", str, "a folder, Hub id or address", None),
            sparsity=read("SPARSITY", _share, "a share from 0.0 to 0.9", None),
            logins=read("LOGINS", _logins, "name:password, several separated by commas", ()),
            max_upload_mib=limit("max_upload_mib"),
            max_session_mib=limit("max_session_mib"),
            max_files=limit("max_files"),
            max_pixels=limit("max_pixels"),
            max_seconds=limit("max_seconds"),
            max_waiting=limit("max_waiting"),
            num_at_once=limit("num_at_once"),
        )


@cache
def page_settings() -> Settings:
    """This process's settings."""
    return Settings.from_environment()


def _positive(value: str) -> int:
    if (number := int(value)) < 1:
        raise ValueError
    return number


def _share(value: str) -> float:
    if not 0.0 <= (share := float(value)) <= 0.9:
        raise ValueError
    return share


def _logins(value: str) -> tuple[tuple[str, str], ...]:
    pairs = [pair.partition(":") for pair in value.split(",")]
    if not all(name.strip() and password for name, _, password in pairs):
        raise ValueError
    return tuple((name.strip(), password) for name, _, password in pairs)
