"""One slice's stored values, safely: every limit is checked before anything is decoded.

`SliceFile`s in, arrays of stored values out with the attributes that give them meaning. Knows
transfer syntaxes, sizes and bits; nothing of Hounsfield units, windows or colour.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from encoders.dicom import palette, tags
from encoders.dicom.codestream import Malformed, check_rle, j2k_shape, jpeg_shape
from encoders.dicom.decoder import NUM_PROCESSES, Hung, submit
from encoders.dicom.decoding import IS_J2K, MAY_LOSE, PLUGINS, RLE, Decoded, Job
from encoders.dicom.display import OVERLAY_GROUPS
from encoders.dicom.elements import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT
from encoders.dicom.header import SliceFile
from encoders.dicom.intake import Origin
from encoders.dicom.silence import quiet_pydicom
from encoders.errors import InputError, InvalidPixels, UnreadableFile, UnsupportedTransferSyntax

MAX_FRAME_BYTES = 128 * 2**20  # 8192 x 8192 of 16 bits; the largest detectors have a quarter of it
MAX_FILE_BYTES = 4 * 2**30
MAX_RATIO = 200  # beyond 64 MiB or more; a real image is compressed to a tenth at the least
MAX_HUNG = 2  # codestreams of one series that may use up their time before the rest is left out
_NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # the tag (7FE0,0010), little endian
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_KEYWORDS = (
    *_PIXEL_KEYWORDS, "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation",
    "PlanarConfiguration", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    # what display.py reads of a header
    "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction",
    "VOILUTSequence", "PresentationLUTShape", "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence", *palette.KEYWORDS,
)  # fmt: skip
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pixels:
    """One decoded frame.

    Attributes:
        stored: `[rows, columns]` or `[rows, columns, samples]`, junk bits gone, sign extended.
        header: the few attributes that give pixels a meaning (a pydicom `Dataset`), no pixels;
            empty where `SliceFile.stored` says all that is needed.
        photometric: what the samples mean now (0028,0004); decoders may turn YBR into RGB.
        bits: how many bits of a value are used (0028,0101).
        syntax: the transfer syntax they were stored in.
    """

    stored: np.ndarray
    header: Any
    photometric: str
    bits: int
    syntax: str


@dataclass(frozen=True)
class _Opened:
    """A file that is read and whose attributes and sizes agree, but nothing is decoded yet."""

    name: str
    header: Any
    job: Job
    frames: int
    high_bit: int
    kind: str  # of a sample: "u", "i" or "f", as numpy says it
    data: bytes  # of native pixels
    codestreams: tuple[bytes, ...]  # of compressed ones


@dataclass(frozen=True)
class _Started:
    """A frame on its way: an array, or one to wait for, or why there is none."""

    opened: _Opened | None
    result: Decoded | Future[Decoded] | InputError


def read_pixels(file: SliceFile) -> Pixels:
    """Decode one slice.

    Raises:
        UnreadableFile: attributes and data contradict each other, or the data is broken or too
            much; the message names the file, the two numbers and the codec.
        UnsupportedTransferSyntax: no permissively licensed decoder reads it.
    """
    result = next(iter_pixels([file]))
    if isinstance(result, InputError):
        raise result
    return result


def read_bit(file: SliceFile, bit: int) -> np.ndarray | None:
    """One bit of a slice's pixel words, `[rows, columns]`; None where they are compressed.

    Raises:
        UnreadableFile: as `read_pixels`.
    """
    opened = _attempt(file.name, partial(_open, file))
    if isinstance(opened, InputError):
        raise opened
    if opened.codestreams or bit >= opened.job.bits_allocated:
        return None
    return (_native(opened, file.frame or 0)[0] >> bit) & 1


def iter_pixels(files: Sequence[SliceFile]) -> Iterator[Pixels | InputError]:
    """Decode slices in order, a few ahead; one that cannot be read gives its error in its place."""
    waiting: deque[_Started] = deque()
    source: Any = None
    opened: _Opened | InputError = UnreadableFile("nothing is open yet")
    hung = 0
    for file in files:
        if file.source is not source:
            step = _open_simple if _is_simple(file) else _open
            source, opened = file.source, _attempt(file.name, partial(step, file))
        if hung >= MAX_HUNG:
            opened = UnreadableFile(f"{file.name!r} left out: {hung} slices before it hung")
        waiting.append(_start(opened, file))
        while len(waiting) > 2 * NUM_PROCESSES:
            result = _finish(waiting.popleft())
            hung += isinstance(result, InputError) and isinstance(result.__cause__, Hung)
            yield result
    while waiting:
        yield _finish(waiting.popleft())


def _start(opened: _Opened | InputError, file: SliceFile) -> _Started:
    if isinstance(opened, InputError):
        return _Started(None, opened)
    begin = _attempt(file.name, partial(_begin, opened, file.frame or 0), opened.job.syntax)
    return _Started(opened, begin)


def _finish(started: _Started) -> Pixels | InputError:
    opened, result = started.opened, started.result
    if opened is None or isinstance(result, InputError):
        assert isinstance(result, InputError)
        return result

    def finish() -> Pixels:
        array, photometric = result.result() if isinstance(result, Future) else result
        job, wanted = opened.job, _shape(opened.job)
        if array.shape != wanted:
            raise Malformed(f"decodes to {array.shape} where the attributes say {wanted}")
        stored = array
        if job.syntax not in MAY_LOSE:  # there a value beyond the bits stored is one overshot
            stored = _meaningful_bits(array, job.bits_stored, opened.high_bit)
        return Pixels(stored, opened.header, photometric, job.bits_stored, job.syntax)

    return _attempt(opened.name, finish, opened.job.syntax)


def _attempt(name: str, step: Callable[[], _T], syntax: str = "") -> _T | InputError:
    """The step's result, or its error in our own words: libraries quote values, we never do."""
    try:
        return step()
    except InputError as error:
        return error
    except Malformed as error:
        found = UnreadableFile(f"{name!r}: {_name_of(syntax)} data {error}; export it again")
        found.__cause__ = error
        return found
    except Exception as error:  # a process edge: pydicom and codecs raise anything on broken data
        kind = type(error).__name__ if not syntax else f"{_name_of(syntax)}, {type(error).__name__}"
        return UnreadableFile(f"{name!r} has broken pixel data ({kind}); export it again")


