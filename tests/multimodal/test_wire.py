"""What leaves for a server: parts well-formed, pixels and sound exact, nothing else of a file."""

from __future__ import annotations

import base64
import io
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from encoders.dicom import PROFILES, load_volume, make_views
from encoders.errors import BurnedInText, InvalidMessage
from encoders.features import Problem
from multimodal.backends import Finished, collect
from multimodal.messages import Audio, Image, Study, Video, user
from multimodal.remote import RemoteBackend
from multimodal.wire import NUM_PICTURES
from tests import makers
from tests.scripted_server import ScriptedServer


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSREAD_API_KEY", raising=False)


def ask(server: ScriptedServer, *parts: Any) -> Finished:
    return collect(RemoteBackend(server.url).generate([user(*parts)]))


def sent_parts(server: ScriptedServer) -> list[dict[str, Any]]:
    return server.seen[-1]["messages"][-1]["content"]


def png(part: dict[str, Any]) -> tuple[np.ndarray, bytes]:
    """Pixels and bytes of an image part."""
    head, data = part["image_url"]["url"].split(",")
    assert (part["type"], head) == ("image_url", "data:image/png;base64")
    raw = base64.b64decode(data, validate=True)
    return np.asarray(PIL.Image.open(io.BytesIO(raw))), raw


def test_a_picture_arrives_pixel_for_pixel_without_its_metadata(
    model_server: ScriptedServer, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x010E] = "Zebra^Quagga"  # ImageDescription
    picture = PIL.Image.fromarray(pixels)
    picture.info.update(comment="Zebra^Quagga", icc_profile=b"Zebra^Quagga")
    picture.save(tmp_path / "Zebra.tiff", exif=exif)
    ask(model_server, "See", Image(tmp_path / "Zebra.tiff"), Image(picture))
    words, *pictures = sent_parts(model_server)
    assert words == {"type": "text", "text": "See"}
    for part in pictures:
        arrived, raw = png(part)
        np.testing.assert_array_equal(arrived, pixels)
        assert b"Zebra" not in raw


def test_sound_arrives_as_16_khz_wav(model_server: ScriptedServer, speech: np.ndarray) -> None:
    ask(model_server, Audio(speech, 16000), "Transcribe")
    part = sent_parts(model_server)[0]
    assert (part["type"], part["input_audio"]["format"]) == ("input_audio", "wav")
    with wave.open(
        io.BytesIO(base64.b64decode(part["input_audio"]["data"], validate=True))
    ) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        arrived = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(arrived, speech, atol=1 / 32767)


def test_a_study_arrives_as_labelled_windowed_slices(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    ask(model_server, Study(phantom_series), "List")
    *shown, words = sent_parts(model_server)
    assert words["text"] == "List"
    assert [p["text"] for p in shown[1::2]] == [f"SLICE {k}" for k in range(1, 25)]
    views = make_views(load_volume(phantom_series), PROFILES["medgemma-ct"])
    arrived = np.stack([png(part)[0] for part in shown[::2]])
    np.testing.assert_array_equal(arrived, np.moveaxis(views.pixels, 1, -1))
    # the windows of MedGemma 1.5 by hand: [-1024, 1024], [-135, 215] and [0, 80] HU
    assert arrived[0, 0, 0].tolist() == [round(255 * 24 / 2048), 0, 0]  # air, -1000 HU
    bone = [round(255 * (900 + 1024) / 2048), 255, 255]
    assert (arrived == bone).all(-1).any(axis=(1, 2)).sum() >= 3  # slices through the 900 HU block


def test_a_long_series_is_sent_as_so_many_slices(
    model_server: ScriptedServer, tmp_path: Path
) -> None:
    makers.write_blocks(tmp_path, shape=(70, 16, 12))
    ask(model_server, Study(tmp_path))
    labels = [p["text"] for p in sent_parts(model_server)[1::2]]
    assert labels == [f"SLICE {k}" for k in range(1, NUM_PICTURES + 1)]


def test_a_further_question_about_a_study_draws_nothing(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    backend, volume = RemoteBackend(model_server.url), load_volume(phantom_series)
    spent = [collect(backend.generate([user(Study(volume), q)])).usage.encoded_media for q in "abc"]
    assert spent == [1, 0, 0]
    first, _, last = (body["messages"][0]["content"][:-1] for body in model_server.seen)
    assert first == last


def test_pictures_that_may_show_a_name_are_held_back(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    risk = Problem("BURNED_IN_RISK", "a captured screen")
    volume = replace(load_volume(phantom_series), problems=(risk,))
    with pytest.raises(BurnedInText, match="nothing was shown to a model"):
        ask(model_server, Study(volume))
    assert model_server.seen == []


def test_problems_of_media_come_with_the_answer(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    volume = replace(load_volume(phantom_series), problems=(Problem("MISSING_SLICE", "one"),))
    assert ask(model_server, Study(volume)).problems == (Problem("MISSING_SLICE", "one"),)


def test_video_is_refused_before_anything_is_sent(model_server: ScriptedServer) -> None:
    with pytest.raises(InvalidMessage, match="takes no video"):
        ask(model_server, Video(Path("film.mp4")))
    assert model_server.seen == []
