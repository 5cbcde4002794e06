"""Servers in processes of their own, for tests that ask them as a browser or a program does."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent
START_S = 240  # a busy machine imports torch and gradio for a while


def free_port() -> int:
    """A port of loopback that nobody listens on, nor is given by the system to who asks for any.

    One that it had given out itself was given again, before its server had started, to another.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def serve_in(folder: Path, python: str) -> Iterator[str]:
    """The address of `app.py` in a folder, started as a Space starts it: by environment alone."""
    port = free_port()
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    server = subprocess.Popen(
        [python, "app.py"], cwd=folder, env={**kept, **own}, stdout=subprocess.DEVNULL
    )
    yield from _served(f"http://127.0.0.1:{port}", server)


def serve(*command: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """The address at which `python command --port N` answers, until the generator is closed."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, *command, "--port", str(port)],
        cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    yield from _served(url, server)


def _served(url: str, server: subprocess.Popen[Any]) -> Iterator[str]:
    try:
        await_answer(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def await_answer(url: str, server: subprocess.Popen[Any]) -> None:
    """Return once the server answers; fail if it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"the server did not answer within {START_S} s")
