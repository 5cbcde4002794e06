"""The reading room in a real browser, on the shipped sample: what a clinician does, start to end."""

from __future__ import annotations

import base64
import json
import time
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multimodal.backends import DEMO
from pipelines import pipeline
from pipelines.evidence import Discrepancy, Reading
from pipelines.ui.viewer import PREFIX
from pipelines.ui.words import TABLE
from tests.makers import write_sr
from tests.scripted_page import CORRECTED, SLOW

STUDY = DEMO / "sample" / "study"
VIEWER = "document.querySelector('.cr-viewer')?.viewer"
EXAMPLE = Path(__file__).parent.parent.parent / "pipelines" / "ui" / "examples" / "dictation.ogg"


def shows(page: Any, num_slices: int) -> None:
    """Wait until the viewer holds all of a study."""
    page.wait_for_function(
        f"{VIEWER}?.stack?.complete && {VIEWER}.stack.info.shape[0] === {num_slices}"
    )


def press(page: Any, key: str, column: int = 0) -> None:
    """Press the button with these words."""
    page.get_by_role("button", name=TABLE[key][column], exact=True).click()


def open_sample(page: Any, column: int = 0) -> None:
    press(page, "load_sample", column)
    shows(page, 48)


def review(page: Any, column: int = 0) -> None:
    press(page, "review", column)
    page.locator(".cr-verdict").wait_for()


def place(page: Any) -> int:
    """The slice on the screen, from 1, as a person reads it."""
    return int(page.locator(".cr-number").inner_text().split("/")[0])


def test_wheel_keys_and_slider_scroll_and_the_window_changes_what_is_seen(page: Any):
    open_sample(page)
    canvas = page.locator(".cr-pane canvas").first
    canvas.hover()
    at = place(page)
    page.mouse.wheel(0, 100)
    page.wait_for_function(f"{VIEWER}.place === {at}")
    canvas.focus()
    for key, wanted in (("Home", 1), ("PageDown", 11), ("ArrowUp", 10), ("End", 48)):
        page.keyboard.press(key)
        assert place(page) == wanted
    page.locator(".cr-slider").fill("26")
    assert place(page) == 26
    grey = (
        "() => { const v = %s; v.paint(); return v.panes[0].image.data.reduce((a, b) => a + b); }"
    )
    seen = {}
    for window in ("lung", "mediastinum", "bone"):
        page.locator(".cr-preset").select_option(label=TABLE[window][0])
        seen[window] = page.evaluate(grey % VIEWER)
    assert len(set(seen.values())) == 3


