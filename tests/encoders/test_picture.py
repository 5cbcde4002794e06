"""Pictures as phones, scanners and other programs write them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from encoders.errors import InvalidPixels, MissingInput, UnreadableImage
from encoders.picture import open_picture

COLOURS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def test_a_file_a_picture_and_an_array_are_the_same(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    for value in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(COLOURS), COLOURS):
        picture, problems = open_picture(value)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), COLOURS)
        assert problems == ()


def test_a_phones_picture_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right when shown
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    picture, _ = open_picture(tmp_path / "a.png")
    assert np.array_equal(np.asarray(picture), np.rot90(COLOURS, -1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_are_stretched_and_said_so(dtype: type, tmp_path: Path) -> None:
    grey = np.array([[100, 600], [1100, 4100]], dtype)
    path = tmp_path / "a.tiff"
    Image.fromarray(grey).save(path)
    picture, (problem,) = open_picture(path)
    wanted = np.round((grey.astype(float) - 100) / 4000 * 255)
    assert np.array_equal(np.asarray(picture)[..., 0], wanted)
    assert problem.code == "STRETCHED"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_usual_mode_becomes_colour(mode: str) -> None:
    picture, _ = open_picture(Image.new(mode, (4, 3)))
    assert (picture.mode, picture.size) == ("RGB", (4, 3))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "NaN or infinite"),
        (np.zeros((2, 2, 4), np.uint8), r"\[2, 2, 4\]"),
        (np.zeros((0, 2), np.uint8), r"\[0, 2\]"),
        (np.zeros(5, np.uint8), r"\[5\]"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(pixels: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidPixels, match=words):
        open_picture(pixels)


def test_a_missing_file_and_another_type_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"gone\.png"):
        open_picture(tmp_path / "gone.png")
    with pytest.raises(UnreadableImage, match="a list is no picture"):
        open_picture([1, 2])  # type: ignore[arg-type]


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.tile(COLOURS, (8, 8, 1))).save(file, "PNG")
    return file.getvalue()


@given(place=st.integers(0, len(_png()) - 1), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=120, deadline=None)
def test_a_damaged_file_is_a_picture_or_is_refused_by_name(
    place: int, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(_png())
    data[place] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(bytes(data[:place] if cut else data))
    refused = ""
    try:
        assert open_picture(path)[0].mode == "RGB"
    except UnreadableImage as error:
        refused = str(error)
    assert refused == "" or refused.startswith("'damaged.png'")
