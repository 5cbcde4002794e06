"""Sizes told from headers, against what decoding gives; and that nothing is decoded for them."""

from __future__ import annotations

import io
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from encoders.dicom import load_volume, scan
from encoders.errors import MissingInput, UnreadableAudio, UnreadableImage
from multimodal.backends import MediaSize
from multimodal.local import LocalBackend
from multimodal.messages import Audio, Image, Message, Study, Video, user
from multimodal.sizes import measure, measure_media


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PilImage.new("L", (70, 30)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_sizes_are_those_of_the_decoded_media(
    picture: Path, clip: Path, speech: np.ndarray, phantom_series: Path
) -> None:
    told = measure_media([user(Image(picture), Video(clip), "?"), user(Audio(_wav(speech)))])
    assert told == (
        MediaSize("image", 2100, 1),
        MediaSize("video", 4096, 20, pytest.approx(2.0)),
        MediaSize("audio", 0, 0, pytest.approx(2.0)),
    )
    assert measure("dicom", phantom_series) == MediaSize("dicom", 64 * 48, 24)
    assert measure("dicom", load_volume(scan(phantom_series).default())).frames == 24
    assert measure("image", PilImage.new("L", (7, 3))).pixels == 21
    assert measure("audio", (np.zeros((2, 8000), np.float32), 8000)).seconds == 1.0


def _declaring(side: int) -> bytes:
    """A PNG that declares side x side pixels and ends before its data: to decode it fails."""
    buffer = io.BytesIO()
    PilImage.new("L", (16, 16)).save(buffer, "PNG")
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + buffer.getvalue()[24:29]
    start = buffer.getvalue()[:12] + header + zlib.crc32(header).to_bytes(4, "big")
    return start + (100).to_bytes(4, "big") + b"IDAT"


def test_a_picture_is_measured_or_refused_from_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(_declaring(8192))
    assert measure("image", tmp_path / "large.png").pixels == 8192**2
    (tmp_path / "bomb.png").write_bytes(_declaring(16384))
    with pytest.raises(UnreadableImage, match="bomb"):
        measure("image", tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("kind", "error"),
    [("image", UnreadableImage), ("video", UnreadableImage), ("audio", UnreadableAudio)],
)
def test_what_is_missing_or_something_else_is_refused_by_name(
    kind: str, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(MissingInput, match="nothing"):
        measure(kind, tmp_path / "nothing.bin")
    (tmp_path / "words.txt").write_text("not a medium")
    with pytest.raises(error, match="words"):
        measure(kind, tmp_path / "words.txt")


@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.9, 11.3])
def test_estimated_prompt_is_the_prompt_that_runs(
    seconds: float, tiny_composite: Any, phantom_series: Path, picture: Path, clip: Path
) -> None:
    """Exactly; only a recording of several windows may take a token less for each cut."""
    backend = LocalBackend(*tiny_composite)
    said = np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * 16000)).astype(np.float32)
    messages: list[Message] = [
        user(Study(phantom_series), "is there a nodule ?", Image(picture), Video(clip)),
        user(Audio(said, 16000), "how large"),
    ]
    told = backend.estimate(messages).prompt_tokens
    plain, parts = backend.processor.flatten(messages)
    media = [backend.processor.prepare(kind, value) for kind, value in parts]
    ran = backend.processor.join([backend.processor.render(plain)], [media])
    length = ran.tensors["input_ids"].shape[1]
    assert length <= told <= length + (0 if seconds <= 4 else 4)
