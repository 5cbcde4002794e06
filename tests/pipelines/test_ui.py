"""The page: uploads become inputs, and a real server answers a real client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dicom import load_volume
from encoders.errors import InputError, InvalidMessage
from multimodal.backends import DEMO
from multimodal.messages import Audio, Image, Study, Video
from pipelines.ct_report import CtReportPipeline
from pipelines.ui import launch_options
from pipelines.ui.uploads import (
    load_sample,
    one_input,
    parts_of,
    received,
)
from tests.makers import FakeBackend

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(
        answers={"hello": "good day", "Left eff": "insertion: remove"},
        chances={"images? Left eff": 0.1},
    )


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


def test_files_become_parts_by_what_they_hold(media: dict[str, Path], tmp_path: Path):
    files = [media["a.png"], media["film.webm"], media["voice.webm"]]
    assert parts_of(files, tmp_path / "study") == (
        Image(media["a.png"]),
        Video(media["film.webm"]),
        Audio(media["voice.webm"]),
    )


def test_slices_that_come_together_are_one_study(phantom_series: Path, tmp_path: Path):
    files = sorted(phantom_series.iterdir())
    (part,) = parts_of(files, tmp_path / "study")
    assert part == Study(tmp_path / "study")
    assert load_volume(tmp_path / "study").digest == load_volume(phantom_series).digest
    assert parts_of(files[:1], tmp_path) == (Study(files[0]),)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("https://elsewhere.example/study.zip", "give a file as an upload"),
        ("/etc/passwd", "give a file as an upload"),
        ("data:image/png;base64,&&&", "not base64"),
    ],
)
def test_an_endpoint_takes_uploads_and_data_urls_and_nothing_else(file: str, words: str):
    with pytest.raises(InvalidMessage, match=words):
        received(file)


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
    assert options["max_file_size"] == 2**30
    assert options["run_history"] is False
    assert options["ssr_mode"] is False
    assert options["ssr_mode"] is False


@pytest.fixture(scope="module")
def answers(phantom_series: Path) -> dict[str, Any]:
    """What a served page said to `gradio_client` and to an MCP client."""
    command = [sys.executable, "-m", "tests.pipelines.served_page", str(phantom_series)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_endpoints_answer_gradios_client_as_the_pipelines_do(
    answers: dict[str, Any], backend: FakeBackend, phantom_series: Path
):
    assert answers["endpoints"] == ["/chat", "/review", "/transcribe"]
    own = CtReportPipeline(backend)(phantom_series, "Left effusion.", None, "hello?").to_dict()
    assert {**answers["review"], "timings_s": 0} == {**own, "timings_s": 0}
    assert answers["chat"] == answers["about a study"] == {"text": "good day", "reason": "stop"}
    assert answers["transcribe"]["text"] == "no nodule"


@pytest.mark.slow
def test_a_served_page_tells_that_it_is_well(answers: dict[str, Any]):
    assert answers["health"] == {"status": "ok"}


@pytest.mark.slow
def test_an_endpoint_explains_what_it_cannot_read(answers: dict[str, Any]):
    assert "no DICOM image found" in answers["no dicom"]
    assert "cannot be opened as audio" in answers["no sound"]


@pytest.mark.slow
def test_the_endpoints_are_tools_of_the_model_context_protocol(answers: dict[str, Any]):
    mcp = answers["mcp"]
    assert sorted(mcp["tools"]) == ["chat", "review", "transcribe"]
    assert "not for clinical use" in mcp["tools"]["review"]
    assert "'type': 'insertion'" in mcp["review"]
    assert "good day" in mcp["chat"]
    assert "good day" in mcp["about a study"]
    assert "no nodule" in mcp["transcribe"]
    assert "give a file as an upload" in mcp["no such"]
