"""The wanted elements of a DICOM header, read in one pass over bytes with a limit on everything.

pydicom builds an object for every element and has no limits; a scan needs some forty values of
thousands of files, foreign ones among them. In: the first bytes of a file; out: tag -> raw value.
Knows the encodings of PS3.5, nothing of what a tag means.
"""

from __future__ import annotations

import math
import re
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from encoders.dicom import tags

MAX_DEPTH = 32  # of sequences; the deepest report of TID 1500 uses about ten
MAX_ELEMENTS = 1_000_000
MAX_CPU_SECONDS = 1.5
MAX_HEADER_BYTES = 64 * 2**20  # before the pixel data
FIRST_BYTES = 2**15

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

_SYNTAX = 0x00020010
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_LAST = _PIXELS | {0x00420011, 0x54000100}  # nothing wanted comes after a document or waveform
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR",
                   b"UT", b"UV"})  # fmt: skip  # VRs of a 32-bit length (PS3.5 7.1.2)

Tree = dict[int, Any]  # tag -> bytes, or a list of Trees for a sequence


class Flaw(Exception):
    """Why a header cannot be read to its end; the message is for the user."""

    def __init__(self, message: str, code: str = "UNREADABLE_FILE") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Elements:
    """What was read of one file.

    Attributes:
        values: the wanted elements of the data set.
        syntax: Transfer Syntax UID; guessed where the file lacks a meta header.
        little: whether numbers are little endian.
        pixels: (offset in the file, length) of the pixel data's value, None if there is none;
            length -1 if encapsulated; offset 0 in a deflated data set.
        flaw: what ended the reading early, None if it reached pixel data or the file's end.
        prefix: bytes to put before the file so that it has the preamble and meta it lacks.
    """

    meta: Tree = field(default_factory=dict)
    values: Tree = field(default_factory=dict)
    syntax: str = ""
    little: bool = True
    pixels: tuple[int, int] | None = None
    flaw: Flaw | None = None
    prefix: bytes = b""


def read_elements(
    read: Callable[[int], bytes], wanted: frozenset[int], *, lenient: bool = False
) -> Elements:
    """The wanted elements before the pixel data.

    Args:
        read: gives up to so many first bytes of the file.
        wanted: tags; those of sequences are followed, and their items searched for `wanted` too.
        lenient: also accept a file without preamble or meta header, or with a wrong one.

    Raises:
        Flaw: not DICOM (`NOT_DICOM`), or the encoding is unknown (`WRONG_TRANSFER_SYNTAX`).
    """
    size = FIRST_BYTES
    while True:
        data = read(size)
        whole = len(data) < size
        found = _read(data, wanted, whole=whole, lenient=lenient)
        if whole or not isinstance(found.flaw, _Short):
            break
        if size >= MAX_HEADER_BYTES:
            found.flaw = Flaw(f"more than {MAX_HEADER_BYTES >> 20} MiB before the pixel data")
            break
        size *= 16
    if found.flaw and not found.syntax:
        raise found.flaw
    return found


class _Short(Flaw):
    """The bytes end within an element."""

    def __init__(self) -> None:
        super().__init__("the file ends within its header")


def _read(data: bytes, wanted: frozenset[int], *, whole: bool, lenient: bool) -> Elements:
    out = Elements()
    try:
        start = _read_meta(data, out, lenient)
        explicit = _encoding(data, start, out, lenient)
        if out.syntax == DEFLATED:
            data, whole = _inflate(data[start:], whole)
            start = 0
        walk = _Walk(data, wanted, out.little)
        try:
            end = len(data) if whole else _UNDEFINED
            if walk._dataset(start, end, 0, explicit, out.values) > len(data):
                raise _Short
        finally:
            out.pixels = walk.pixels
        if out.pixels and out.syntax == DEFLATED:
            out.pixels = (0, out.pixels[1])
    except struct.error:
        out.flaw = _Short()
    except Flaw as flaw:
        out.flaw = flaw
    return out