def test_dragging_changes_the_window_and_measures_in_millimetres(page: Any):
    open_sample(page)
    box = page.locator(".cr-pane canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(to_right: float) -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + to_right, y, steps=4)
        page.mouse.up()

    width = page.evaluate(f"{VIEWER}.window.width")
    drag(60)
    assert page.evaluate(f"{VIEWER}.window.width") > width
    press(page, "tool_measure")
    drag(100)
    mm = page.evaluate(f"{VIEWER}.main.length({VIEWER}.main.lines[0])")
    assert mm == pytest.approx(100 / page.evaluate(f"{VIEWER}.main.scale"), rel=0.02)
    press(page, "reset")
    assert page.evaluate(f"{VIEWER}.main.lines.length") == 0
    assert page.evaluate(f"{VIEWER}.window.width") == width


def test_a_finger_scrolls_and_two_zoom(open_page: Any, app_url: str):
    page = open_page(app_url, width=390, height=844)
    open_sample(page)
    page.locator(".cr-tool_scroll").click()  # what a touch screen begins with
    canvas = page.locator(".cr-pane canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def move(kind: str, *points: tuple[float, float]) -> None:
        places = [
            {"x": x + right, "y": y + down, "id": i} for i, (right, down) in enumerate(points)
        ]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    before, zoom = place(page), page.evaluate(f"{VIEWER}.main.zoom")
    move("touchStart", (0, 0))
    for down in range(6, 61, 6):
        move("touchMove", (0, down))
    move("touchEnd")
    assert place(page) == before + 10
    move("touchStart", (-20, 0), (20, 0))
    for apart in range(22, 42, 2):
        move("touchMove", (-apart, 0), (apart, 0))
    move("touchEnd")
    assert page.evaluate(f"{VIEWER}.main.zoom") == pytest.approx(2 * zoom, rel=0.1)
    assert place(page) == before + 10


@pytest.fixture(scope="module")
def sample() -> Reading:
    """The sample's reading, as a program gets it."""
    report = (DEMO / "sample" / "report.txt").read_text(encoding="utf-8")
    return pipeline("ct-report")(DEMO / "sample" / "study", report=report)


def slice_of(point: Discrepancy) -> int | None:
    """Where a point leads to."""
    return next(e.slice_index for e in point.evidence if e.kind == "image")


def test_a_review_goes_by_keyboard_alone(page: Any, sample: Reading):
    page.get_by_role("button", name=TABLE["load_sample"][0]).wait_for()

    def tab_to(words: str, key: str = "Tab") -> None:
        for _ in range(90):
            page.keyboard.press(key)
            if page.evaluate("document.activeElement.textContent.trim()").startswith(words):
                return
        raise AssertionError(f"{words} cannot be reached by {key}")

    tab_to(TABLE["load_sample"][0])
    page.keyboard.press("Enter")
    shows(page, 48)
    tab_to(TABLE["review"][0])
    page.keyboard.press("Enter")
    page.locator(".cr-verdict").wait_for()
    point = sample.discrepancies[0]
    assert point.sentence
    tab_to(point.sentence)
    page.keyboard.press("Enter")
    page.wait_for_function(f"{VIEWER}.place === {slice_of(point)}")
    tab_to(TABLE["rejected"][0])
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.evaluate(f"{VIEWER}.main.canvas.focus()")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("m")
    for _ in range(10):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("m")
    mm = page.evaluate(f"{VIEWER}.main.length({VIEWER}.main.lines[0])")
    assert mm == pytest.approx(10 * page.evaluate(f"{VIEWER}.main.plane.mm[2]"))


def test_everything_that_can_be_pressed_says_what_it_is(page: Any):
    open_sample(page)
    review(page)
    nameless = page.evaluate(
        """[...document.querySelectorAll('.cr-host :is(button, select, input, canvas, [role=group])')]
          .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_a_review_leads_from_a_sentence_to_its_slice_and_on_to_files(
    page: Any, tmp_path: Path, sample: Reading
):
    point, number = sample.discrepancies[0], len(sample.discrepancies)
    assert point.sentence
    assert point.suggestion
    open_sample(page)
    review(page)
    assert str(number) in page.locator(".cr-verdict").inner_text()
    mark = page.locator(".cr-mark").first
    assert mark.inner_text().startswith(point.sentence)
    mark.click()
    at = slice_of(point)
    page.wait_for_function(f"{VIEWER}.place === {at}")
    assert page.evaluate(f"{VIEWER}.evidence.filter((e) => e.chosen).map((e) => e.slice)") == [at]
    assert point.suggestion in page.locator(".cr-picked").inner_text()
    page.locator(".cr-reading table .cr-jump").nth(1).click()
    page.wait_for_function(f"{VIEWER}.place === {sample.findings[1].slice_index}")

    page.locator(".cr-picked").get_by_role("button", name=TABLE["rejected"][0]).click()
    page.get_by_placeholder(TABLE["ask_example"][0]).fill("Is there a pneumothorax?")
    page.keyboard.press("Enter")
    page.get_by_text(TABLE["nothing_encoded"][0]).wait_for()
    assert "no" in page.locator(".cr-answered").inner_text().lower()

    press(page, "take_away")
    saved = {}
    for name in ("reading.json", "reading.html", "reading.pdf", "reading_dicom.zip"):
        with page.expect_download() as download:
            page.locator(f"a[download='{name}']").first.click()
        saved[name] = tmp_path / name
        download.value.save_as(saved[name])
    reading = json.loads(saved["reading.json"].read_text(encoding="utf-8"))
    assert [d["decision"] for d in reading["discrepancies"]] == ["rejected"] + [""] * (number - 1)
    assert reading["reviewed"] == {"by": "", "at": ""}
    assert saved["reading.pdf"].read_bytes().startswith(b"%PDF-")
    assert "sr.dcm" in zipfile.ZipFile(saved["reading_dicom.zip"]).namelist()


def test_a_review_shows_the_models_words_while_it_says_them(
    open_page: Callable[..., Any], scripted_url: str, phantom_series: Path
):
    page = open_page(scripted_url)
    page.locator("#study-files input").set_input_files(sorted(phantom_series.iterdir()))
    shows(page, 24)
    page.get_by_label(TABLE["report"][0]).first.fill(f"{SLOW} measuring 15 mm.")
    page.evaluate(
        """() => {
          window.said = [];
          const watch = () => said.push(document.querySelector(".cr-spoken")?.textContent ?? "");
          new MutationObserver(watch).observe(document.body, { childList: true, subtree: true });
        }"""
    )
    review(page)
    said = {words for words in page.evaluate("said") if words.startswith("direction")}
    assert len(said) > 1  # how many of its words a browser draws is up to the browser
    assert all(CORRECTED.startswith(words.strip()) for words in said)


def test_words_of_a_report_never_become_markup(page: Any, tmp_path: Path):
    attack = "No nodule. <img src=x onerror=\"document.title='owned'\"><script>1</script>"
    (tmp_path / "report.txt").write_text(attack)
    open_sample(page)
    with page.expect_file_chooser() as chooser:
        press(page, "upload_words")
    chooser.value.set_files(str(tmp_path / "report.txt"))
    page.wait_for_function(
        f"[...document.querySelectorAll('textarea')].some((t) => t.value === {json.dumps(attack)})"
    )
    review(page)
    assert attack in page.locator(".cr-report").inner_text()
    assert page.locator(".cr-report img, .cr-report script").count() == 0
    assert page.title() == "CrossRead"


def test_a_dropped_folder_and_chosen_files_open_and_nobody_is_named_unasked(page: Any):
    files = {
        f.name: base64.b64encode(f.read_bytes()).decode() for f in sorted(STUDY.iterdir())[10:22]
    }
    upload = page.locator("#study-files input[type=file]")
    upload.wait_for(state="attached")
    page.locator(".cr-study").wait_for(state="attached")  # by then our script takes folders
    page.evaluate(
        """(files) => {
          const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const file = (name) => ({ isFile: true, file: (take) => take(new File([bytes(files[name])], name)) });
          let left = [Object.keys(files).map(file), []];
          const folder = { isDirectory: true, createReader: () => ({ readEntries: (take) => take(left.shift()) }) };
          const event = new Event("drop", { bubbles: true, cancelable: true });
          event.dataTransfer = { items: [{ webkitGetAsEntry: () => folder }] };
          document.querySelector("#study-files button, #study-files").dispatchEvent(event);
        }""",
        files,
    )
    shows(page, 12)
    upload.set_input_files(sorted(STUDY.iterdir())[:20])
    shows(page, 20)
    page.get_by_text(TABLE["about_series"][0]).click()
    assert "Phantom" not in page.locator(".cr-facts").inner_text()
    press(page, "reveal_identifiers")
    page.get_by_text("Phantom^Generated").wait_for()
    press(page, "hide_identifiers")
    page.get_by_text("Phantom^Generated").wait_for(state="detached")


def test_the_studys_own_report_is_taken_and_what_is_no_study_gets_help(page: Any, tmp_path: Path):
    upload = page.locator("#study-files input[type=file]")
    upload.wait_for(state="attached")
    write_sr(tmp_path / "report.dcm", "There is a left pleural effusion.")
    upload.set_input_files([*sorted(STUDY.iterdir())[:20], tmp_path / "report.dcm"])
    shows(page, 20)
    press(page, "own_report")
    report = page.get_by_placeholder(TABLE["paste_report"][0])
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some((t) => /effusion/.test(t.value))"
    )
    assert "There is a left pleural effusion." in report.input_value()
    (tmp_path / "notes.txt").write_text("hello")
    upload.set_input_files(tmp_path / "notes.txt")
    page.get_by_text("no DICOM image found").wait_for()
    page.get_by_text(TABLE["nothing_open"][0]).wait_for()
    press(page, "review")
    page.get_by_text("Open a study first").wait_for()
    page.locator(".cr-progress").wait_for(state="detached")


def test_the_next_study_is_not_read_with_the_words_of_the_one_before(page: Any):
    """What a person has typed since stays: it may be the next one's report."""
    open_sample(page)
    report = page.get_by_placeholder(TABLE["paste_report"][0])
    assert "FINDINGS" in report.input_value()
    upload = page.locator("#study-files input[type=file]")
    upload.set_input_files(sorted(STUDY.iterdir())[:20])
    shows(page, 20)
    assert report.input_value() == ""
    report.fill("No pneumothorax.")
    review(page)
    open_sample(page)  # brings its own report
    report.fill("No pneumothorax.")
    upload.set_input_files(sorted(STUDY.iterdir())[:22])
    shows(page, 22)
    assert report.input_value() == "No pneumothorax."
    review(page)
    upload.set_input_files(sorted(STUDY.iterdir())[:20])
    shows(page, 20)
    assert report.input_value() == ""


def test_a_closed_tab_gives_its_study_back(open_page: Any, app_url: str):
    page = open_page(app_url)
    open_sample(page)
    slab = f"{app_url}{PREFIX}/slab/{page.evaluate(f'{VIEWER}.stack.info.token')}/0/1"
    other = open_page(app_url)
    assert other.request.get(slab).status == 200
    page.close()
    deadline = time.monotonic() + 60
    while (status := other.request.get(slab).status) == 200 and time.monotonic() < deadline:
        other.wait_for_timeout(100)
    assert status == 404


def test_a_stop_stops_and_the_next_review_starts_afresh(page: Any):
    open_sample(page)
    press(page, "review")
    page.locator(".cr-progress").wait_for()
    press(page, "stop")
    page.locator(".cr-progress").wait_for(state="detached")
    review(page)


def test_language_and_theme_are_switched_on_the_page(page: Any):
    open_sample(page)
    review(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Language").click()
    page.get_by_role("option", name="简体中文").click()
    page.get_by_text(TABLE["findings"][1]).wait_for()
    assert page.locator(".cr-tool_measure").inner_text() == TABLE["tool_measure"][1]
    assert TABLE["verdict_differs"][1].format(count=2) in page.locator(".cr-verdict").inner_text()
    page.get_by_text("Dark").click()
    page.locator("body.dark").wait_for(state="attached")


@pytest.mark.parametrize(("language", "column", "dark"), [("zh-CN", 1, True), ("en-US", 0, False)])
def test_a_phone_reviews_in_its_language_and_theme(
    open_page: Any, app_url: str, language: str, column: int, dark: bool
):
    page = open_page(app_url, language=language, dark=dark, width=390, height=844)
    open_sample(page, column)
    review(page, column)
    assert TABLE["findings"][column] in page.locator(".cr-reading").inner_text()
    assert page.evaluate("document.body.classList.contains('dark')") is dark
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(("language", "column"), [("zh-CN", 1), ("en-US", 0)])
def test_problems_and_errors_are_told_in_the_pages_language(
    open_page: Any, app_url: str, language: str, column: int, tmp_path: Path
):
    """A study with a gap and a stranger's file, then no study at all."""
    page = open_page(app_url, language=language)
    (tmp_path / "notes.txt").write_text("hello")
    upload = page.locator("#study-files input")
    slices = sorted(STUDY.iterdir())
    upload.set_input_files([*slices[:9], *slices[10:20], tmp_path / "notes.txt"])
    shows(page, 19)
    for key, code in (("flaws", "MISSING_SLICE"), ("not_used", "NOT_DICOM")):
        page.get_by_text(TABLE[key][column]).click()
        item = page.locator("li", has=page.get_by_text(code, exact=True))
        assert (TABLE[code][1] in item.inner_text()) is bool(column)
        assert item.locator("code").get_attribute("title") == TABLE[code][column]
    assert "1 slice is missing" in page.locator(".cr-more").first.inner_text()
    assert page.locator(".cr-row small").inner_text() == TABLE["volume_of_image"][column]
    assert TABLE["body_chest"][column] in page.locator(".cr-row b").inner_text()
    page.get_by_text(TABLE["about_series"][column]).click()
    names = page.locator(".cr-facts dt").all_inner_texts()
    assert {TABLE[key][column] for key in ("plane", "num_slices", "PatientName")} <= {*names}
    upload.set_input_files(slices[0])
    page.locator(".cr-row small", has_text=TABLE["a single image"][column]).wait_for()
    upload.set_input_files(tmp_path / "notes.txt")
    told = page.get_by_text("no DICOM image found (notes.txt")
    told.wait_for()
    assert told.inner_text().startswith(TABLE["NotDicom"][column] or "no DICOM")


def test_what_is_given_while_a_study_still_opens_is_not_lost(page: Any, tmp_path: Path):
    """Gradio drops an event while the one before is at work, unless it is told to queue it."""
    (tmp_path / "notes.txt").write_text("hello")
    upload = page.locator("#study-files input")
    slices = sorted(STUDY.iterdir())
    told = page.get_by_text("no DICOM image found (notes.txt")
    for _ in range(3):
        upload.set_input_files(slices)
        page.locator(".cr-row").wait_for()  # shown first; the rest still comes
        upload.set_input_files(tmp_path / "notes.txt")
        told.wait_for()
        page.locator(".toast-close").click()
        told.wait_for(state="detached")


@pytest.fixture
def dictating(chromium: Any, app_url: str, tmp_path: Path) -> Iterator[Any]:
    """A tab whose microphone plays a sentence: Chromium takes the file only when it starts."""
    from encoders.audio import load_speech
    from tests.browser.conftest import FLAGS

    if not EXAMPLE.is_file():
        pytest.skip("needs the playground's example dictation")
    quiet = np.zeros(16000, np.float32)
    sound = np.concatenate([quiet, load_speech(EXAMPLE), quiet, quiet])
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "NONE"))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    browser = chromium.browser_type.launch(
        executable_path="/usr/bin/chromium",
        args=[*FLAGS, f"--use-file-for-fake-audio-capture={tmp_path / 'said.wav'}%noloop"],
    )
    page = browser.new_context(permissions=["microphone"]).new_page()
    page.set_default_timeout(60_000)
    page.goto(app_url)
    yield page
    browser.close()


def test_words_spoken_into_the_microphone_appear_while_they_are_spoken(dictating: Any):
    dictating.get_by_text(TABLE["dictate"][0], exact=True).click()
    press(dictating, "record")
    heard = dictating.get_by_label(TABLE["dictated"][0])
    heard.wait_for()
    dictating.wait_for_function(
        "[...document.querySelectorAll('textarea')].some((t) => /effusion/i.test(t.value))"
    )
    press(dictating, "stop_recording")
    heard.fill("There is no left pleural effusion.")
    assert heard.input_value() == "There is no left pleural effusion."
