"""The playground in a browser, on the demo checkpoint: examples, attachments, turns, settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.ui.words import TABLE

COST = re.compile(r"\d+ tokens/s · first token after \d+\.\d\d s")


def enter(page: Any, column: int = 0) -> Any:
    """Go to the playground; returns its conversation."""
    page.get_by_role("tab", name=TABLE["playground"][column]).click()
    page.get_by_placeholder(TABLE["chat_box"][column]).wait_for()
    return page.locator(".talk")


def say(page: Any, words: str) -> None:
    box = page.get_by_placeholder(TABLE["chat_box"][0])
    box.fill(words)
    box.press("Enter")


def await_answers(talk: Any, number: int) -> None:
    talk.get_by_text(COST).nth(number - 1).wait_for()
    # the next question can be asked: nothing of this answer is still to come
    talk.page.locator(".talk-box textarea:enabled").wait_for()


@pytest.fixture
def talk(page: Any) -> Any:
    return enter(page)


def test_an_example_runs_on_a_click_and_a_study_shows_as_a_strip(page: Any, talk: Any):
    page.get_by_role("button", name=TABLE["example_show"][0]).click()
    await_answers(talk, 1)
    talk.get_by_text("CT × 48").wait_for()
    assert talk.locator("img").evaluate("img => img.naturalWidth / img.naturalHeight") == 8
    assert "nodule" in talk.inner_text()


def test_a_recording_shows_as_a_waveform_with_a_player(page: Any, talk: Any):
    page.get_by_role("button", name=TABLE["example_hear"][0]).click()
    await_answers(talk, 1)
    talk.get_by_test_id("waveform-Audio").wait_for()
    talk.get_by_role("button", name="Play").wait_for()


def test_a_follow_up_question_encodes_nothing_anew(page: Any, talk: Any):
    page.get_by_role("button", name=TABLE["example_nodule"][0]).click()
    await_answers(talk, 1)
    say(page, "List the findings.")
    await_answers(talk, 2)
    for at in (0, 1):  # by key: where a click lands may move as the one before opens
        talk.get_by_role("button").filter(has_text=COST).nth(at).press("Enter")
    counts = talk.get_by_text(re.compile("media encoded anew"))
    assert "0 media encoded anew" in counts.nth(1).inner_text()


def test_a_picture_that_is_uploaded_is_shown_and_asked_about(page: Any, talk: Any, tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (64, 48), "teal").save(tmp_path / "teal.png")
    page.locator('input[data-testid="file-upload"]').last.set_input_files(tmp_path / "teal.png")
    page.get_by_label("Remove file").or_(page.locator(".thumbnail-image")).first.wait_for()
    say(page, "What is this?")
    await_answers(talk, 1)
    picture = talk.locator("img").first
    assert picture.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [64, 48]


def test_a_video_that_is_uploaded_is_shown_with_a_player_and_asked_about(
    page: Any, talk: Any, clip: Path
):
    page.locator('input[data-testid="file-upload"]').last.set_input_files(clip)
    page.get_by_label("Remove file").or_(page.locator(".thumbnail-image")).first.wait_for()
    say(page, "What is this?")
    await_answers(talk, 1)
    talk.locator("video").first.wait_for()


def test_a_recording_by_microphone_is_sent_as_sound(page: Any, talk: Any):
    box = page.locator(".talk-box")
    box.get_by_role("button", name="Record audio").click()
    box.get_by_role("button", name="Start recording").click()
    box.get_by_role("button", name="Stop recording").wait_for()
    page.wait_for_timeout(1500)  # what is recorded
    box.get_by_role("button", name="Stop recording").click()
    box.get_by_role("button", name="Attach audio").wait_for()
    say(page, "Transcribe.")
    await_answers(talk, 1)
    talk.get_by_test_id("waveform-Audio").wait_for()


def test_retry_asks_again_and_undo_gives_the_words_back(page: Any, talk: Any):
    page.get_by_role("button", name=TABLE["example_nodule"][0]).click()
    await_answers(talk, 1)
    talk.get_by_role("button", name="Retry").click()
    talk.get_by_text(COST).wait_for(state="detached")
    await_answers(talk, 1)
    talk.get_by_role("button", name="Undo").click()
    talk.get_by_text(COST).wait_for(state="detached")
    assert page.get_by_placeholder(TABLE["chat_box"][0]).input_value() == "Is there a nodule?"


def test_an_edited_question_is_answered_anew_and_what_followed_is_gone(page: Any, talk: Any):
    say(page, "Is there a nodule?")
    await_answers(talk, 1)
    say(page, "List the findings.")
    await_answers(talk, 2)
    talk.get_by_role("button", name="Edit").first.click()
    editor = talk.locator("textarea")
    editor.fill("Is the heart enlarged?")
    talk.get_by_role("button", name="Submit").click()
    talk.get_by_text("List the findings.").wait_for(state="detached")
    talk.get_by_text("Is the heart enlarged?").wait_for()
    await_answers(talk, 1)


def test_the_sparsity_slider_tells_what_the_model_counts(page: Any, talk: Any):
    saved = page.get_by_label(TABLE["sparsity_saves"][0])
    assert saved.input_value() == "−33%"  # the demo's own 0.5: two of three products, half each
    slider = page.get_by_label(f"range slider for {TABLE['sparsity'][0]}")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    slider.dispatch_event("pointerup")
    page.wait_for_function("box => box.value == '−60%'", arg=saved.element_handle())
    say(page, "Is there a nodule?")
    await_answers(talk, 1)


def test_a_phone_in_chinese_and_the_dark_holds_the_room_without_scrolling_sideways(
    open_page: Callable[..., Any], app_url: str
):
    page = open_page(app_url, language="zh-CN", dark=True, width=390, height=844)
    talk = enter(page, 1)
    page.locator(".model-card").get_by_text(
        re.compile("音频、.*文本.*上下文 [0-9]+ 词元")
    ).wait_for()
    page.get_by_role("button", name=TABLE["example_hear"][1]).click()
    talk.get_by_text(re.compile("词元/秒")).wait_for()
    shares = talk.locator("button").filter(has=page.locator('svg path[d^="M23,20a5"]'))
    assert [share.is_visible() for share in shares.all()] == [False]  # it would publish
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.body.classList.contains('dark')")
