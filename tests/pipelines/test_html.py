"""The page of a reading: self-contained, escaped, complete; a slice drawn the right way round."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encoders.dicom import Volume, load_volume
from encoders.features import Source
from multimodal.backends import Region
from pipelines.ct_report import CtReportPipeline
from pipelines.evidence import Discrepancy, Reading
from pipelines.html import draw_slice, mark_report
from pipelines.terminal import describe_reading, describe_study, percent
from tests.makers import BLOCKS, FakeBackend, write_blocks

EVIL = '<script>alert("x")</script> & <img src=http://evil.example/x onerror=alert(1)>'


class Page(HTMLParser):
    """Tags with attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(phantom_series)


@pytest.fixture(scope="module")
def reading(volume: Volume) -> Reading:
    source = Source("dicom", slice_index=11, position_mm=float(volume.positions_mm[11]))
    region = Region("nodule", "right", 0.9, source, (4.0, 6.0, 12.0, 20.0))
    backend = FakeBackend(
        answers={"How large": "14 mm", EVIL: f"size: No {EVIL}", "Why": EVIL},
        chances={"a right nodule": 0.83, f"images? {EVIL}": 0.1},
        regions=(region,),
    )
    return CtReportPipeline(backend)(volume, f"FINDINGS: {EVIL}", None, "Why?")


def test_the_page_fetches_nothing_and_runs_nothing(reading: Reading):
    page = Page(reading.to_html())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    addresses = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href")]
    assert addresses
    assert all(str(a).startswith("data:image/png;base64,") for a in addresses)
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    styles = re.findall(r"<style>(.*?)</style>", reading.to_html(), re.S)
    assert not re.search(r"url\(|@import", " ".join(styles))
    policy = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_words_of_the_report_are_shown_as_they_are(reading: Reading):
    page = Page(reading.to_html())
    assert page.words.count(EVIL) >= 4  # report, table, suggestion, answer


def test_the_page_says_what_the_reading_says(reading: Reading):
    words = re.sub(r"\s+", " ", Page(reading.to_html()).words)
    for part in ("differ in 1 point.", "nodule", "right", "14 mm", "12 of 24", "83 %", "size",
                 "not a medical device", "Slice 12 of 24: right nodule"):  # fmt: skip
        assert part in words


def test_the_pictures_on_the_page_are_png(reading: Reading):
    sources = [a["src"] for t, a in Page(reading.to_html()).tags if t == "img"]
    for source in sources:
        data = base64.b64decode(str(source).partition(",")[2])
        assert Image.open(io.BytesIO(data)).format == "PNG"


def test_an_out_of_range_study_is_told_before_everything_else(volume: Volume):
    far = replace(volume, info=replace(volume.info, modality="MR"))
    reading = CtReportPipeline(FakeBackend())(far, "No nodule.")
    words = Page(reading.to_html()).words.partition("}\n")[2]
    body = reading.to_html().partition("<body>")[2]
    assert body.index("Out of range.") < body.index("<h1")
    assert "None of the findings" not in words
    text = describe_reading(reading)
    assert text.startswith("OUT OF RANGE: ")
    assert "Findings" not in text


def points(*sentences: str) -> list[Discrepancy]:
    return [Discrepancy("typo", s, "x", 0.9) for s in sentences]


def test_a_marked_report_is_still_the_report():
    report = "FINDINGS: No nodule. Heart is\n  enlarged. No nodule. End."
    passages = list(mark_report(report, points("No nodule.", "Heart is enlarged.", "No nodule.")))
    assert "".join(p.text for p in passages) == report
    assert [p.text for p in passages if p.point] == [
        "No nodule.", "Heart is\n  enlarged.", "No nodule.",
    ]  # fmt: skip


def test_a_sentence_that_is_not_in_the_report_marks_nothing():
    passages = list(mark_report("No nodule.", points("Something else.")))
    assert [(p.text, p.point) for p in passages] == [("No nodule.", None)]


