"""Values -> grey levels for people: the header's VOI transformations, presets, inversion.

PS3.3 C.11.2 (VOI LUT), C.7.6.3.1.2 (MONOCHROME1), C.11.6 (Presentation LUT Shape). Values come in
after the modality transformation (HU for CT); a model's own windows are in `views`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from encoders.dicom.vocabulary import harmless_words
from encoders.features import Problem

if TYPE_CHECKING:
    from encoders.dicom.header import SeriesInfo
    from encoders.dicom.volume import Volume

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID", "TABLE"]
PROJECTIONS = ("CR", "DX", "MG", "RF", "XA", "US", "OT", "SC", "IO", "PX")  # shown as stored
OVERLAY_GROUPS = range(0x6000, 0x6020, 2)  # PS3.3 C.9.2
_ROBUST = (0.5, 99.5)  # percent
_SAMPLE = 2**21  # voxels that percentiles are taken from


@dataclass(frozen=True)
class Voi:
    """One way from values to grey (PS3.3 C.11.2.1).

    `table` holds a VOI LUT's output scaled to 0..255, its first entry for the value `first`.
    """

    name: str
    center: float = 0.0
    width: float = 1.0
    function: Function = "LINEAR"
    first: int = 0
    table: bytes = b""

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Values -> float32 0..1 of the same shape."""
        if self.function == "TABLE":
            last = len(self.table) - 1
            index = np.clip(np.rint(values) - self.first, 0, last).astype(np.intp)
            return np.frombuffer(self.table, np.uint8)[index].astype(np.float32) / 255
        x = values.astype(np.float32) - self.center
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * x / self.width, -80, 80)))
        if self.function == "LINEAR":  # C.11.2.1.2.1: from c - 0.5 - (w - 1) / 2 over w - 1
            if self.width == 1:
                return (x > -0.5).astype(np.float32)
            return np.clip((x + 0.5) / (self.width - 1) + 0.5, 0, 1)
        return np.clip(x / self.width + 0.5, 0, 1)

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Values -> uint8, 255 brightest."""
        return np.rint(255 * self.unit(values)).astype(np.uint8)


PRESETS = {
    voi.name: voi
    for voi in (
        Voi("brain", 40, 80), Voi("stroke", 40, 40), Voi("subdural", 75, 215),
        Voi("lung", -600, 1500), Voi("mediastinum", 50, 350), Voi("abdomen", 40, 400),
        Voi("liver", 30, 150), Voi("bone", 500, 2000),
    )
}  # fmt: skip
_HEAD = ("HEAD", "BRAIN", "SKULL", "NECK", "FACE", "SINUS", "ORBIT", "IAC", "EAR")


def hanging(info: SeriesInfo) -> tuple[Voi, ...]:
    """The presets that a calibrated CT of this body part is looked at with first."""
    part = info.body_part.upper()
    soft = "mediastinum" if "CHEST" in part or "THORA" in part else "abdomen"
    head = any(word in part for word in _HEAD)
    return tuple(PRESETS[name] for name in (("brain", "bone") if head else ("lung", soft)))


@dataclass(frozen=True)
class Display:
    """How an image wants to be shown.

    Attributes:
        vois: the header's choices in its order, tables before windows.
        inverted: whether low values are bright (MONOCHROME1, or shape INVERSE).
        problems: what of the header could not be used.
    """

    vois: tuple[Voi, ...] = ()
    inverted: bool = False
    problems: tuple[Problem, ...] = ()

    def choose(self, values: np.ndarray, robust: bool = False) -> Voi:
        """The header's first choice; without one, or if `robust`, the range of the values.

        Args:
            values: the whole volume, so that all its slices are shown alike.
            robust: the range between the 0.5th and the 99.5th percentile.
        """
        if self.vois and not robust:
            return self.vois[0]
        if robust:
            step = max(values.size // _SAMPLE, 1)
            low, high = np.percentile(values.reshape(-1)[::step], _ROBUST)
        else:
            low, high = values.min(), values.max()
        low, high = float(low), float(high)
        width = high - low if high > low else 1.0
        name = "percentiles" if robust else "range"
        return Voi(name, low + width / 2, width, "LINEAR_EXACT")

    def unit(self, values: np.ndarray, voi: Voi | None = None) -> np.ndarray:
        """Values -> float32 0..1, 1 the brightest; inverted once, after the VOI."""
        unit = (voi or self.choose(values)).unit(values)
        return 1 - unit if self.inverted else unit

    def grey(self, values: np.ndarray, voi: Voi | str | None = None) -> np.ndarray:
        """Values -> uint8 of the same shape.

        Args:
            values: after the modality transformation.
            voi: one, or the name of one of the header's or of `PRESETS`; else the header's first.

        Raises:
            KeyError: a name that neither knows.
        """
        if isinstance(voi, str):
            named = {**PRESETS, **{v.name: v for v in self.vois}}
            voi = named[voi]
        return np.rint(255 * self.unit(values, voi)).astype(np.uint8)


def voi_of(volume: Volume, robust: bool | None = None) -> Voi:
    """What a volume without Hounsfield units is shown by.

    The header's first choice for projections and colour, or the range between percentiles of all
    that was measured for cross-sections; `robust` decides instead where it is given.
    """
    if robust is None:
        robust = volume.info.modality not in PROJECTIONS
    padding = volume.padding
    measured = volume.voxels if padding is None or padding.all() else volume.voxels[~padding]
    return volume.display.choose(measured, robust)


def unit_of(volume: Volume, voi: Voi, index: int | slice = slice(None)) -> np.ndarray:
    """Slices of a volume as float32 0..1, 1 the brightest; padding is black, inverted or not.

    Where slices have windows of their own, the header's first choice is that of each.
    """
    unit = volume.display.unit(volume.voxels[index], voi)
    if volume.displays and volume.display.vois[:1] == (voi,):
        numbers = np.atleast_1d(np.arange(len(volume.voxels))[index])
        images = unit if unit.ndim == volume.voxels.ndim else unit[None]
        for image, k in zip(images, numbers.tolist(), strict=True):
            image[...] = volume.displays[k].unit(volume.voxels[k])
    if volume.padding is not None:
        unit[volume.padding[index]] = 0
    return unit


_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # LPS: negative and positive end of each axis


@dataclass(frozen=True)
class Upright:
    """How a stored slice is turned to be looked at: patient right at the left, front or head up.

    `letters` stand at the left, right, upper and lower edge. Transposing comes before flipping.
    """

    transposed: bool
    flip_rows: bool
    flip_columns: bool
    letters: tuple[str, str, str, str]

    def apply(self, image: np.ndarray) -> np.ndarray:
        """`[rows, columns, ...]` as stored -> as shown."""
        turned = image.swapaxes(0, 1) if self.transposed else image
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def box(
        self, box: tuple[float, float, float, float], shape: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """A box (x0, y0, x1, y1) of the stored slice of this shape, as one of the shown one."""
        x0, y0, x1, y1 = box
        rows, columns = shape
        if self.transposed:
            x0, y0, x1, y1, rows, columns = y0, x0, y1, x1, columns, rows
        xs = sorted(columns - x if self.flip_columns else x for x in (x0, x1))
        ys = sorted(rows - y if self.flip_rows else y for y in (y0, y1))
        return xs[0], ys[0], xs[1], ys[1]


def upright(grid: np.ndarray) -> Upright:
    """The turn for slices of a (slice, row, column) -> LPS mm affine, oblique ones included."""
    axes = dominant_axes(grid)
    across = 0 if 0 in axes[1:] else 1  # left-right runs across where it is in the slice
    transposed = axes[2] != across
    row, column = (2, 1) if transposed else (1, 2)
    down = axes[row]
    flip_columns = bool(grid[across, column] < 0)
    flip_rows = bool(grid[down, row] < 0) != (down == 2)  # the head is up, where z is largest
    upper, lower = _LETTERS[down][:: -1 if down == 2 else 1]
    return Upright(transposed, flip_rows, flip_columns, (*_LETTERS[across], upper, lower))


def dominant_axes(affine: np.ndarray) -> list[int]:
    """The patient axis (x, y, z) each voxel axis runs along most, each used once."""
    weight = np.abs(affine[:3, :3]) / (np.linalg.norm(affine[:3, :3], axis=0) + 1e-12)
    axes = [-1, -1, -1]
    for _ in range(3):
        patient, voxel = np.unravel_index(int(weight.argmax()), (3, 3))
        axes[int(voxel)] = int(patient)
        weight[patient, :] = weight[:, voxel] = -1.0
    return axes


@cache
def unreadable() -> tuple[type[Exception], ...]:
    """What pydicom raises where the value of an element is broken, at the moment it is asked for."""
    from pydicom.errors import BytesLengthException

    return (
        ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError,
        OverflowError, BytesLengthException,
    )  # fmt: skip


def display_of(header: Any, frame: int | None = None) -> Display:
    """What a header (of pydicom) says of showing its image, or one frame of it.

    A broken header shows its image too, over the range of its values, and is told of.
    """
    overlays = overlay_problems(header)
    inverted = _inverted(header)
    problems: list[Problem] = []
    try:
        holder = _frame_voi(header, frame)
        signed = bool(header.get("PixelRepresentation", 0)) or _lowers(header)
        vois = (*_tables(holder, signed, problems), *_windows(holder, problems))
    except unreadable():
        words = "the VOI attributes (0028,1050) to (0028,3010) are broken; none is used"
        return Display((), inverted, (Problem("BAD_DISPLAY", words), *overlays))
    return Display(vois, inverted, (*problems, *overlays))


@lru_cache(maxsize=64)  # the slices of a series give the same
def display_of_plain(photometric: str, shown: tuple[str, ...]) -> Display:
    """`display_of` for a slice that has no tables and no overlays, as its scan tells (`Stored`)."""
    names = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction",
             "PresentationLUTShape")  # fmt: skip
    header: dict[str, Any] = {"PhotometricInterpretation": photometric}
    for name, value in zip(names, shown, strict=True):
        header[name] = value.split("\\") if "\\" in value else value
    return display_of(header)


def _inverted(header: Any) -> bool:
    try:
        kind, shape = header.get("PhotometricInterpretation"), header.get("PresentationLUTShape")
    except unreadable():
        kind, shape = header.get("PhotometricInterpretation"), None
    return kind == "MONOCHROME1" or shape == "INVERSE"


def overlay_problems(header: Any) -> tuple[Problem, ...]:
    """Overlay planes, which nobody sees unless asked for, as what they may hold: names."""
    count = sum((group, 0x0010) in header for group in OVERLAY_GROUPS)
    words = f"{count} overlay planes (60xx,3000) may hold words that name a patient; not shown"
    return (Problem("OVERLAY", words),) if count else ()


def _frame_voi(header: Any, frame: int | None) -> Any:
    """The Frame VOI LUT functional group (PS3.3 C.7.6.16.2.10) where there is one."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or ()
    own = frames[frame or 0] if len(frames) > (frame or 0) else None
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    for group in (own, shared):
        found = group.get("FrameVOILUTSequence") if group is not None else None
        if found:
            return found[0]
    return header