def _is_simple(file: SliceFile) -> bool:
    """Whether the scan has told where the pixels lie and all that is needed to read them."""
    stored = file.stored
    return (
        isinstance(file.source, Path)
        and stored.plain
        and (stored.syntax in (IMPLICIT, EXPLICIT) or (stored.syntax in PLUGINS and stored.frames == 1))
        and stored.bits_allocated in (8, 16, 32)
        and 1 <= stored.bits_stored <= stored.high_bit + 1 <= stored.bits_allocated
        and stored.photometric in ("MONOCHROME1", "MONOCHROME2")
        and stored.samples == 1
        and stored.offset > 12
        and not file.prefix
    )  # fmt: skip


@quiet_pydicom()
def _open_simple(file: SliceFile) -> _Opened:
    """`_open` without reading the header again: many times as fast."""
    stored, syntax = file.stored, file.stored.syntax
    assert isinstance(file.source, Path)
    with file.source.open("rb") as stream:
        stream.seek(stored.offset - 12)
        element = stream.read(12)
        data = stream.read(stored.length)  # to the end where the length is undefined
    tag = element[4:8] if syntax == IMPLICIT else element[:4]
    if tag != _PIXEL_DATA or int.from_bytes(element[8:], "little") != stored.length % 2**32:
        return _open(file)  # another element than Pixel Data, or the file has changed since
    job = Job(
        syntax, file.rows, file.columns, 1, stored.bits_allocated, stored.bits_stored,
        stored.signed, stored.photometric,
    )  # fmt: skip
    _require_small(job, file.name)
    codestreams: tuple[bytes, ...] = ()
    if syntax in PLUGINS:
        codestreams, data = _codestreams({}, data, 1, file.name), b""
    else:
        data = _native_bytes(data, job, stored.frames, file.name)
    kind = "i" if stored.signed else "u"
    return _Opened(file.name, {}, job, stored.frames, stored.high_bit, kind, data, codestreams)


