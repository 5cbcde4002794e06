"""One series decoded: voxels in Hounsfield units and where they are.

Axes are slice, row, column; space is LPS millimetres. Spacing comes from positions alone; flaws of
the geometry are listed and the true positions exposed, nothing is averaged or guessed silently.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from encoders.dicom.display import Display, display_of
from encoders.dicom.header import SeriesInfo, SliceFile, normal_of, quiet_pydicom
from encoders.dicom.kinds import is_ct
from encoders.dicom.series import Series, scan
from encoders.errors import (
    CrossReadError,
    InvalidPixels,
    UnreadableFile,
    UnsupportedTransferSyntax,
)
from encoders.features import Problem

MAX_VOLUME_BYTES = 4 * 2**30
AIR_HU = -1024


@dataclass(frozen=True)
class Volume:
    """A stack of slices.

    Attributes:
        voxels: int16 where exact, else float32, `[slice, row, column]`; HU if `calibrated`.
        affine: `[4, 4]`, (slice, row, column) index -> LPS mm of the voxel's centre.
        positions_mm: `[slices]`, true positions along the slices' normal.
        problems: flaws found on the way.
        info: what may be told of the series.
        calibrated: whether values are Hounsfield units.
        display: how the header wants the values shown to people.
    """

    voxels: np.ndarray
    affine: np.ndarray
    positions_mm: np.ndarray
    problems: tuple[Problem, ...] = ()
    info: SeriesInfo = field(default_factory=SeriesInfo)
    calibrated: bool = True
    display: Display = field(default_factory=Display)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring slices, rows and columns."""
        s, r, c = (float(np.linalg.norm(self.affine[:3, i])) for i in range(3))
        return s, r, c

    @cached_property
    def digest(self) -> str:
        """SHA-256 of voxels, shape and affine: equal content, equal digest."""
        sha = hashlib.sha256(f"{self.voxels.dtype}{self.voxels.shape}{self.calibrated}".encode())
        sha.update(np.ascontiguousarray(self.affine, np.float64).tobytes())
        sha.update(np.ascontiguousarray(self.voxels).data)
        return sha.hexdigest()

    def at(self, index: Sequence[float]) -> np.ndarray:
        """LPS mm of a (slice, row, column) index."""
        return self.affine[:3, :3] @ np.asarray(index, float) + self.affine[:3, 3]


@quiet_pydicom()
def load_volume(series: Series | Path | str) -> Volume:
    """Decode a series (or the default series of a path).

    Raises:
        UnsupportedTransferSyntax: no decoder for the way its pixels are stored.
        UnreadableFile: no slice of it can be decoded.
        InvalidPixels: more data than `MAX_VOLUME_BYTES`.
    """
    if not isinstance(series, Series):
        series = scan(series).default()
    problems = list(series.problems)
    files = list(series.files) if series.is_volume else [series.files[0]]
    if len(files) < len(series.files):
        message = f"{len(series.files) - 1} further images form no volume with the first"
        problems.append(Problem("NOT_A_VOLUME", message))
    files = _without_duplicates(files, problems)
    need = 4 * len(files) * files[0].rows * files[0].columns
    if need > MAX_VOLUME_BYTES:
        raise InvalidPixels(f"the series declares {need / 2**30:.1f} GiB of voxels; refused")
    kept, slices = _decode_all(files, problems)
    voxels, calibrated = _to_hu(kept, slices, series.info, problems)
    affine, positions = _geometry(kept, series.info, problems)
    spacing = tuple(float(np.linalg.norm(affine[:3, i])) for i in range(3))
    info = replace(series.info, num_slices=len(kept), spacing_mm=spacing)
    display = display_of(slices[0].header, kept[0].frame)
    problems += display.problems
    return Volume(voxels, affine, positions, tuple(problems), info, calibrated, display)


def _without_duplicates(files: list[SliceFile], problems: list[Problem]) -> list[SliceFile]:
    kept: list[SliceFile] = []
    for file in files:
        if kept and file.position and kept[-1].position and file.orientation:
            step = np.subtract(file.position, kept[-1].position)
            if abs(float(step @ normal_of(file.orientation))) < 1e-3:
                problems.append(
                    Problem(
                        "DUPLICATE_POSITION", "another image at the same place; left out", file.name
                    )
                )
                continue
        kept.append(file)
    return kept


@dataclass
class _Pixels:
    stored: np.ndarray
    header: Any


