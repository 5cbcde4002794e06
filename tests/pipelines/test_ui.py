"""The page: uploads become inputs, and a real server answers a real client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dicom import Volume, load_volume
from encoders.errors import InputError, MissingInput
from multimodal.backends import DEMO
from multimodal.messages import Audio, Image, Message, Study, Text, Video
from pipelines.ct_report import CtReportPipeline
from pipelines.ui import launch_options
from pipelines.ui.reading_room import read_upload
from pipelines.ui.uploads import (
    load_sample,
    message_of,
    messages_of,
    one_input,
)
from tests.makers import FakeBackend

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(
        answers={"hello": "good day", "Left eff": "insertion: remove"},
        chances={"images? Left eff": 0.1},
    )


def test_files_that_come_together_are_one_study(backend: FakeBackend, phantom_series: Path):
    files = [str(f) for f in sorted(phantom_series.iterdir())]
    reading = read_upload(backend, files, "Left effusion.")
    whole = CtReportPipeline(backend)(phantom_series, "Left effusion.")
    assert {**reading.to_dict(), "timings_s": 0} == {**whole.to_dict(), "timings_s": 0}


def test_a_zip_is_a_study(backend: FakeBackend, phantom_series: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for file in phantom_series.iterdir():
            archive.write(file, file.name)
    reading = read_upload(backend, [str(tmp_path / "study.zip")])
    assert reading.study["num_slices"] == 24


def test_files_of_one_name_are_kept_apart_and_called_by_it(tmp_path: Path):
    files = [tmp_path / "a" / "same.dcm", tmp_path / "b" / "same.dcm"]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(str(number))
    with one_input(files) as folder:
        found = sorted(folder.rglob("*.dcm"))
        assert [f.name for f in found] == ["same.dcm", "same.dcm"]
        assert [f.read_text() for f in found] == ["0", "1"]
    assert not folder.exists()
    assert all(file.is_file() for file in files)


@pytest.mark.parametrize("files", [None, []])
def test_nothing_given_is_help_not_failure(backend: FakeBackend, files: Any):
    with pytest.raises(MissingInput, match="Give a study first"):
        read_upload(backend, files)


@pytest.fixture
def media(tmp_path: Path, speech: np.ndarray) -> dict[str, Path]:
    """A picture, a video, and a dictation in a container that may hold either."""
    import av
    from PIL import Image as Picture

    Picture.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with av.open(str(tmp_path / "film.webm"), "w") as film:
        stream = film.add_stream("libvpx", rate=5)
        stream.width = stream.height = 32
        for grey in (0, 128, 255):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    with av.open(str(tmp_path / "voice.webm"), "w") as voice:
        stream = voice.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray((speech * 3e4).astype(np.int16)[None], layout="mono")
        frame.sample_rate = 48000
        voice.mux(stream.encode(frame))
        voice.mux(stream.encode())
    return {p.name: p for p in tmp_path.iterdir()}


def test_files_of_the_chat_box_become_parts_by_what_they_hold(media: dict[str, Path]):
    files = [str(media["a.png"]), str(media["film.webm"]), {"path": str(media["voice.webm"])}]
    message = message_of({"text": "What?", "files": files})
    assert message == Message(
        "user",
        (
            Image(media["a.png"]),
            Video(media["film.webm"]),
            Audio(media["voice.webm"]),
            Text("What?"),
        ),
    )


def test_slices_in_the_chat_box_are_one_study(phantom_series: Path):
    files = [str(f) for f in sorted(phantom_series.iterdir())]
    (part,) = message_of({"text": "", "files": files}).parts
    assert isinstance(part, Study)
    assert isinstance(part.study, Volume)
    assert part.study.digest == load_volume(phantom_series).digest
    (alone,) = message_of({"text": "", "files": files[:1]}).parts
    assert alone == Study(Path(files[0]))


def test_history_comes_back_as_the_messages_it_was(media: dict[str, Path]):
    history = [
        {"role": "user", "content": [{"type": "file", "file": {"path": str(media["a.png"])}}]},
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": ({"path": str(media["a.png"])},)},
    ]
    assert messages_of(history) == [
        Message("user", (Image(media["a.png"]), Text("What?"))),
        Message("assistant", (Text("A square."),)),
        Message("user", (Image(media["a.png"]),)),
    ]


def test_an_empty_turn_is_still_a_message():
    assert message_of({"text": "", "files": []}) == Message("user", (Text(""),))


def test_the_sample_is_loaded_or_its_absence_explained():
    if (DEMO / "sample" / "report.txt").is_file():
        files, report = load_sample()
        assert len(files) >= 8
        assert report.strip()
    else:
        with pytest.raises(InputError, match="no sample study"):
            load_sample()


def test_the_launcher_explains_itself_without_loading_anything():
    code = (
        "import sys; sys.argv = ['app.py', '--help']; import app\ntry: app.main()\n"
        "except SystemExit: pass\nassert not {'gradio', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "--port" in done.stdout


def test_the_page_may_fetch_nothing_from_elsewhere():
    options = launch_options()
    assert "default-src 'self' " in options["head"]
    sources = set(re.findall(r"[a-z-]+-src ([^;\"]*)", options["head"]))
    assert not [s for s in " ".join(sources).split() if "http" in s or s == "*"]
    fonts = [str(f) for f in (*options["theme"]._font, *options["theme"]._font_mono)]
    assert not [f for f in fonts if "google" in f.lower()]
    assert options["max_file_size"] == "1gb"


@pytest.mark.slow
def test_a_served_page_reads_a_study_talks_and_explains_errors(phantom_series: Path):
    command = [sys.executable, "-m", "tests.pipelines.served_page", str(phantom_series)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    reading = answers["reading"]
    assert reading["answer"] == "good day"
    assert [d["type"] for d in reading["discrepancies"]] == ["insertion"]
    assert reading["study"]["num_slices"] == 24
    assert "Give a study first" in answers["nothing"]
    assert "no DICOM image found" in answers["no dicom"]
    assert answers["chat"] == "good day"
    assert "Traceback" not in done.stderr