def require_plausible(files: Sequence[SliceFile], num_bytes: int) -> None:
    """Refuse what would take far more memory than its files ever held, before it is decoded.

    Raises:
        InvalidPixels: it is more than 128 MiB and 200 times the files.
    """
    if num_bytes <= MAX_FRAME_BYTES:
        return
    held = sum(_size_of(source) for source in {id(f.source): f.source for f in files}.values())
    if num_bytes > MAX_RATIO * held:
        raise InvalidPixels(
            f"{held / 2**20:.1f} MiB of files declare {num_bytes / 2**20:.0f} MiB of pixels; refused"
        )


def _size_of(source: Origin) -> int:
    if isinstance(source, Path):
        return source.stat().st_size
    return len(source) if isinstance(source, bytes) else source.size


def _require_small(job: Job, name: str) -> None:
    if job.num_bytes > MAX_FRAME_BYTES:
        raise UnreadableFile(
            f"{name!r} declares {job.num_bytes / 2**30:.1f} GiB of pixels a frame; refused"
        )


@quiet_pydicom()
def _open(file: SliceFile) -> _Opened:
    """Read a file's attributes and encoded pixels, and refuse what they say wrong."""
    target = file.open()
    if isinstance(target, BytesIO):
        header, syntax = _read(target)
    else:
        with target.open("rb") as stream:
            header, syntax = _read(stream)
    if syntax not in _NATIVE and syntax not in PLUGINS:
        raise _unsupported(file.name, syntax)
    keyword = next((k for k in _PIXEL_KEYWORDS if k in header), "")
    if not keyword:
        raise UnreadableFile(f"{file.name!r} has no pixel data; export it again")
    vr, data = header[keyword].VR, bytes(header[keyword].value or b"")
    del header[keyword]
    job, frames, high_bit, kind = _layout(header, keyword, syntax, file.name)
    _require_small(job, file.name)
    codestreams: tuple[bytes, ...] = ()
    if syntax in _NATIVE:
        data = _native_bytes(data, job, frames, file.name)
        if vr == "OW" and syntax == BIG_ENDIAN and job.bits_allocated <= 8:
            data = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype("<u2").tobytes()
    else:
        codestreams, data = _codestreams(header, data, frames, file.name), b""
    return _Opened(file.name, header, job, frames, high_bit, kind, data, codestreams)


def _read(stream: BinaryIO) -> tuple[Any, str]:
    """The attributes that matter and the transfer syntax; deflated data only up to a limit."""
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    wanted: list[Any] = [*(Tag(k) for k in _KEYWORDS), Tag(tags.PHILIPS_SCALE)]
    wanted += [Tag(group, 0x0010) for group in OVERLAY_GROUPS]  # their rows: that there are any
    start = stream.read(2048)
    if DEFLATED.encode() in start:
        return _read_deflated(start + stream.read(), wanted), DEFLATED
    stream.seek(0)
    header = read_partial(stream, _is_behind_pixels, force=True, specific_tags=wanted)
    syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
    if not syntax:  # no file meta group: pydicom has found out how the elements are written
        implicit, little = header.original_encoding
        syntax = _NATIVE[0] if implicit else _NATIVE[1] if little else BIG_ENDIAN
    return header, syntax


def _read_deflated(data: bytes, wanted: list[Any]) -> Any:
    from pydicom.filereader import read_dataset

    stream = BytesIO(data)
    stream.seek(132)
    read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    whole = BytesIO(inflate(data[stream.tell() :]))
    return read_dataset(
        whole, False, True, stop_when=_is_behind_pixels, specific_tags=wanted
    )  # fmt: skip


def _is_behind_pixels(tag: int, _vr: str | None, _length: int) -> bool:
    """What comes there nobody has counted: a scan ends at the pixels."""
    return tag > 0x7FE00010