def _decode_all(
    files: list[SliceFile], problems: list[Problem]
) -> tuple[list[SliceFile], list[_Pixels]]:
    kept, slices = [], []
    frames: dict[int, _Pixels] = {}
    first: CrossReadError | None = None
    for file in files:
        try:
            if file.frame is None:
                pixels = _decode(file)
            else:  # one file, many frames: decode it once
                key = id(file.source)
                frames = frames if key in frames else {key: _decode(file)}
                whole = frames[key]
                stack = whole.stored if whole.stored.ndim == 3 else whole.stored[None]
                pixels = _Pixels(stack[file.frame], whole.header)
        except (UnreadableFile, UnsupportedTransferSyntax) as error:
            problems.append(Problem("CORRUPT_SLICE", str(error), file.name))
            first = first or error
            continue
        kept.append(file)
        slices.append(pixels)
    if first is not None and not kept:
        raise first
    return kept, slices


def _decode(file: SliceFile) -> _Pixels:
    import pydicom

    try:
        header = pydicom.dcmread(file.open())
        _check_size(header, file.name)
        stored = header.pixel_array
    except KeyError as error:
        raise UnreadableFile(f"{file.name!r} lacks an element ({error})") from error
    except (RuntimeError, NotImplementedError) as error:
        syntax = header.file_meta.TransferSyntaxUID
        raise UnsupportedTransferSyntax(
            f"{file.name!r} is stored as {syntax.name}, which no installed decoder reads;"
            " convert it to a lossless syntax such as JPEG-LS or Explicit VR Little Endian"
        ) from error
    except (ValueError, AttributeError, TypeError, EOFError, OSError, MemoryError,
            IndexError) as error:  # fmt: skip  # what decoders raise on broken codestreams
        raise UnreadableFile(
            f"{file.name!r} has broken pixel data ({type(error).__name__}); export it again"
        ) from error
    if stored.ndim == 3 and int(header.get("SamplesPerPixel", 1)) == 3:
        stored = np.round(stored @ np.array([0.299, 0.587, 0.114])).astype(np.int16)
    elif stored.ndim > 2 and file.frame is None:
        stored = stored[0]
    return _Pixels(_meaningful_bits(stored, header), header)


def _check_size(header: Any, name: str) -> None:
    """Refuse before decoding what declares more than it holds (native) or than is sane."""
    from pydicom.uid import UID

    frames = int(header.get("NumberOfFrames") or 1)
    samples = int(header.get("SamplesPerPixel") or 1)
    need = int(header.Rows) * int(header.Columns) * samples * frames
    need *= int(header.get("BitsAllocated") or 8) // 8
    syntax: UID = header.file_meta.TransferSyntaxUID
    length = len(header.get("PixelData", b"") or b"")
    if need > 2**30:
        raise UnreadableFile(f"{name!r} declares {need / 2**30:.1f} GiB of pixels; refused")
    if not syntax.is_encapsulated and length < need:
        raise UnreadableFile(f"{name!r} declares {need} bytes of pixels but holds {length}")
    if syntax.is_encapsulated and length and need / length > 2000:
        raise UnreadableFile(f"{name!r} declares {need} bytes of pixels in {length}; refused")
    if syntax.is_encapsulated:
        _check_codestream(header, name)


def _check_codestream(header: Any, name: str) -> None:
    """JPEG 2000 says its own size in SIZ (ISO 15444-1 A.5.1): it must be the header's."""
    from pydicom.encaps import generate_frames

    if not header.file_meta.TransferSyntaxUID.name.startswith(("JPEG 2000", "High-Throughput")):
        return
    frame = next(generate_frames(io.BytesIO(header.PixelData), number_of_frames=1))
    at = frame.find(b"\xff\x51")
    if at < 0:
        return
    x1, y1, x0, y0 = (int.from_bytes(frame[at + o : at + o + 4], "big") for o in (6, 10, 14, 18))
    if (x1 - x0, y1 - y0) != (int(header.Columns), int(header.Rows)):
        raise UnreadableFile(
            f"{name!r} holds a {x1 - x0}x{y1 - y0} codestream but declares"
            f" {header.Columns}x{header.Rows}; refused"
        )


