"""The running app and a page of Debian's Chromium on it.

`app_url` is the app on the demo checkpoint, in a process of its own; `open_page` opens a tab at a
width, in a language and a theme; `page` is one such tab. What the browser's console reports as an
error fails the test; one that provokes errors takes `console` and clears it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
START_S = 120  # a busy machine imports torch and gradio for a while


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder drives a browser."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(*command: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """The address at which `python command --port N` answers, until the generator is closed."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, *command, "--port", str(port)],
        cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await_answer(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def await_answer(url: str, server: subprocess.Popen[Any]) -> None:
    """Return once the server answers; fail if it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the app ended with {server.returncode}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"the app did not answer within {START_S} s")


@pytest.fixture(scope="session")
def app_url() -> Iterator[str]:
    """The app as `python app.py` starts it, on the demo checkpoint."""
    yield from serve("app.py")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    where = shutil.which("chromium")
    if where is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=where, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def console() -> list[str]:
    """What the tabs' consoles have reported as errors."""
    return []


@pytest.fixture
def open_page(chromium: Any, console: list[str]) -> Iterator[Callable[..., Any]]:
    """Opens an address in a tab of a session of its own; at the end no console may hold errors."""
    contexts = []

    def opened(
        url: str, *, language: str = "en-US", dark: bool = False, width: int = 1280,
        height: int = 900,
    ) -> Any:  # fmt: skip
        context = chromium.new_context(
            locale=language,
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            accept_downloads=True,
            permissions=["microphone"],
        )
        context.set_default_timeout(60_000)  # of a busy machine
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: console.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: console.append(str(error)))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert console == []


@pytest.fixture
def page(open_page: Callable[..., Any], app_url: str) -> Any:
    """The app in a light, English, desktop-wide tab."""
    return open_page(app_url)
