"""Stored values -> values with a meaning: Hounsfield units of CT, the declared unit of the rest.

Decoded frames in, one array out, int16 where that is exact and else float32; a rescaled value is
never cast back to the type it was stored in. What makes a value doubtful is told as a `Problem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from encoders.dicom import tags
from encoders.dicom.display import Display, display_of, display_of_plain, unreadable
from encoders.dicom.header import SeriesInfo, SliceFile
from encoders.dicom.kinds import is_ct
from encoders.dicom.palette import palette_of
from encoders.dicom.pixels import Pixels, iter_pixels
from encoders.dicom.vocabulary import rescale_type
from encoders.errors import InputError, InvalidPixels, UnreadableFile
from encoders.features import Problem

Range = tuple[float, float]
AIR_HU, MAX_HU = -1024, 3071  # what a 12-bit CT value can be
MAX_ASPECT = 64.0  # a coronal slice of 10 mm slabs with 0.2 mm columns has 50
_ALWAYS_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
_UNITS = {"GML": "SUV", "BQML": "Bq/ml", "CNTS": "counts", "PROPCNTS": "counts", "HU": "HU"}


@dataclass(frozen=True)
class Stack:
    """Decoded slices.

    Attributes:
        voxels: int16 or float32 `[slice, row, column]`.
        files: the slices that could be decoded, in order.
        unit: "HU" of calibrated CT, another declared unit, or "" where there is none.
        displays: how each slice's header wants it shown.
        padding: ranges (low, high) of values that mean "no measurement here".
    """

    voxels: np.ndarray
    files: tuple[SliceFile, ...]
    unit: str
    displays: tuple[Display, ...]
    padding: tuple[Range, ...]


@dataclass
class _Told:
    """What each slice that could be decoded says of itself."""

    files: list[SliceFile] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)  # of Philips
    units: list[tuple[str, str]] = field(default_factory=list)  # and why it is not HU
    paddings: list[Range | None] = field(default_factory=list)
    displays: list[Display] = field(default_factory=list)

    def add(self, pixels: Pixels, file: SliceFile, info: SeriesInfo) -> None:
        header = pixels.header
        lut = (header.get("ModalityLUTSequence") or [None])[0]
        plain = display_of_plain(file.stored.photometric, file.stored.shown)
        self.displays.append(display_of(header, file.frame) if header else plain)
        self.files.append(file)
        self.scales.append(_philips_scale(header))
        self.units.append(_unit_of(file, pixels.bits, lut, info))
        self.paddings.append(None if lut is not None else _declared_padding(file))


def read_stack(files: Sequence[SliceFile], info: SeriesInfo, problems: list[Problem]) -> Stack:
    """Decode and rescale slices of one size; those that fail are listed in `problems`.

    Raises:
        InputError: none of them can be decoded; the first one's reason.
    """
    out: np.ndarray | None = None
    told = _Told()
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
        if out is None:
            out = np.empty((len(files), *values.shape), values.dtype)
        elif values.dtype == np.float32 and out.dtype != np.float32:
            out = out.astype(np.float32)
        out[len(told.files)] = values
        told.add(pixels, file, info)
    if out is None:
        assert failed is not None
        raise failed
    voxels, declared = _comparable(out[: len(told.files)], told)
    unit = _unit(told.units, problems)
    _report_loss(told.files, problems)
    padding = _padding(declared, voxels, unit, problems)
    if unit == "HU":
        _report_implausible(voxels, padding, problems)
    return Stack(voxels, tuple(told.files), unit, tuple(told.displays), padding)


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


def _comparable(voxels: np.ndarray, told: _Told) -> tuple[np.ndarray, Range | None]:
    """Slices on one scale, with one range of values for padding in all of them.

    Philips scales slices each in its own way: value / (slope x scale) is common to all. Where
    slices declare different paddings, theirs becomes one value below all that was measured.
    """
    ranges = set(told.paddings) - {None}
    scaled = min(told.scales) > 0 and len(set(told.scales)) > 1
    if len(ranges) < 2 and not scaled:
        return voxels, next(iter(ranges), None)
    usual = next(iter(ranges)) if len(ranges) == 1 else None
    padded = np.zeros(voxels.shape, bool)
    for mask, image, padding in zip(padded, voxels, told.paddings, strict=True):
        low, high = padding or usual or (np.inf, -np.inf)
        mask |= (image >= low) & (image <= high)
    if scaled:
        slopes = [(f.rescale or (1.0, 0.0))[0] for f in told.files]
        factors = (1 / np.multiply(slopes, told.scales)).astype(np.float32)
        voxels = voxels.astype(np.float32) * factors[:, None, None]
    if not padded.any():
        return voxels, None
    value = float(np.floor(voxels.min(where=~padded, initial=voxels.max()))) - 1
    if value < -32768:
        voxels = voxels.astype(np.float32)
    voxels[padded] = value
    return voxels, (value, value)


def _unit_of(file: SliceFile, bits: int, lut: Any, info: SeriesInfo) -> tuple[str, str]:
    """What the values of a slice are; Hounsfield units only where nothing speaks against them."""
    declared = str(lut.get("ModalityLUTType", "")) if lut is not None else file.rescale_type
    if not is_ct(file.sop_class, info.modality):
        unit = _UNITS.get(file.stored.units, "")
        return ("" if unit == "HU" else unit), "they are not of a CT image"
    if lut is None and not file.rescale:
        return "", "a CT image without RescaleSlope and RescaleIntercept"
    if declared.upper() not in ("HU", "" if lut is None else "HU"):
        return "", f"RescaleType (0028,1054) is {rescale_type(declared)}"
    if bits <= 8:
        return "", "a CT image of 8 bits holds grey levels"
    return "HU", ""


def _unit(claims: Sequence[tuple[str, str]], problems: list[Problem]) -> str:
    """The unit that every slice has; none where they differ."""
    units = {unit for unit, _ in claims}
    if units == {"HU"}:
        return "HU"
    whys = list(dict.fromkeys(why for _, why in claims if why))
    if len(units) > 1:
        count = sum(claim != claims[0] for claim in claims)
        whys.append(f"{count} of {len(claims)} slices have another unit than the first")
    message = f"values are not Hounsfield units ({'; '.join(whys)}); HU windows do not apply"
    problems.append(Problem("UNCALIBRATED", message))
    return units.pop() if len(units) == 1 else ""


def _report_loss(files: list[SliceFile], problems: list[Problem]) -> None:
    """Of any slice: archives compress some of a series and leave others as they are."""
    if any(f.stored.lossy or f.stored.syntax in _ALWAYS_LOSSY for f in files):
        message = "pixels were compressed with loss; values may be off by tens of HU"
        problems.append(Problem("LOSSY", message))


def _padding(
    declared: Range | None, voxels: np.ndarray, unit: str, problems: list[Problem]
) -> tuple[Range, ...]:
    """Declared padding (PS3.3 C.7.5.1.1.2), and in CT what stands in the corners below all air."""
    found: list[Range] = [declared] if declared else []
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


def _declared_padding(file: SliceFile) -> Range | None:
    """As values after the rescale."""
    if file.stored.padding is None:
        return None
    slope, intercept = file.rescale or (1.0, 0.0)
    low, high = sorted(float(end * slope + intercept) for end in file.stored.padding)
    return low, high


def _report_implausible(
    voxels: np.ndarray, padding: tuple[Range, ...], problems: list[Problem]
) -> None:
    share = share_outside(voxels, padding, (AIR_HU, MAX_HU))
    if share >= 1e-4:  # single noisy voxels are not worth a warning
        message = f"{share:.2%} of the voxels lie outside {AIR_HU}..{MAX_HU} HU (metal, wide range)"
        problems.append(Problem("IMPLAUSIBLE_HU", message))


def share_outside(voxels: np.ndarray, padding: tuple[Range, ...], limits: Range) -> float:
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


def require_drawable(aspect: float) -> None:
    """Refuse pixels so long that square ones in their stead would fill the memory.

    Raises:
        InvalidPixels: they are more than `MAX_ASPECT` times as long as wide, or as wide as long.
    """
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise InvalidPixels(
            f"pixels are said to be {aspect:.3g} times as high as wide, which no scanner makes (at"
            f" most {MAX_ASPECT:g} times are drawn); correct the pixel spacing"
        )