def _read_meta(data: bytes, out: Elements, lenient: bool) -> int:
    """Reads preamble and File Meta Information (PS3.10 7.1); returns where the data set starts."""
    start = 132
    if data[128:132] != b"DICM":
        if not data:
            raise Flaw("the file is empty", "NOT_DICOM")
        if not lenient:
            archive = data[:2] in (b"PK", b"\x1f\x8b")
            words = "an archive; give it by itself" if archive else "no DICM prefix"
            raise Flaw(f"not a DICOM file ({words})", "NOT_DICOM")
        start = 0
        out.prefix = b"\0" * 128 + b"DICM"
    if data[start : start + 2] != b"\x02\0":
        return start
    wanted = frozenset({tags.META_SOP_CLASS, _SYNTAX})
    walk = _Walk(data, wanted, True)
    start = walk._dataset(start, len(data), 0, True, out.meta, group=2)
    out.syntax = text(out.meta.get(_SYNTAX))
    return start


def _encoding(data: bytes, start: int, out: Elements, lenient: bool) -> bool:
    """Whether VRs are explicit; sets endianness. What the first element looks like must agree."""
    looks = "" if out.syntax == DEFLATED else _looks_like(data[start : start + 6])
    if out.syntax:
        says = out.syntax if out.syntax in (IMPLICIT, BIG_ENDIAN) else EXPLICIT
        known = out.syntax.startswith("1.2.840.10008.1.2") or looks == EXPLICIT
        if not known or (looks and looks != says and not lenient):
            raise Flaw(
                "the data set is not encoded as (0002,0010) Transfer Syntax UID says;"
                " convert the file, or read it leniently", "WRONG_TRANSFER_SYNTAX"
            )  # fmt: skip
        says = looks or says
    else:
        if not lenient:
            raise Flaw(
                "no Transfer Syntax UID (0002,0010); convert the file, or read it leniently",
                "WRONG_TRANSFER_SYNTAX",
            )
        if not looks:
            raise Flaw("not a DICOM file", "NOT_DICOM")
        out.syntax = says = looks
    out.little = says != BIG_ENDIAN
    if out.prefix and not out.meta:
        out.prefix += _meta_header(out.syntax)
    return says != IMPLICIT


def _looks_like(first: bytes) -> str:
    """The transfer syntax by the first element: low group numbers come first, VRs are letters."""
    if len(first) < 6:
        return ""
    little = first[1] == 0 and first[0] != 0
    if not little and not (first[0] == 0 and first[1] != 0):
        return ""
    letters = first[4:6].isalpha() and first[4:6].isupper()
    if not little:
        return BIG_ENDIAN if letters else ""
    return EXPLICIT if letters else IMPLICIT


def _meta_header(syntax: str) -> bytes:
    """The shortest File Meta Information that names the transfer syntax."""
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value
    return struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(element)) + element


def _inflate(data: bytes, whole: bool) -> tuple[bytes, bool]:
    """The start of a deflated data set (PS3.5 A.5), and whether that is all of it."""
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = machine.decompress(data, min(8 * len(data) + 1024, MAX_HEADER_BYTES))
    except zlib.error:
        raise Flaw("the deflated data set is broken") from None
    return inflated, whole and not machine.unconsumed_tail