def inflate(data: bytes) -> bytes:
    """A deflated data set (PS3.5 A.5), up to 64 MiB or 200 times its size.

    Raises:
        UnreadableFile: it would be more, or it is cut short.
    """
    limit = max(64 * 2**20, MAX_RATIO * len(data))
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    out = stream.decompress(data, min(limit, MAX_FILE_BYTES))
    if stream.unconsumed_tail:
        raise UnreadableFile(
            f"{len(data)} bytes of deflated data unpack to more than {len(out)}; refused as unsafe"
        )
    if not stream.eof:
        raise UnreadableFile("the deflated data is cut short; export it again")
    return out


def _layout(header: Any, keyword: str, syntax: str, name: str) -> tuple[Job, int, int, str]:
    """The attributes of the Image Pixel module (PS3.3 C.7.6.3), each within what it may be."""

    def number(attribute: str, default: int | None, low: int, high: int) -> int:
        value = header.get(attribute)
        value = default if value in (None, "") else value
        if value is None or isinstance(value, list) or not low <= int(value) <= high:
            raise UnreadableFile(
                f"{name!r}: {attribute} is missing or not within {low}..{high}; refused"
            )
        return int(value)

    floats = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
    allocated = number("BitsAllocated", floats.get(keyword), 1, 64)
    if allocated not in (1, 8, 16, 32, 64) or allocated != floats.get(keyword, allocated):
        raise UnreadableFile(f"{name!r}: BitsAllocated is {allocated}; refused")
    stored = allocated if keyword in floats else number("BitsStored", None, 1, allocated)
    high_bit = number("HighBit", stored - 1, 0, 64)
    if not stored - 1 <= high_bit < allocated:
        raise UnreadableFile(f"{name!r}: HighBit {high_bit} does not fit {stored} bits stored")
    signed = bool(number("PixelRepresentation", 0 if keyword in floats else None, 0, 1))
    samples = number("SamplesPerPixel", 1, 1, 4)
    job = Job(
        syntax,
        number("Rows", None, 1, 65535),
        number("Columns", None, 1, 65535),
        samples,
        allocated,
        stored,
        signed,
        str(header.get("PhotometricInterpretation", "MONOCHROME2")),
        number("PlanarConfiguration", None if samples > 1 and syntax in _NATIVE else 0, 0, 1),
    )
    kind = "f" if keyword in floats else "i" if signed else "u"
    return job, number("NumberOfFrames", 1, 1, 2**31), high_bit if kind != "f" else stored - 1, kind


def _native_bytes(data: bytes, job: Job, frames: int, name: str) -> bytes:
    """The pixel bytes without the pad byte; any other length is an error (PS3.5 8)."""
    need = _native_frame_bits(job) * frames
    need = (need + 7) // 8
    if len(data) not in (need, need + need % 2):
        raise UnreadableFile(
            f"{name!r} declares {need} bytes of pixels but holds {len(data)}; export it again"
        )
    return data


def _native_frame_bits(job: Job) -> int:
    samples = 2 if job.photometric == "YBR_FULL_422" else job.samples
    return job.rows * job.columns * samples * job.bits_allocated


def _native(opened: _Opened, index: int) -> Decoded:
    """A view of the frame's bytes as numbers: no copy where the byte order is this machine's."""
    job = opened.job
    count = job.rows * job.columns * job.samples
    if job.bits_allocated == 1:
        bits = np.unpackbits(np.frombuffer(opened.data, np.uint8), bitorder="little")
        return bits[index * count : (index + 1) * count].reshape(_shape(job)), job.photometric
    if job.photometric == "YBR_FULL_422":
        return _subsampled(opened, index), "YBR_FULL"
    order = ">" if job.syntax == BIG_ENDIAN else "<"
    dtype = np.dtype(f"{order}{opened.kind}{job.bits_allocated // 8}")
    array = np.frombuffer(opened.data, dtype, count, index * count * dtype.itemsize)
    if order == ">":
        array = array.astype(dtype.newbyteorder("="))
    if job.samples > 1 and job.planar:
        planes = array.reshape(job.samples, job.rows, job.columns)
        return np.ascontiguousarray(planes.transpose(1, 2, 0)), job.photometric
    return array.reshape(_shape(job)), job.photometric


