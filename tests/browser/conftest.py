"""The running app and a page of Debian's Chromium on it.

`app_url` is the app on the demo checkpoint, in a process of its own; `open_page` opens a tab at a
width, in a language and a theme; `page` is one such tab. What the browser's console reports as an
error fails the test; one that provokes errors takes `console` and clears it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_page import LIMITS
from tests.served import serve

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder drives a browser."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def app_url() -> Iterator[str]:
    """The app as `python app.py` starts it, on the demo checkpoint."""
    yield from serve("app.py")


@pytest.fixture(scope="session")
def scripted_url() -> Iterator[str]:
    """The app with a model that says what it is told to; see `tests.scripted_page`."""
    yield from serve("-m", "tests.scripted_page", env=LIMITS)


@pytest.fixture(scope="module")  # its event loop runs in this thread: others could start none
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


def _of_gradio(error: object) -> bool:
    """Its client closes a stream whose answers have all come, and does not catch that it was open."""
    return "signal is aborted without reason" in str(error)


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
        page.on("pageerror", lambda error: _of_gradio(error) or console.append(str(error)))
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
