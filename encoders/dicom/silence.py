"""Keeps pydicom and highdicom silent while their functions run: their words may hold identifiers.

What is wrong with a file is told as a `Problem` instead. Knows no file.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Values are taken as they are, and no warning or log line of the libraries quotes them.

    The libraries' settings are the process's, not a thread's: they last from the first thread's
    coming in until the last one's leaving.
    """
    _silence.enter()
    try:
        yield
    finally:
        _silence.leave()


class _Silence:
    """The altered settings, and how many want them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._settings = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._settings.enter_context(_silenced())
            self._num_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                self._settings.close()


_silence = _Silence()


@contextmanager
def _silenced() -> Iterator[None]:
    from pydicom.config import disable_value_validation

    # highdicom logs the UIDs of what it copies from
    logs = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [log.level for log in logs]
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in logs:
            log.setLevel(logging.CRITICAL + 1)  # of their children too
        try:
            yield
        finally:
            for log, level in zip(logs, before, strict=True):
                log.setLevel(level)
