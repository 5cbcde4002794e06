"""The screenshots of the README and the docs, made by the app itself on the sample study.

    python -m tests.browser.pictures

Writes docs/pictures/*.png; look at them before committing them.
"""

from __future__ import annotations

import io
from contextlib import closing
from typing import Any

from pipelines.ui.words import TABLE
from tests.browser.conftest import FLAGS
from tests.served import ROOT, serve

FOLDER = ROOT / "docs" / "pictures"
NUM_COLOURS = 128  # a screen of few colours needs no more, and a repository no megabytes


def reviewed(page: Any, column: int) -> None:
    """The sample, reviewed, its first discrepancy chosen."""
    page.get_by_role("button", name=TABLE["load_sample"][column], exact=True).click()
    viewer = "document.querySelector('.cr-viewer')?.viewer"
    page.wait_for_function(f"{viewer}?.stack?.complete && {viewer}.stack.info.shape[0] === 48")
    page.get_by_role("button", name=TABLE["review"][column], exact=True).click()
    page.locator(".cr-verdict").wait_for()
    page.locator(".cr-mark").first.click()
    page.wait_for_timeout(800)  # for the eye: scrolling is smooth
    page.evaluate("window.scrollTo(0, 0)")


SCREENS: dict[str, tuple[dict[str, Any], int]] = {
    "reading_room": ({"viewport": {"width": 1400, "height": 1500}}, 0),
    "reading_room_dark_chinese": (
        {"viewport": {"width": 1400, "height": 1500}, "color_scheme": "dark", "locale": "zh-CN"}, 1
    ),
    "phone": ({"viewport": {"width": 390, "height": 844}, "has_touch": True}, 0),
}  # fmt: skip


def save(page: Any, name: str, full: bool) -> None:
    """A screenshot with few colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    image.quantize(NUM_COLOURS).save(FOLDER / f"{name}.png", optimize=True)


def main() -> None:
    """Serve the app, and take every picture."""
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(parents=True, exist_ok=True)
    with closing(serve("app.py")) as served, sync_playwright() as driver:
        url = next(served)
        chromium = driver.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for name, (context, column) in SCREENS.items():
            page = chromium.new_context(**context).new_page()
            page.set_default_timeout(60_000)
            page.goto(url)
            reviewed(page, column)
            save(page, name, full=name != "phone")
        chromium.close()


if __name__ == "__main__":
    main()
