"""Attacks and limits as a visitor sees them: words never become HTML, refusals are help, stop stops."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.ui.words import TABLE
from tests.browser.test_playground import enter, say
from tests.browser.test_reading_room import shows
from tests.scripted_page import HOSTILE
from tests.waiting import wait_until

NAME = "<img src=x onerror=document.title=3>.png"
BUSY = re.compile(r"currently busy|Queue is full|Many people", re.IGNORECASE)


@pytest.fixture
def page(open_page: Callable[..., Any], scripted_url: str) -> Iterator[Any]:
    """The scripted app, whose title no words may have changed in the end."""
    page = open_page(scripted_url)
    page.wait_for_function("document.title == 'CrossRead'")
    yield page
    assert page.title() == "CrossRead"
    assert page.locator('img[src="x"]').count() == 0


def attach(page: Any, file: Path) -> None:
    page.locator('input[data-testid="file-upload"]').last.set_input_files(file)


def test_neither_a_question_nor_an_answer_becomes_html(page: Any):
    talk = enter(page)
    say(page, f"attack {HOSTILE}")
    talk.get_by_text(HOSTILE, exact=False).nth(1).wait_for()
    assert talk.get_by_text(HOSTILE, exact=False).count() >= 2


def test_a_hostile_file_name_is_shown_as_text_in_the_box_and_in_the_help(page: Any, tmp_path: Path):
    (tmp_path / NAME).write_text("no picture")
    enter(page)
    attach(page, tmp_path / NAME)
    say(page, "hello")
    page.get_by_text("is not a picture").wait_for()


def test_neither_a_report_nor_a_dicom_header_becomes_html(
    page: Any, phantom_series: Path, tmp_path: Path
):
    import pydicom

    for k, file in enumerate(sorted(phantom_series.iterdir())):
        slice_ = pydicom.dcmread(file)
        for tag in (
            "PatientName", "PatientID", "StudyDescription", "SeriesDescription", "Manufacturer",
            "ProtocolName", "ConvolutionKernel", "InstitutionName", "StationName",
        ):  # fmt: skip
            setattr(slice_, tag, "<u>Zebra</u>")
        slice_.save_as(tmp_path / f"{k:03d}.dcm")
    page.locator("#study-files input").set_input_files(sorted(tmp_path.iterdir()))
    shows(page, 24)
    page.get_by_label(TABLE["report"][0]).first.fill(f"Left effusion. {HOSTILE}")
    page.get_by_role("button", name=TABLE["review"][0], exact=True).click()
    page.locator(".cr-verdict").wait_for()
    page.get_by_text("document.title=1", exact=False).first.wait_for()
    assert page.locator("u").count() == 0


def test_a_bug_is_help_in_the_page_and_not_a_traceback(page: Any):
    enter(page)
    say(page, "break")
    page.get_by_text("Something went wrong on our side").wait_for()
    assert not page.get_by_text("Error", exact=True).and_(page.locator(".talk *")).is_visible()
    assert "Traceback" not in page.content()


def test_stop_stops_and_what_was_said_stays(page: Any):
    talk = enter(page)
    say(page, "forever")
    talk.get_by_text(re.compile("word word word")).wait_for()
    page.get_by_role("button", name="Stop").last.click()
    box = page.get_by_placeholder(TABLE["chat_box"][0])
    page.locator("button.submit-button, button[aria-label=Submit]").last.wait_for()
    said = talk.inner_text()
    assert "word word word" in said
    say(page, "hello")  # answered, though one at a time is: the stopped one holds nobody up
    talk.get_by_text("good day").wait_for()
    assert box.is_editable()


def test_who_comes_when_the_queue_is_full_is_asked_to_try_later(
    page: Any, open_page: Callable[..., Any], scripted_url: str, console: list[str]
):
    tabs = [page, *(open_page(scripted_url) for _ in range(3))]
    for tab in tabs:
        enter(tab)
        say(tab, "forever")
    tabs[-1].get_by_text(BUSY).first.wait_for()
    page.get_by_role("button", name="Stop").last.click()
    assert any("503" in line for line in console)
    console.clear()


def test_a_file_that_is_too_large_is_refused_with_a_reason(
    page: Any, tmp_path: Path, console: list[str]
):
    (tmp_path / "large.bin").write_bytes(bytes(2 * 2**20 + 1))
    enter(page)
    attach(page, tmp_path / "large.bin")
    page.get_by_text(re.compile("exceed|too large|maximum", re.IGNORECASE)).first.wait_for()
    console.clear()


def test_a_visitors_files_go_when_the_last_tab_is_closed(
    open_page: Callable[..., Any], scripted_url: str, tmp_path: Path, console: list[str]
):
    """Seen by a second tab of the same browser at first, and by nobody in the end."""
    from PIL import Image
    from playwright.sync_api import Error

    Image.new("RGB", (8, 8), "teal").save(tmp_path / "own.png")
    page = open_page(scripted_url)
    talk = enter(page)
    attach(page, tmp_path / "own.png")
    page.locator(".thumbnail-image, .thumbnail-item").first.wait_for()
    say(page, "hello")
    talk.get_by_text("good day").wait_for()
    address = talk.locator("img").first.get_attribute("src")
    context = page.context
    assert context.request.get(address).status == 200
    other = context.new_page()
    with other.expect_response(re.compile("/heartbeat/")):  # by then the server counts it
        other.goto(scripted_url)
    page.goto("about:blank")
    assert context.request.get(address).status == 200
    other.goto("about:blank")

    def is_refused() -> bool:
        try:  # by HEAD: the file may go while it is being read, and the connection with it
            return context.request.head(address).status == 403
        except Error:
            return False

    wait_until(is_refused, "nobody has the file")
    console.clear()  # of the pages that were left: their streams broke off
