"""Transcriptions over the network, in every form that OpenAI's client asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.makers import FakeBackend
from tests.pipelines.server.running import Running, serving


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scipy.io import wavfile

    t = np.arange(10 * 16000) / 16000
    sound = 0.3 * np.sin(2 * np.pi * 220 * t) * (np.sin(2 * np.pi * 0.4 * t) > -0.7)
    path = tmp_path_factory.mktemp("said") / "said.wav"
    wavfile.write(path, 16000, sound.astype(np.float32))
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeBackend(answers={"Transcribe": "no effusion"})) as running:
        yield running


def transcribe(server: Running, recording: Path, **more: Any) -> Any:
    return server.client().audio.transcriptions.create(model="fake", file=recording, **more)


def test_json_text_and_verbose_json(server: Running, recording: Path):
    assert transcribe(server, recording).text == "no effusion no effusion"
    assert transcribe(server, recording, response_format="text") == "no effusion no effusion\n"
    told = transcribe(
        server, recording, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert told.duration == pytest.approx(10.0)
    assert [s.text for s in told.segments] == ["no effusion", "no effusion"]
    assert told.segments[0].end == told.segments[1].start


def test_subtitles(server: Running, recording: Path):
    """Both forms name the same times: the cut, and the end at ten seconds."""
    first, second = transcribe(server, recording, response_format="srt").strip().split("\n\n")
    assert first.splitlines()[0] == "1"
    assert first.splitlines()[1].startswith("00:00:00,000 --> 00:00:0")
    assert second.splitlines()[1].endswith("--> 00:00:10,000")
    vtt = transcribe(server, recording, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert "--> 00:00:10.000\nno effusion\n" in vtt


def test_segments_are_streamed_as_the_official_client_reads_them(server: Running, recording: Path):
    events = list(transcribe(server, recording, stream=True))
    deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
    assert deltas == ["no effusion ", "no effusion "]
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "no effusion no effusion"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"language": "de"}, "language"),
        ({"prompt": "x"}, "prompt"),
        ({"temperature": 0.5}, "temperature"),
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "srt", "stream": True}, "stream"),
        ({"timestamp_granularities": ["word"], "response_format": "verbose_json"},
         "timestamp_granularities"),
        ({"timestamp_granularities": ["segment"]}, "timestamp_granularities"),
        ({"include": ["logprobs"]}, "include[]"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_name(
    server: Running, recording: Path, given: Any, param: str
):
    with pytest.raises(openai.BadRequestError) as caught:
        transcribe(server, recording, **given)
    assert caught.value.param == param


def test_what_is_no_recording_is_refused(server: Running, tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVEnothing")
    (tmp_path / "b.wav").write_bytes(b"words")
    with pytest.raises(openai.BadRequestError, match="file is not audio"):
        transcribe(server, tmp_path / "b.wav")
    with pytest.raises(openai.BadRequestError) as caught:
        transcribe(server, tmp_path / "a.wav")
    assert caught.value.code == "unreadable_audio"
    with pytest.raises(openai.NotFoundError):
        server.client().audio.transcriptions.create(model="whisper-1", file=tmp_path / "a.wav")
    with server.http() as http:
        assert http.post("/v1/audio/transcriptions", json={}).status_code == 400
        missing = http.post("/v1/audio/transcriptions", files={"model": (None, b"fake")})
    assert missing.json()["error"]["param"] == "file"


def test_a_model_that_cannot_hear_says_so(recording: Path):
    deaf = FakeBackend(modalities=frozenset({"text", "image"}))
    with serving(deaf) as server, pytest.raises(openai.BadRequestError, match="cannot hear"):
        transcribe(server, recording)
