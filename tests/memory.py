"""What each file of tests leaves in its process's memory: `pytest -n 0 -p tests.memory FOLDER`.

A plug-in that is loaded only when named. Tells the files that added most in the end: what they
opened and did not close, or what caches keep.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

NUM_TOLD = 15
_left: dict[str, int] = {}


def _held_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    """Around each test; what its file set up for all of its tests is gone after the last."""
    before = _held_bytes()
    ran = yield
    file = item.nodeid.partition("::")[0]
    if nextitem is None or nextitem.nodeid.partition("::")[0] != file:
        gc.collect()
    _left[file] = _left.get(file, 0) + _held_bytes() - before
    return ran


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The files that added most."""
    terminalreporter.section("memory left by files of tests")
    for file, added in sorted(_left.items(), key=lambda item: -item[1])[:NUM_TOLD]:
        terminalreporter.write_line(f"{added / 2**20:8.0f} MiB  {file}")
    terminalreporter.write_line(f"{_held_bytes() / 2**20:8.0f} MiB  in the end")
