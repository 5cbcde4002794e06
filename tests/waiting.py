"""Waiting for what another thread or process does, with a deadline instead of a sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120.0  # for what happens within milliseconds on an idle machine


def wait_until(true: Callable[[], Any], what: str) -> Any:
    """The first true value; fails after a deadline that no sound machine reaches."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := true()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)
    return value