def _meaningful_bits(stored: np.ndarray, header: Any) -> np.ndarray:
    """Drop junk above HighBit and extend the sign (PS3.5 8.1.1)."""
    bits, allocated = int(header.get("BitsStored", 16)), int(header.get("BitsAllocated", 16))
    if not np.issubdtype(stored.dtype, np.integer) or bits >= allocated or bits < 1:
        return stored
    low = int(header.get("HighBit", bits - 1)) - bits + 1
    values = (stored.astype(np.int32) >> max(low, 0)) & ((1 << bits) - 1)
    if int(header.get("PixelRepresentation", 0)):
        values = (values ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return values


def _to_hu(
    files: list[SliceFile], slices: list[_Pixels], info: SeriesInfo, problems: list[Problem]
) -> tuple[np.ndarray, bool]:
    first = slices[0].header
    calibrated = is_ct(files[0].sop_class, info.modality) and all(f.rescale for f in files)
    unit = str(first.get("RescaleType", "HU")).upper()
    if unit not in ("HU", "US", ""):
        calibrated = False
    if not calibrated:
        problems.append(
            Problem("UNCALIBRATED", "values are not Hounsfield units; HU windows do not apply")
        )
    if str(first.get("LossyImageCompression", "")) == "01":
        ratio = "pixels were compressed with loss; values may be off by tens of HU"
        problems.append(Problem("LOSSY", ratio))
    _report_padding(first, slices[0].stored, problems)
    whole = all(
        f.rescale is None or all(float(v).is_integer() for v in f.rescale) for f in files
    ) and all(np.issubdtype(s.stored.dtype, np.integer) for s in slices)
    out = np.empty((len(slices), *slices[0].stored.shape), np.int32 if whole else np.float32)
    for row, pixels, file in zip(out, slices, files, strict=True):
        slope, intercept = file.rescale or (1.0, 0.0)
        if whole:
            row[:] = pixels.stored.astype(np.int32) * int(slope) + int(intercept)
        else:
            row[:] = pixels.stored.astype(np.float64) * slope + intercept
    if not np.isfinite(out).all():
        raise InvalidPixels("the series holds NaN or infinite pixels; export it again")
    if whole and out.min() >= -32768 and out.max() <= 32767:
        return out.astype(np.int16), calibrated
    return out.astype(np.float32), calibrated


def _report_padding(header: Any, stored: np.ndarray, problems: list[Problem]) -> None:
    """Pixel Padding Value (0028,0120) is often wrong or of the wrong VR; say so, views clamp it."""
    padding = header.get("PixelPaddingValue")
    if padding is None:
        return
    value = int(padding)
    if value > 32767 and int(header.get("PixelRepresentation", 0)):
        value -= 65536
    if value not in (stored[0, 0], stored[-1, -1]) and (stored == value).sum() == 0:
        problems.append(
            Problem("PADDING_MISMATCH", "no pixel has the declared padding value (0028,0120)")
        )


def _geometry(
    files: list[SliceFile], info: SeriesInfo, problems: list[Problem]
) -> tuple[np.ndarray, np.ndarray]:
    orientation = files[0].orientation
    if orientation is None or files[0].position is None:
        problems.append(
            Problem("NO_GEOMETRY", "no position or orientation; an axial one is assumed")
        )
        orientation = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if abs(row @ column) > 1e-3 or abs(np.linalg.norm(row) - 1) > 1e-2:
        problems.append(Problem("BAD_ORIENTATION", "image axes are not orthogonal unit vectors"))
    spacing = files[0].spacing
    if spacing is None:
        problems.append(
            Problem("NO_SPACING", "no pixel spacing; 1 mm is assumed, sizes are unknown")
        )
        spacing = (1.0, 1.0)
    normal = normal_of(orientation)
    places = np.array([f.position or (0.0, 0.0, 0.0) for f in files])
    positions = places @ normal
    if len(files) > 1:
        step = _regular_step(places, positions, problems)
        _report_tilt(step, normal, problems)
    else:
        step = normal * (info.slice_thickness_mm or 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = step, places[0]
    affine[:3, 1], affine[:3, 2] = column * spacing[0], row * spacing[1]
    return affine, positions


def _regular_step(places: np.ndarray, positions: np.ndarray, problems: list[Problem]) -> np.ndarray:
    """From one slice to the next; where gaps differ, the usual one, and the flaw is reported."""
    gaps = np.diff(positions)
    usual = float(np.median(gaps))
    tolerance = max(0.02 * usual, 0.02)
    odd = np.flatnonzero(np.abs(gaps - usual) > tolerance)
    if len(odd) == 0:
        return (places[-1] - places[0]) / (len(places) - 1)
    multiples = gaps[odd] / usual
    missing = np.all((np.abs(multiples - np.round(multiples)) < 0.05) & (multiples > 1.5))
    values = ", ".join(f"{g:.2f}" for g in sorted(set(np.round(gaps, 2).tolist()))[:5])
    if missing:
        lost = int(np.round(multiples).sum() - len(odd))
        message = (
            f"{lost} slices are missing (gaps {values} mm); positions_mm holds the true places"
        )
        problems.append(Problem("MISSING_SLICE", message, f"after slice {int(odd[0])}"))
    else:
        message = f"slices are unevenly spaced ({values} mm); positions_mm holds the true places"
        problems.append(Problem("IRREGULAR_SPACING", message))
    near = int(np.argmin(np.abs(gaps - usual)))
    return places[near + 1] - places[near]


def _report_tilt(step: np.ndarray, normal: np.ndarray, problems: list[Problem]) -> None:
    cosine = abs(float(step @ normal)) / (np.linalg.norm(step) or 1.0)
    angle = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if angle > 0.5:
        problems.append(Problem("GANTRY_TILT", f"slices are sheared by {angle:.1f} degrees"))