def _lowers(header: Any) -> bool:
    """Whether the rescale can make values negative."""
    intercept = header.get("RescaleIntercept")
    return intercept not in (None, "") and float(intercept) < 0


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    is_many = not isinstance(value, str | bytes) and hasattr(value, "__iter__")
    return list(value) if is_many else [value]


def _windows(holder: Any, problems: list[Problem]) -> list[Voi]:
    centers, widths = (_listed(holder.get(n)) for n in ("WindowCenter", "WindowWidth"))
    names = [harmless_words(str(n)) for n in _listed(holder.get("WindowCenterWidthExplanation"))]
    function = str(holder.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        problems.append(Problem("UNKNOWN_VOI", "unknown VOI LUT Function (0028,1056); linear used"))
        function = "LINEAR"
    found = []
    for number, pair in enumerate(zip(centers, widths, strict=False)):
        try:
            center, width = (float(v) for v in pair)
        except (TypeError, ValueError):
            center = width = float("nan")
        if not (np.isfinite(center) and 0 < width < float("inf")):
            problems.append(Problem("BAD_WINDOW", "a window (0028,1051) that is no width; unused"))
            continue
        name = names[number] if number < len(names) and names[number] else f"window {number + 1}"
        voi = Voi(name, center, width, function)  # type: ignore[arg-type]
        if function == "LINEAR" and width < 1:  # allowed for LINEAR_EXACT only (C.11.2.1.2.1)
            voi = replace(voi, function="LINEAR_EXACT")
            problems.append(Problem("NARROW_WINDOW", "a window narrower than 1, taken as exact"))
        found.append(voi)
    return found


def _tables(holder: Any, signed: bool, problems: list[Problem]) -> list[Voi]:
    found = []
    for number, item in enumerate(holder.get("VOILUTSequence") or ()):
        try:
            first, bits, entries = lookup_table(item, signed)
        except ValueError:
            problems.append(Problem("BAD_VOI_LUT", "a broken VOI LUT (0028,3010); unused"))
            continue
        scaled = np.rint(entries * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
        name = harmless_words(str(item.get("LUTExplanation") or "")) or f"table {number + 1}"
        found.append(Voi(name, function="TABLE", first=first, table=scaled.tobytes()))
    return found


def lookup_table(item: Any, signed: bool) -> tuple[int, int, np.ndarray]:
    """First mapped value, bits and entries of a LUT item (PS3.3 C.11.1.1): Modality or VOI.

    Raises:
        ValueError: descriptor or data are missing or do not fit each other.
    """
    descriptor, data = _listed(item.get("LUTDescriptor")), item.get("LUTData")
    if len(descriptor) != 3 or data is None:
        raise ValueError("no LUT Descriptor (0028,3002) or LUT Data (0028,3006)")
    count, first, bits = (int(v) for v in descriptor)
    count = count or 65536
    first -= 65536 if signed and first > 32767 else 0
    if not 1 <= bits <= 16:
        raise ValueError(f"LUT of {bits} bits")
    return first, bits, _entries(data, count, bits, getattr(item, "is_little_endian", None))


def _entries(data: Any, count: int, bits: int, little: bool | None) -> np.ndarray:
    """LUT Data as one integer per entry; 8-bit entries may be packed two to a word."""
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], ">u2" if little is False else "<u2")
    else:
        words = np.array(_listed(data), np.int64).astype(np.uint16)
    if len(words) < count and bits <= 8 and 2 * len(words) >= count:
        words = np.stack([words & 255, words >> 8], 1).reshape(-1)
    if len(words) < count:
        raise ValueError(f"LUT of {count} entries holds {len(words)}")
    return words[:count].astype(np.uint16)
