"""Stored values -> colours by a palette: PALETTE COLOR images and supplemental palettes.

PS3.3 C.7.6.3.1.5-6 (plain tables), C.7.9.2 (segmented ones), C.7.6.19 (colour over part of a grey
image). pydicom's own function wraps indices of 8-bit tables and refuses supplemental ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoders.errors import InvalidPixels

_COLOURS = ("Red", "Green", "Blue")
_MAX_ENTRIES = 2**16
KEYWORDS = (
    "PixelPresentation",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{kind}{colour}PaletteColorLookupTableData" for kind in ("", "Segmented") for colour in _COLOURS),
)  # fmt: skip


@dataclass(frozen=True)
class Palette:
    """Colours of stored values from `first` on: `colours` uint8 `[entries, 3]`.

    `supplemental`: values outside the table stay grey; else they take its first or last colour.
    """

    first: int
    colours: np.ndarray
    supplemental: bool = False

    def apply(self, stored: np.ndarray, grey: np.ndarray | None = None) -> np.ndarray:
        """uint8 `[..., 3]` of stored values.

        Args:
            stored: integers.
            grey: uint8 grey levels of the same pixels, for a supplemental palette.
        """
        index = stored.astype(np.int64) - self.first
        last = len(self.colours) - 1
        out = self.colours[np.clip(index, 0, last)]
        if self.supplemental and grey is not None:
            outside = (index < 0) | (index > last)
            out[outside] = grey[outside][:, None]
        return out


def palette_of(header: Any) -> Palette | None:
    """The palette a header (of pydicom) colours its pixels with, None where there is none.

    Raises:
        InvalidPixels: tables that are broken or do not fit each other.
    """
    kind = str(header.get("PhotometricInterpretation", ""))
    presentation = str(header.get("PixelPresentation", ""))
    supplemental = kind.startswith("MONOCHROME") and presentation in ("COLOR", "MIXED")
    if kind != "PALETTE COLOR" and not supplemental:
        return None
    little = _is_little(header)
    descriptor = _descriptor(header)
    if descriptor is None:
        if supplemental:
            return None
        raise InvalidPixels("a palette image without a Palette Color Lookup Table Descriptor")
    count, first, bits = descriptor
    channels = [_channel(header, colour, count, bits, little) for colour in _COLOURS]
    if first > 32767 and int(header.get("PixelRepresentation") or 0):
        first -= 65536
    return Palette(first, np.stack(channels, 1), supplemental)


def _descriptor(header: Any) -> tuple[int, int, int] | None:
    value = header.get("RedPaletteColorLookupTableDescriptor")
    if value is None or len(value) != 3:
        return None
    count, first, bits = (int(v) for v in value)
    if bits not in (8, 16):
        raise InvalidPixels(f"a palette of {bits} bits; only 8 and 16 are allowed")
    return count or _MAX_ENTRIES, first, bits


def _is_little(header: Any) -> bool:
    """Whether words of OW values are little-endian in the data set."""
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    return str(syntax) != "1.2.840.10008.1.2.2"


def _channel(header: Any, colour: str, count: int, bits: int, little: bool) -> np.ndarray:
    """One colour's table as uint8 `[count]`."""
    plain = header.get(f"{colour}PaletteColorLookupTableData")
    segmented = header.get(f"Segmented{colour}PaletteColorLookupTableData")
    if plain:
        entries = _plain(bytes(plain), count, bits, little)
    elif segmented:
        words = _words(bytes(segmented), bits, little)
        entries = np.array(expand_segments(words.tolist(), bits, count), np.int64)
    else:
        raise InvalidPixels(f"a palette without data for {colour.lower()}")
    if len(entries) < count:
        raise InvalidPixels(f"a palette of {count} entries holds {len(entries)}")
    entries = entries[:count]
    if bits == 16 and entries.max(initial=0) > 255:  # else 8-bit colours in 16-bit entries
        entries = entries >> 8
    return entries.astype(np.uint8)


def _plain(data: bytes, count: int, bits: int, little: bool) -> np.ndarray:
    """Entries of a table: 8-bit ones may lie in bytes (two to a word) or in words."""
    if bits == 8 and len(data) < 2 * count:
        return _words(data, 8, little).astype(np.int64)
    return _words(data, 16, little).astype(np.int64)


def _words(data: bytes, bits: int, little: bool) -> np.ndarray:
    """OW data as numbers; bytes of a big-endian word come swapped."""
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
    return words if bits == 16 else words.astype("<u2").view(np.uint8)


def expand_segments(words: Sequence[int], bits: int, limit: int = _MAX_ENTRIES) -> list[int]:
    """Segments (PS3.3 C.7.9.2) as entries: 0 discrete, 1 linear, 2 a copy of earlier segments.

    Raises:
        InvalidPixels: an unknown segment, one that is cut short, or a copy within a copy.
    """
    out: list[int] = []

    def expand(at: int, num_segments: int, copying: bool) -> None:
        for _ in range(num_segments):
            if at + 1 >= len(words) or len(out) >= limit:  # one word may be left: padding
                return
            code, length = words[at], words[at + 1]
            size = {0: length, 1: 1, 2: 32 // bits}.get(code, 0)
            body = words[at + 2 : at + 2 + size]
            if len(body) < size or (code == 1 and not out):
                raise InvalidPixels("a segmented palette is cut short or starts with a line")
            if code == 0:
                out.extend(body)
            elif code == 1:
                line = np.linspace(out[-1], body[0], length + 1)[1:]
                out.extend(np.rint(line).astype(int).tolist())
            elif code == 2 and not copying:  # body: byte offset, least significant word first
                offset = sum(word << (bits * place) for place, word in enumerate(body))
                expand(offset * 8 // bits, length, True)
            else:
                raise InvalidPixels(f"a segmented palette has a segment of kind {code}")
            at += 2 + size

    expand(0, len(words), False)
    return out
