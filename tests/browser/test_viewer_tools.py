"""The viewer's tools by mouse, and a zipped study: zoom and move, invert, play, reset."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from pipelines.ui.words import TABLE
from tests.browser.test_reading_room import STUDY, VIEWER, open_sample, press, shows

PANE = f"{VIEWER}.panes[0]"


def drag(page: Any, across: int, down: int) -> None:
    box = page.locator(".cr-pane canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across, y + down, steps=4)
    page.mouse.up()


def test_a_picture_is_zoomed_and_moved_by_the_mouse_and_reset(page: Any):
    open_sample(page)
    press(page, "tool_zoom")
    drag(page, 0, -60)
    assert page.evaluate(f"{PANE}.zoom") > 1.3
    press(page, "tool_pan")
    before = page.evaluate(f"[{PANE}.panX, {PANE}.panY]")
    drag(page, 30, 20)
    after = page.evaluate(f"[{PANE}.panX, {PANE}.panY]")
    assert [b - a for a, b in zip(before, after, strict=True)] == [30, 20]
    press(page, "reset")
    assert page.evaluate(f"[{PANE}.zoom, {PANE}.panX, {PANE}.panY]") == [1, 0, 0]


def test_inverted_greys_are_the_opposite_ones(page: Any):
    open_sample(page)
    greys = f"() => {{ const v = {VIEWER}; v.paint(); return [...v.panes[0].image.data].filter((_, i) => i % 4 === 0); }}"
    plain = page.evaluate(greys)
    press(page, "invert")
    inverted = page.evaluate(greys)
    assert len(set(plain)) > 10
    assert {a + b for a, b in zip(plain, inverted, strict=True)} == {255}


def test_playing_runs_through_the_slices_and_round_until_it_is_stopped(page: Any):
    open_sample(page)
    canvas = page.locator(".cr-pane canvas").first
    canvas.focus()
    page.keyboard.press("End")
    press(page, "cine")
    page.wait_for_function(f"{VIEWER}.place < 40")  # over the end and on from the first
    page.keyboard.press(" ")
    assert page.evaluate(f"{VIEWER}.running") is None


def test_a_zipped_study_opens_and_says_what_it_could_not_use(page: Any, tmp_path: Path):
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(STUDY.iterdir()):
            packed.write(file, file.name)
        packed.writestr("notes.txt", "not an image")
    upload = page.locator("#study-files input[type=file]")
    upload.wait_for(state="attached")
    upload.set_input_files(archive)
    shows(page, 48)
    page.get_by_text(TABLE["not_used"][0]).first.wait_for()
