"""The page around the rooms, in a browser: it opens, in both languages, and fetches nothing foreign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.ui.words import TABLE


@pytest.mark.parametrize(("language", "column"), [("en-US", 0), ("zh-CN", 1), ("zh-TW", 1)])
def test_the_page_speaks_the_browsers_language(
    open_page: Callable[..., Any], app_url: str, language: str, column: int
):
    page = open_page(app_url, language=language)
    for room in ("reading_room", "playground"):
        page.get_by_role("tab", name=TABLE[room][column]).wait_for()
    heading = TABLE["title"][column].partition("\n")[2].partition("**")[0]
    page.get_by_text(heading.strip()).wait_for()


def test_nothing_is_asked_of_another_host(open_page: Callable[..., Any], app_url: str):
    page = open_page("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(app_url)
    page.get_by_role("tab", name=TABLE["playground"][0]).click()
    page.get_by_placeholder(TABLE["chat_box"][0]).wait_for()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((app_url, "data:", "blob:"))] == []