def _subsampled(opened: _Opened, index: int) -> np.ndarray:
    """Two luminances share one pair of colours: Y1 Y2 B R (PS3.3 C.7.6.3.1.2)."""
    job = opened.job
    pairs = np.frombuffer(opened.data, f"u{job.bits_allocated // 8}").reshape(-1, 4)
    size = job.rows * job.columns // 2
    y1, y2, blue, red = pairs[index * size : (index + 1) * size].T
    return np.stack([y1, blue, red, y2, blue, red], -1).reshape(_shape(job))


def _codestreams(header: Any, data: bytes, frames: int, name: str) -> tuple[bytes, ...]:
    """One codestream a frame, put together from its fragments (PS3.5 A.4)."""
    from pydicom.encaps import generate_frames

    if frames > max(len(data) // 8, 1):  # an item has eight bytes before its first byte of data
        raise UnreadableFile(
            f"{name!r} declares {frames} frames but holds {len(data)} bytes of pixel data; refused"
        )
    offsets = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
    extended = (offsets[0], offsets[1]) if offsets[0] and offsets[1] else None
    found = tuple(generate_frames(data, number_of_frames=frames, extended_offsets=extended))
    if len(found) != frames:
        raise UnreadableFile(
            f"{name!r} declares {frames} frames but holds {len(found)}; export it again"
        )
    return found


def _begin(opened: _Opened, index: int) -> Decoded | Future[Decoded]:
    if index >= opened.frames:
        raise UnreadableFile(f"{opened.name!r} has {opened.frames} frames, not {index + 1}")
    if opened.job.syntax in _NATIVE:
        return _native(opened, index)
    codestream = opened.codestreams[index]
    _check_codestream(codestream, opened)
    return submit(opened.job, codestream)


def _check_codestream(codestream: bytes, opened: _Opened) -> None:
    """A codestream's own size must be that of the attributes, before a decoder believes either."""
    job = opened.job
    if job.syntax == RLE:
        num_bytes = job.samples * ((job.bits_allocated + 7) // 8)
        check_rle(codestream, job.rows, job.columns, num_bytes)
        return
    shape = j2k_shape(codestream) if job.syntax in IS_J2K else jpeg_shape(codestream)
    found, wanted = (shape.columns, shape.rows, shape.samples), (job.columns, job.rows, job.samples)
    if found != wanted:
        sizes = ["x".join(map(str, size)) for size in (found, wanted)]
        raise Malformed(f"is a {sizes[0]} codestream but the attributes declare {sizes[1]}")
    if shape.precision > job.bits_allocated:
        raise Malformed(f"has {shape.precision} bits a sample in {job.bits_allocated} allocated")
    if job.syntax == _JPEG_EXTENDED and shape.precision != 8:
        raise _unsupported(opened.name, job.syntax)


def _shape(job: Job) -> tuple[int, ...]:
    return (job.rows, job.columns) if job.samples == 1 else (job.rows, job.columns, job.samples)


def _meaningful_bits(stored: np.ndarray, bits: int, high_bit: int) -> np.ndarray:
    """Drop junk around the stored bits and extend the sign (PS3.5 8.1.1)."""
    allocated = stored.dtype.itemsize * 8
    if stored.dtype.kind == "f" or bits >= allocated:
        return stored
    if stored.dtype.kind == "u" and high_bit == bits - 1:
        return stored & ((1 << bits) - 1)
    values = stored << max(allocated - 1 - high_bit, 0)
    values >>= allocated - bits
    return values


def _unsupported(name: str, syntax: str) -> UnsupportedTransferSyntax:
    return UnsupportedTransferSyntax(
        f"{name!r} is stored as {_name_of(syntax)}, which no installed decoder reads;"
        " convert it to a lossless syntax such as JPEG-LS or Explicit VR Little Endian"
    )


def _name_of(syntax: str) -> str:
    from pydicom.uid import UID

    name = UID(syntax).name
    return name if name != syntax else "an unknown transfer syntax"
