"""What a compressed frame says of itself, read before anything decodes it.

Bytes in; size, samples and precision out, or the reason why the frame is not whole. Knows the
headers of JPEG, JPEG-LS, JPEG 2000 and RLE, nothing of DICOM attributes and no decoder.
"""

from __future__ import annotations

from dataclasses import dataclass


class Malformed(ValueError):
    """A codestream that is not what its syntax asks for; the words are safe to show."""


@dataclass(frozen=True)
class Shape:
    """The size a codestream declares."""

    rows: int
    columns: int
    samples: int
    precision: int


def jpeg_shape(data: bytes) -> Shape:
    """From SOF (ISO 10918-1 B.2.2) or JPEG-LS SOF55 (ISO 14495-1 C.2.2); its end must be there.

    Raises:
        Malformed: no frame header, or the stream stops before its EOI marker.
    """
    if data[:2] != b"\xff\xd8":
        raise Malformed("does not begin with a JPEG SOI marker")
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            raise Malformed(f"has no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            # every later FF in the scan is stuffed, so only the real end reads FFD9
            if data.find(b"\xff\xd9", max(at, len(data) - 1024)) < 0:
                raise Malformed("is cut short: it has no EOI marker")
            rows, columns = _number(data, at + 5, 2), _number(data, at + 7, 2)
            return Shape(rows, columns, data[at + 9], data[at + 4])
        elif marker == 0xDA:
            break
        else:
            at += 2 + _number(data, at + 2, 2)
    raise Malformed("has no frame header (SOF)")


def j2k_shape(data: bytes) -> Shape:
    """From SIZ (ISO 15444-1 A.5.1); the tile parts must reach to the end marker.

    Raises:
        Malformed: no SIZ, subsampled components (decoders stretch them without a word), or a tile
            part (Psot) that leads beyond the data or astray.
    """
    if data[4:8] == b"jP  ":  # a JP2 file instead of the bare codestream: tolerated by decoders
        start = data.find(b"\xff\x4f\xff\x51")
        data = data[start:] if start > 0 else b""
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 43:
        raise Malformed("does not begin with the JPEG 2000 markers SOC and SIZ")
    x1, y1, x0, y0 = (_number(data, at, 4) for at in (8, 12, 16, 20))
    shape = Shape(y1 - y0, x1 - x0, _number(data, 40, 2), (data[42] & 0x7F) + 1)
    components = data[42 : 42 + 3 * shape.samples]
    if any(step != 1 for step in components[1::3] + components[2::3]):  # XRsiz, YRsiz
        raise Malformed("has fewer samples than pixels, which DICOM does not allow")  # PS3.5 8.2.4
    _walk_tile_parts(data)
    return shape


def _walk_tile_parts(data: bytes) -> None:
    at = 4 + _number(data, 4, 2)
    while data[at : at + 2] != b"\xff\x90":  # other segments of the main header
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            raise Malformed("has no tile part (SOT)")
        at += 2 + max(_number(data, at + 2, 2), 2)
    while data[at : at + 2] == b"\xff\x90":
        length = _number(data, at + 6, 4)
        if length == 0:  # the last tile part runs to the end (A.4.2)
            at = data.rfind(b"\xff\xd9", at)
            break
        if length < 14 or at + length > len(data):
            raise Malformed(
                f"has a tile part of {length} bytes (Psot) where {max(len(data) - at, 0)} follow"
            )
        at += length
    if data[at : at + 2] != b"\xff\xd9":
        raise Malformed("is cut short: its tile parts do not lead to the EOC marker")


def check_rle(data: bytes, rows: int, columns: int, num_bytes: int) -> None:
    """The RLE header against the attributes (PS3.5 G.5): one segment for each byte of a pixel.

    Raises:
        Malformed: another number of segments, offsets out of order, or too little data: PackBits
            makes at most 128 bytes out of 2.
    """
    if len(data) < 64:
        raise Malformed(f"has {len(data)} bytes, less than an RLE header")
    count = int.from_bytes(data[:4], "little")
    if count != num_bytes:
        raise Malformed(f"has {count} RLE segments where the attributes need {num_bytes}")
    offsets = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(1, count + 1)]
    bounds = [*offsets, len(data)]
    if offsets[0] != 64 or any(a >= b for a, b in zip(offsets, bounds[1:], strict=True)):
        raise Malformed(f"has RLE segments at {offsets} of {len(data)} bytes")
    for start, stop in zip(offsets, bounds[1:], strict=True):
        if 64 * (stop - start) < rows * columns:
            raise Malformed(
                f"has an RLE segment of {stop - start} bytes, too short for {rows * columns} pixels"
            )


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