TURNS = [
    ("axial", (1, 0, 0), (0, 1, 0), ("left", "back")),
    ("axial from above", (-1, 0, 0), (0, 1, 0), ("left", "back")),
    ("prone", (-1, 0, 0), (0, -1, 0), ("left", "back")),
    ("decubitus", (0, 1, 0), (-1, 0, 0), ("left", "back")),
    ("coronal", (1, 0, 0), (0, 0, -1), ("left", "head")),
    ("sagittal", (0, 1, 0), (0, 0, -1), ("back", "head")),
]


@pytest.mark.parametrize(("name", "row", "column", "seen"), TURNS)
def test_a_drawn_slice_has_the_patients_left_at_the_right_and_the_head_or_front_up(
    tmp_path: Path, name: str, row: Any, column: Any, seen: tuple[str, str]
):
    write_blocks(tmp_path, row, column)
    volume = load_volume(tmp_path)
    places = {}
    for block in seen:
        bright = volume.voxels == BLOCKS[block][1]
        index = int(np.argwhere(bright)[:, 0].mean())
        ys, xs = np.nonzero(bright[index])
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        picture = np.asarray(Image.open(io.BytesIO(draw_slice(volume, index, [box]))))
        panel = picture[:, :440]
        yellow = (panel[..., 0] == 255) & (panel[..., 1] == 196) & (panel[..., 2] == 0)
        rows, columns = np.nonzero(yellow)
        places[block] = (columns.mean() / panel.shape[1], rows.mean() / panel.shape[0])
        inside = panel[int(rows.mean()), int(columns.mean())]
        assert inside.min() > 200, "the box is drawn around the block it names"
    across, along = (places[block] for block in seen)
    assert across[0] > 0.55
    assert along[1] < 0.45 if seen[1] == "head" else along[1] > 0.55


def test_pixels_are_drawn_square(volume: Volume):
    picture = Image.open(io.BytesIO(draw_slice(volume, 3)))
    _, rows, columns = volume.voxels.shape
    _, row_mm, column_mm = volume.spacing_mm
    assert picture.height == round(440 * rows * row_mm / (columns * column_mm))


def test_pixels_that_no_scanner_makes_are_drawn_in_a_picture_that_can_be_shown(volume: Volume):
    """A spacing of 1000 to 1 once gave a picture of 440,000 rows."""
    affine = volume.affine.copy()
    affine[:3, 1] *= 1000
    picture = Image.open(io.BytesIO(draw_slice(replace(volume, affine=affine), 3)))
    assert picture.height == 4096


def test_no_direction_is_lettered_where_none_is_known(volume: Volume):
    lost = replace(volume, affine=np.full((4, 4), np.nan))
    known, unknown = (
        np.asarray(Image.open(io.BytesIO(draw_slice(v, 3)))).astype(int) for v in (volume, lost)
    )
    letters = np.abs(known - unknown).max(-1)[:, :440] > 0
    assert letters[:, :20].any()
    assert letters[:, -20:].any()
    middle = unknown.shape[0] // 2
    assert not np.ptp(unknown[middle - 20 : middle + 20, 4:16], axis=(0, 1)).any()


def test_the_terminal_shows_what_the_page_shows(reading: Reading):
    text = describe_reading(reading)
    for part in (
        "differ in 1 point.",
        "1. size (90% sure)",
        "slice 12 of 24",
        "right nodule, 14 mm",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines() if "http" not in line) <= 100


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "<1%"),
        (0.004, "<1%"),
        (0.006, "1%"),
        (0.43, "43%"),
        (0.994, "99%"),
        (0.9985, ">99%"),
        (1.0, ">99%"),
    ],
)
def test_nothing_is_told_as_certain(probability: float, words: str):
    assert percent(probability) == words


def test_the_terminal_groups_problems():
    problems = [
        {"code": "NOT_DICOM", "message": "not DICOM", "subject": f"{n}.txt"} for n in "abcde"
    ]
    text = describe_study({"series": [], "problems": problems})
    assert text == "  NOT_DICOM: not DICOM (a.txt, b.txt, c.txt and 2 more)"
    assert describe_study({"series": [], "problems": []}) == "nothing that is DICOM"
