"""Stored values -> values with a meaning: Hounsfield units of CT, the declared unit of the rest.

Decoded frames in, one array out, int16 where that is exact and else float32; a rescaled value is
never cast back to the type it was stored in. What makes a value doubtful is told as a `Problem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoders.dicom import tags
from encoders.dicom.display import unreadable
from encoders.dicom.header import SeriesInfo, SliceFile
from encoders.dicom.kinds import is_ct
from encoders.dicom.palette import palette_of
from encoders.dicom.pixels import Pixels, iter_pixels, read_pixels
from encoders.dicom.vocabulary import rescale_type
from encoders.errors import InputError, InvalidPixels, UnreadableFile
from encoders.features import Problem

AIR_HU, MAX_HU = -1024, 3071  # what a 12-bit CT value can be
_ALWAYS_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
_UNITS = {"GML": "SUV", "BQML": "Bq/ml", "CNTS": "counts", "PROPCNTS": "counts", "HU": "HU"}


@dataclass(frozen=True)
class Stack:
    """Decoded slices.

    Attributes:
        voxels: int16 or float32 `[slice, row, column]`.
        files: the slices that could be decoded, in order.
        unit: "HU" of calibrated CT, another declared unit, or "" where there is none.
        header: the attributes of the first slice that pixels and their display need.
        padding: ranges (low, high) of values that mean "no measurement here".
    """

    voxels: np.ndarray
    files: tuple[SliceFile, ...]
    unit: str
    header: Any
    padding: tuple[tuple[float, float], ...]


def read_stack(files: Sequence[SliceFile], info: SeriesInfo, problems: list[Problem]) -> Stack:
    """Decode and rescale slices of one size; those that fail are listed in `problems`.

    Raises:
        InputError: none of them can be decoded; the first one's reason.
    """
    out: np.ndarray | None = None
    kept: list[SliceFile] = []
    scales: list[float] = []
    first: Pixels | None = None
    failed: InputError | None = None
    for file, pixels in zip(files, iter_pixels(files), strict=True):
        values = pixels if isinstance(pixels, InputError) else _values(pixels, file)
        if out is not None and not isinstance(values, InputError) and values.shape != out.shape[1:]:
            values = UnreadableFile(f"{file.name!r} has another size than its series; left out")
        if isinstance(values, InputError) or isinstance(pixels, InputError):
            assert isinstance(values, InputError)
            problems.append(Problem("CORRUPT_SLICE", str(values), file.name))
            failed = failed or values
            continue
        if out is None or first is None:
            out = np.empty((len(files), *values.shape), values.dtype)
            first = pixels if pixels.header else read_pixels(file)  # slices before it are broken
        elif values.dtype == np.float32 and out.dtype != np.float32:
            out = out.astype(np.float32)
        out[len(kept)] = values
        kept.append(file)
        scales.append(_philips_scale(pixels.header))
    if out is None or first is None:
        assert failed is not None
        raise failed
    voxels = _comparable(out[: len(kept)], kept, scales)
    unit = _unit(first, kept, info, problems)
    _report_loss(kept, problems)
    padding = _padding(first, kept[0], voxels, unit, problems)
    if unit == "HU":
        _report_implausible(voxels, padding, problems)
    return Stack(voxels, tuple(kept), unit, first.header, padding)


def _values(pixels: Pixels, file: SliceFile) -> np.ndarray | InputError:
    """Modality LUT (PS3.3 C.11.1): the sequence where there is one, else slope and intercept."""
    try:
        stored = _grey(pixels)
    except InvalidPixels as error:
        return UnreadableFile(f"{file.name!r} cannot be coloured: {error}")
    except unreadable() as error:  # whose own words may quote values
        return UnreadableFile(f"{file.name!r} has a broken palette ({type(error).__name__})")
    if pixels.header.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        return _narrow(apply_modality_lut(stored, pixels.header))
    values = _rescaled(stored, *(file.rescale or (1.0, 0.0)))
    if values.dtype == np.float32 and not np.isfinite(values).all():
        return UnreadableFile(f"{file.name!r} holds NaN or infinite pixels; export it again")
    return values


def _grey(pixels: Pixels) -> np.ndarray:
    """Colour as luminance (ITU-R BT.601, as YBR_FULL defines it)."""
    colours = pixels.stored
    if pixels.photometric == "PALETTE COLOR":
        palette = palette_of(pixels.header)
        colours = palette.apply(pixels.stored) if palette else pixels.stored
    if colours.ndim == 2:
        return colours
    if pixels.photometric.startswith("YBR"):
        return colours[..., 0]
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(colours[..., :3] @ weights).astype(np.int32)


def _rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """int16 where every value fits exactly, else float32."""
    if stored.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
        return (stored * np.float64(slope) + intercept).astype(np.float32)
    ends = sorted(int(v) * int(slope) + int(intercept) for v in (stored.min(), stored.max()))
    if ends[0] < -32768 or ends[1] > 32767:
        return (stored * np.float64(slope) + intercept).astype(np.float32)
    if slope == 1 and stored.dtype.itemsize <= 2 and abs(intercept) < 32768:
        # wraps around on the way at most, and back: the result is known to fit
        return np.add(stored, np.int16(intercept), dtype=np.int16, casting="unsafe")
    return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(np.int16)


def _narrow(values: np.ndarray) -> np.ndarray:
    whole = values.dtype.kind != "f" or np.array_equal(values, np.round(values))
    fits = values.min() >= -32768 and values.max() <= 32767
    return values.astype(np.int16 if whole and fits else np.float32)


def _philips_scale(header: Any) -> float:
    """Philips MR Scale Slope (2005,100E); 0 where there is none."""
    element = header.get(tags.PHILIPS_SCALE)
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        value = float(np.frombuffer(value[:4], "<f4")[0]) if len(value) >= 4 else None
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else 0.0


def _comparable(voxels: np.ndarray, files: list[SliceFile], scales: list[float]) -> np.ndarray:
    """Slices that Philips scaled each in its own way, on one scale: value / (slope x scale)."""
    if min(scales) <= 0 or len(set(scales)) == 1:
        return voxels
    slopes = [(f.rescale or (1.0, 0.0))[0] for f in files]
    factors = 1 / np.multiply(slopes, scales)
    return voxels.astype(np.float32) * factors[:, None, None].astype(np.float32)


def _unit(first: Pixels, files: list[SliceFile], info: SeriesInfo, problems: list[Problem]) -> str:
    """What the values are; Hounsfield units only where nothing speaks against them."""
    header = first.header
    lut = (header.get("ModalityLUTSequence") or [None])[0]
    declared = str(lut.get("ModalityLUTType", "")) if lut is not None else files[0].rescale_type
    if not is_ct(files[0].sop_class, info.modality):
        unit = _UNITS.get(str(header.get("Units", "")), "")
        unit, why = ("" if unit == "HU" else unit), "they are not of a CT image"
    elif lut is None and not all(f.rescale for f in files):
        unit, why = "", "a CT image without RescaleSlope and RescaleIntercept"
    elif declared.upper() not in ("HU", "" if lut is None else "HU"):
        unit, why = "", f"RescaleType (0028,1054) is {rescale_type(declared)}"
    elif first.bits <= 8:
        unit, why = "", "a CT image of 8 bits holds grey levels"
    else:
        return "HU"
    message = f"values are not Hounsfield units ({why}); HU windows do not apply"
    problems.append(Problem("UNCALIBRATED", message))
    return unit


def _report_loss(files: list[SliceFile], problems: list[Problem]) -> None:
    """Of any slice: archives compress some of a series and leave others as they are."""
    if any(f.stored.lossy or f.stored.syntax in _ALWAYS_LOSSY for f in files):
        message = "pixels were compressed with loss; values may be off by tens of HU"
        problems.append(Problem("LOSSY", message))


def _padding(
    first: Pixels, file: SliceFile, voxels: np.ndarray, unit: str, problems: list[Problem]
) -> tuple[tuple[float, float], ...]:
    """Declared padding (PS3.3 C.7.5.1.1.2), and in CT what stands in the corners below all air."""
    declared = _declared_padding(first, file)
    found: list[tuple[float, float]] = [declared] if declared else []
    if unit == "HU":
        corners = voxels[:, [0, 0, -1, -1], [0, -1, 0, -1]].ravel()
        values, counts = np.unique(corners, return_counts=True)
        value = float(values[counts.argmax()])
        covered = declared is not None and declared[0] <= value <= declared[1]
        if value < AIR_HU and counts.max() >= len(corners) / 2 and not covered:
            found.append((value, value))
            if declared:
                message = f"the corners hold {value:.0f} HU, not the declared padding (0028,0120)"
                problems.append(Problem("PADDING_MISMATCH", message))
    return tuple(found)


def _declared_padding(first: Pixels, file: SliceFile) -> tuple[float, float] | None:
    header = first.header
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if not isinstance(value, int) or header.get("ModalityLUTSequence"):
        return None
    slope, intercept = file.rescale or (1.0, 0.0)
    signed = int(header.get("PixelRepresentation") or 0) == 1
    ends = []
    for end in (value, limit if isinstance(limit, int) else value):
        if signed and end > 32767:  # written as US although the pixels are signed
            end -= 65536
        ends.append(end * slope + intercept)
    return min(ends), max(ends)


def _report_implausible(
    voxels: np.ndarray, padding: tuple[tuple[float, float], ...], problems: list[Problem]
) -> None:
    share = share_outside(voxels, padding, (AIR_HU, MAX_HU))
    if share >= 1e-4:  # single noisy voxels are not worth a warning
        message = f"{share:.2%} of the voxels lie outside {AIR_HU}..{MAX_HU} HU (metal, wide range)"
        problems.append(Problem("IMPLAUSIBLE_HU", message))


def share_outside(
    voxels: np.ndarray, padding: tuple[tuple[float, float], ...], limits: tuple[float, float]
) -> float:
    """The share of voxels beyond limits that are not padding."""
    count = 0
    for image in voxels:  # slice by slice: no mask of the whole volume in memory
        if image.min() >= limits[0] and image.max() <= limits[1]:
            continue
        outside = image[(image < limits[0]) | (image > limits[1])]
        padded = np.zeros(outside.shape, bool)
        for low, high in padding:
            padded |= (outside >= low) & (outside <= high)
        count += int(outside.size - padded.sum())
    return count / voxels.size
