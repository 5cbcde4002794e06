"""Palettes against pydicom where it is right, and closed forms where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset

from encoders.dicom.palette import expand_segments, palette_of
from encoders.errors import InvalidPixels

LITTLE, BIG = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian


def _header(data: bytes, descriptor: list[int], syntax=LITTLE, **values: Any) -> Dataset:
    header = Dataset()
    header.PhotometricInterpretation, header.PixelRepresentation = "PALETTE COLOR", 0
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    for colour in ("Red", "Green", "Blue"):
        header.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", descriptor)
        setattr(header, f"{colour}PaletteColorLookupTableData", data)
    for name, value in values.items():
        setattr(header, name, value)
    return header


def _red(header: Dataset, stored: list[int]) -> list[int]:
    palette = palette_of(header)
    assert palette is not None
    return palette.apply(np.array(stored))[..., 0].tolist()


def test_recorded_palette_gives_pydicoms_colours() -> None:
    header = pydicom.dcmread(get_testdata_file("examples_palette.dcm", download=False))
    palette = palette_of(header)
    assert palette is not None
    theirs = pydicom.pixels.apply_color_lut(header.pixel_array, header)
    theirs = theirs >> 8 if theirs.dtype == np.uint16 else theirs
    assert np.array_equal(palette.apply(header.pixel_array), theirs)


def test_values_before_and_after_the_table_take_its_ends() -> None:
    table = np.array([10, 20, 30], "<u2") * 256
    assert _red(_header(table.tobytes(), [3, 5, 16]), [0, 5, 6, 7, 99]) == [10, 10, 20, 30, 30]


@pytest.mark.parametrize("syntax", [LITTLE, BIG])
def test_words_are_read_in_the_byte_order_of_the_file(syntax: str) -> None:
    """pydicom reads them in the machine's order, so that a big-endian file changes its colours."""
    order = ">" if syntax == BIG else "<"
    wide = np.array([0x1122, 0x3344], f"{order}u2").tobytes()
    assert _red(_header(wide, [2, 0, 16], syntax), [0, 1]) == [0x11, 0x33]
    narrow = np.array([0x2211, 0x4433], f"{order}u2").tobytes()
    assert _red(_header(narrow, [4, 0, 8], syntax), [0, 1, 2, 3]) == [0x11, 0x22, 0x33, 0x44]


def test_eight_bit_table_of_many_entries_does_not_wrap() -> None:
    """pydicom indexes with the table's own type: entry 256 becomes entry 0."""
    table = np.arange(1024) // 4
    header = _header(table.astype(np.uint8).tobytes(), [1024, 0, 8])
    assert _red(header, [0, 256, 1023, 5000]) == [0, 64, 255, 255]


def test_eight_bit_colours_in_sixteen_bit_entries_are_not_black() -> None:
    table = np.array([0, 100, 255], "<u2")
    assert _red(_header(table.tobytes(), [3, 0, 16]), [0, 1, 2]) == [0, 100, 255]


def test_signed_pixels_are_mapped_from_a_negative_first_value() -> None:
    table = (np.array([1, 2, 3], "<u2") * 256).tobytes()
    header = _header(table, [3, 65535, 16], PixelRepresentation=1)
    assert _red(header, [-5, -1, 0, 1]) == [1, 1, 2, 3]


def test_supplemental_palette_colours_its_range_and_leaves_the_rest_grey() -> None:
    table = (np.array([200, 100], "<u2") * 256).tobytes()
    header = _header(table, [2, 1000, 16], PixelPresentation="COLOR")
    header.PhotometricInterpretation = "MONOCHROME2"
    palette = palette_of(header)
    assert palette is not None
    stored, grey = np.array([5, 1000, 1001, 1002]), np.array([7, 8, 9, 10], np.uint8)
    assert palette.apply(stored, grey)[:, 1].tolist() == [7, 200, 100, 10]


def test_grey_image_without_palette_has_none() -> None:
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    assert palette_of(header) is None


@pytest.mark.parametrize("bits", [8, 16])
def test_segments_are_expanded_as_the_standard_says(bits: int) -> None:
    """Three values, a line of four to 7, and a copy of both: 11 words of table make 14 entries."""
    offset = [0, 0, 0, 0] if bits == 8 else [0, 0]
    words = [0, 3, 1, 2, 3, 1, 4, 7, 2, 2, *offset]
    plain = [1, 2, 3, 4, 5, 6, 7]
    assert expand_segments(words, bits) == plain * 2
    dtype = "u1" if bits == 8 else "<u2"
    header = _header(b"", [14, 0, bits])
    for colour in ("Red", "Green", "Blue"):
        data = np.array(words, dtype).tobytes()
        setattr(header, f"Segmented{colour}PaletteColorLookupTableData", data)
    assert _red(header, list(range(14))) == plain * 2


def test_a_copy_counts_its_place_in_bytes() -> None:
    words = [0, 1, 500, 0, 2, 600, 700, 2, 1, 6, 0]  # copies the second segment, at byte 6
    assert expand_segments(words, 16) == [500, 600, 700, 600, 700]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9), st.integers(0, 65535)), min_size=1, max_size=8)
)  # fmt: skip
def test_plain_and_straight_segments_equal_pydicoms(parts: list[tuple[int, int, int]]) -> None:
    from pydicom.pixels.processing import _expand_segmented_lut

    words = [0, 1, 77]
    for code, length, value in parts:
        words += [1, length, value] if code else [0, length, *([value] * length)]
    assert expand_segments(words, 16) == _expand_segmented_lut(tuple(words), "<H")


@pytest.mark.parametrize("words", [[0, 5, 1], [1, 4, 7], [0, 1, 1, 3, 0], [0, 1, 1, 2, 1, 6, 0]])
def test_broken_segments_are_refused(words: list[int]) -> None:
    with pytest.raises(InvalidPixels, match="segmented palette"):
        expand_segments(words, 16)


def test_palette_that_is_too_short_or_of_odd_depth_is_refused() -> None:
    with pytest.raises(InvalidPixels, match="holds 2"):
        palette_of(_header(b"\1\0\2\0", [9, 0, 16]))
    with pytest.raises(InvalidPixels, match="12 bits"):
        palette_of(_header(b"\1\0\2\0", [2, 0, 12]))
    with pytest.raises(InvalidPixels, match="without data"):
        palette_of(_header(b"", [2, 0, 16]))
