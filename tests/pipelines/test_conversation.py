"""A conversation as a value: what the model is told, what the chatbot shows, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from encoders.dicom import Volume, load_volume
from encoders.errors import InputError
from multimodal.backends import Finished, Token, Usage
from multimodal.messages import Image, Message, Study, Text
from pipelines.ui.conversation import (
    Cost,
    Turn,
    answered,
    messages_of,
    plain,
    shown,
    turn_at,
    turn_of,
)
from pipelines.ui.strip import NUM_THUMBNAILS, close_studies, opened, strip_of
from pipelines.ui.words import told

COST = Cost(0.5, Usage(10, 20, 1, {"encode": 0.25, "decode": 2.0}))


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_studies()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Picture.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_model_is_told_everything_said_but_no_answer_to_the_last_question(picture: Path):
    talk = [
        Turn((Image(picture),), "What?", answer="A square.", cost=COST),
        Turn(words="Sure?", answer="half an ans"),
    ]
    assert messages_of(talk) == [
        Message("user", (Image(picture), Text("What?"))),
        Message("assistant", (Text("A square."),)),
        Message("user", (Text("Sure?"),)),
    ]


def test_an_empty_turn_is_still_a_message():
    assert messages_of([Turn()]) == [Message("user", (Text(""),))]


def test_a_study_is_opened_once_for_the_strip_and_every_question(
    phantom_series: Path, tmp_path: Path
):
    files = sorted(phantom_series.iterdir())
    turn = turn_of("What?", files, tmp_path / "place")
    volumes = [messages_of([turn])[0].parts[0] for _ in range(2)]
    assert isinstance(volumes[0], Study)
    assert isinstance(volumes[0].study, Volume)
    assert volumes[0].study is volumes[1].study
    assert volumes[0].study.digest == load_volume(phantom_series).digest
    assert opened.cache_info().misses == 1


def test_a_strip_shows_slices_from_first_to_last_and_names_no_patient(
    phantom_series: Path, tmp_path: Path
):
    strip = strip_of(phantom_series, tmp_path / "strip")
    assert strip.caption == "CT × 24"
    row = np.asarray(Picture.open(strip.path).convert("L"))
    thumbnails = np.split(row, NUM_THUMBNAILS, axis=1)
    volume = load_volume(phantom_series)
    for k, index in enumerate(np.linspace(0, 23, NUM_THUMBNAILS).round().astype(int)):
        bright = (volume.voxels[index] > -200).mean()  # soft tissue is white in the lung window
        # 64 rows of 1.5 mm and 48 columns of 2 mm: a square, without bars at its sides
        assert (thumbnails[k] > 100).mean() == pytest.approx(bright, abs=0.03)


def test_what_is_no_study_is_refused_before_it_is_shown(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="no DICOM image found"):
        turn_of("What?", [tmp_path / "notes.txt"], tmp_path / "place")


def test_an_answer_grows_and_ends_with_its_cost():
    clock = iter([0.5, 9.0])
    events = [Token("no "), Token("nodule"), Finished("no nodule", "stop", COST.usage)]
    turns = list(answered(Turn(words="What?"), iter(events), lambda: next(clock)))
    assert [t.answer for t in turns] == ["no ", "no nodule", "no nodule"]
    assert [t.cost for t in turns] == [None, None, Cost(0.5, COST.usage)]
    assert turns[-1].cost is not None
    assert turns[-1].cost.tokens_per_s == 10.0


def test_what_is_shown_holds_every_turn_in_order_and_the_cost_in_words(picture: Path):
    words = told(None)
    talk = [Turn((Image(picture),), "What?", answer="A square.", cost=COST), Turn(words="Sure?")]
    messages = shown(talk, words)
    assert [m["role"] for m in messages] == ["user", "user", "assistant", "assistant", "user"]
    assert messages[0]["content"] == {"path": str(picture)}
    assert messages[3]["metadata"]["title"] == "10 tokens/s · first token after 0.50 s"
    assert messages[3]["content"].splitlines() == [
        "read and encode: 0.25 s  ",
        "write the answer: 2.00 s  ",
        "10 tokens asked, 20 answered; 1 media encoded anew",
    ]
    assert [turn_at(talk, k) for k in range(5)] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "a & b < c", "&lt;script&gt;"])
def test_words_become_no_html(text: str):
    import html

    assert "<" not in plain(text)
    assert html.unescape(plain(text)) == text


@pytest.mark.parametrize(
    ("language", "words"), [("zh-CN,zh;q=0.9", "词元/秒"), ("en-GB", "tokens/s"), ("", "tokens/s")]
)
def test_the_server_speaks_the_browsers_language(language: str, words: str):
    class Request:
        headers: Any = {"accept-language": language}  # noqa: RUF012

    assert words in told(Request())["cost"]