class _Walk:
    """One pass over bytes; counts what it reads and stops at the limits."""

    def __init__(self, data: bytes, wanted: frozenset[int], little: bool) -> None:
        self.data, self.wanted = data, wanted
        self.pixels: tuple[int, int] | None = None
        order = "<" if little else ">"
        self.explicit = struct.Struct(order + "HH2sH").unpack_from
        self.implicit = struct.Struct(order + "HHL").unpack_from
        self.long = struct.Struct(order + "L").unpack_from
        self.count = 0
        self.deadline = time.thread_time() + MAX_CPU_SECONDS

    def charge(self, count: int) -> None:
        self.count += count
        if self.count > MAX_ELEMENTS:
            raise Flaw(f"more than {MAX_ELEMENTS} elements in the header")
        if time.thread_time() > self.deadline:
            raise Flaw(f"reading the header took more than {MAX_CPU_SECONDS} s")

    def _dataset(
        self, pos: int, end: int, depth: int, explicit: bool, found: Tree, group: int | None = None
    ) -> int:  # fmt: skip
        """Elements from `pos` to `end` or an item's delimiter; returns where they end."""
        data, wanted, known = self.data, self.wanted, len(self.data)
        count = 0
        while pos < end:
            if end == known and end - pos < 8:
                return end  # trailing bytes
            count += 1
            if count == 1024:
                self.charge(count)
                count = 0
            high, low, vr, length = self.explicit(data, pos)
            tag = high << 16 | low
            if group is not None and high != group:
                break
            pos += 8
            if high == 0xFFFE:
                if tag == _ITEM_END and depth:
                    break
                raise Flaw("an item outside a sequence")
            if not explicit or not b"AA" <= vr <= b"ZZ":  # some writers slip into implicit VR
                vr, length = b"", self.long(data, pos - 4)[0]
            elif vr in _LONG:
                length = self.long(data, pos)[0]
                pos += 4
            if tag in _LAST and not depth:
                if tag in _PIXELS:
                    self.pixels = (pos, -1 if length == _UNDEFINED else length)
                break
            if length == _UNDEFINED or (tag in wanted and (vr == b"SQ" or tag in tags.SEQUENCES)):
                keep: list[Tree] | None = [] if tag in wanted else None
                if keep is not None:
                    found[tag] = keep  # also what was read of a sequence that breaks off
                stop = end if length == _UNDEFINED else pos + length
                pos = self._items(pos, stop, depth + 1, explicit and vr != b"UN", keep)
                continue
            if tag in wanted:
                if pos + length > known:
                    raise _Short
                found[tag] = data[pos : pos + length]
            pos += length
        self.charge(count)
        return pos

    def _items(
        self, pos: int, end: int, depth: int, explicit: bool, keep: list[Tree] | None
    ) -> int:  # fmt: skip
        """The items of a sequence; those of one that is not kept are only stepped over."""
        if depth > MAX_DEPTH:
            raise Flaw(f"sequences nested more than {MAX_DEPTH} deep")
        while pos < end:
            self.charge(1)
            high, low, length = self.implicit(self.data, pos)
            tag = high << 16 | low
            pos += 8
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise Flaw("a sequence that holds something else than items")
            item: Tree = {}
            if length == _UNDEFINED:
                pos = self._dataset(pos, end, depth, explicit, item)
            else:
                if keep is not None:
                    self._dataset(pos, pos + length, depth, explicit, item)
                pos += length
            if keep is not None:
                keep.append(item)
        return pos


def text(value: Any) -> str:
    """A character value without its padding; what is not ASCII is replaced."""
    if not isinstance(value, bytes):
        return ""
    return value.decode("ascii", "replace").strip(" \0")


class Values:
    """Typed access to raw elements; a value that is not what it should be counts as absent."""

    def __init__(self, tree: Tree, little: bool) -> None:
        self.tree = tree
        self.order: Literal["little", "big"] = "little" if little else "big"

    def text(self, tag: int) -> str:
        """The first of character values."""
        return text(self.tree.get(tag)).partition("\\")[0].strip()

    def texts(self, tag: int) -> tuple[str, ...]:
        """Character values in capitals."""
        whole = text(self.tree.get(tag))
        return tuple(v.strip().upper() for v in whole.split("\\")) if whole else ()

    def code(self, tag: int, pattern: str = r"[A-Z0-9_ ]{0,16}") -> str:
        """A value that is told to others: empty unless it fits, so that no free text passes."""
        value = self.text(tag)
        return value if re.fullmatch(pattern, value) else ""

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Decimal strings (PS3.5 6.2); none if one is not finite or not a number."""
        raw = self.tree.get(tag)
        if not isinstance(raw, bytes) or not raw or b"_" in raw:
            return ()
        try:
            values = tuple(map(float, raw.rstrip(b"\0 ").split(b"\\")))
        except ValueError:
            return ()
        return values if all(map(math.isfinite, values)) else ()

    def number(self, tag: int) -> float | None:
        """The first of decimal strings."""
        return next(iter(self.numbers(tag)), None)

    def unsigned(self, tag: int, default: int = 0, size: int = 2) -> int:
        """One binary number of so many bytes (VR US; UL has 4)."""
        raw = self.tree.get(tag)
        if not isinstance(raw, bytes) or len(raw) != size:
            return default
        return int.from_bytes(raw, self.order)

    def integer(self, tag: int, default: int = 0) -> int:
        """The first of integer strings (VR IS)."""
        digits = self.text(tag).removeprefix("+")
        return int(digits) if digits.isdecimal() and len(digits) < 13 else default

    def double(self, tag: int) -> float | None:
        """One binary floating-point number (VR FD)."""
        raw = self.tree.get(tag)
        if not isinstance(raw, bytes) or len(raw) != 8:
            return None
        value = float(struct.unpack("<d" if self.order == "little" else ">d", raw)[0])
        return value if math.isfinite(value) else None

    def items(self, tag: int) -> list[Tree]:
        """The items of a sequence."""
        found = self.tree.get(tag)
        return found if isinstance(found, list) else []
