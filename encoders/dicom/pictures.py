"""Images that form no volume, as pictures: X-ray, ultrasound, captures, colour, cine.

Grey goes through the modality and VOI transformations, colour through its colour space or palette;
three channels come out. What is drawn over an image (overlays) stays out unless asked for.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoders.dicom.display import OVERLAY_GROUPS, overlay_problems, unit_of, unreadable, voi_of
from encoders.dicom.gate import let_through
from encoders.dicom.header import SliceFile
from encoders.dicom.kinds import is_ct
from encoders.dicom.palette import palette_of
from encoders.dicom.pixels import Pixels, read_bit, read_pixels, require_plausible
from encoders.dicom.series import Series, scan
from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.values import require_drawable
from encoders.dicom.views import ViewProfile, Views, make_views
from encoders.dicom.volume import Volume, load_volume
from encoders.errors import InputError, InvalidPixels, UnreadableFile
from encoders.features import Problem, Source

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_CENTIMETRES = 3  # Physical Units X/Y Direction (0018,6024/6026), PS3.3 C.8.5.5.1.15


@dataclass(frozen=True)
class Region:
    """A calibrated part of an ultrasound picture (PS3.3 C.8.5.5): pixels and mm for each pixel."""

    box: tuple[int, int, int, int]
    mm_per_pixel: tuple[float, float] | None

    def holds(self, point: tuple[float, float]) -> bool:
        """Whether a picture point (x, y) lies in it."""
        x0, y0, x1, y1 = self.box
        return x0 <= point[0] <= x1 and y0 <= point[1] <= y1


@dataclass(frozen=True)
class Picture:
    """One image, or one frame of it, as people see it.

    Attributes:
        pixels: uint8 `[rows, columns, 3]`, as stored: pixels need not be square.
        name: the file's name in the input.
        index: the image's place in its series.
        seconds: of a cine frame, from its start.
        spacing_mm: row and column distance, None where it is not calibrated.
        aspect: height of a pixel divided by its width.
        regions: ultrasound calibration.
    """

    pixels: np.ndarray
    name: str
    index: int = 0
    frame: int | None = None
    seconds: float | None = None
    spacing_mm: tuple[float, float] | None = None
    aspect: float = 1.0
    regions: tuple[Region, ...] = ()
    problems: tuple[Problem, ...] = ()

    def mm_between(self, a: tuple[float, float], b: tuple[float, float]) -> float | None:
        """The distance of two points (x, y); None where nothing says how long a pixel is.

        An ultrasound region counts only if it holds both points and measures lengths both ways.
        """
        step = None
        if self.regions:
            both = [r for r in self.regions if r.holds(a) and r.holds(b)]
            step = both[-1].mm_per_pixel if both else None  # later regions lie over earlier ones
        elif self.spacing_mm:
            step = (self.spacing_mm[1], self.spacing_mm[0])
        if step is None:
            return None
        return float(np.hypot((a[0] - b[0]) * step[0], (a[1] - b[1]) * step[1]))

    def squared(self) -> np.ndarray:
        """The pixels with square ones: the coarser direction is resampled to the finer.

        Raises:
            InvalidPixels: they are longer than any scanner makes them.
        """
        require_drawable(self.aspect)
        rows, columns = self.pixels.shape[:2]
        if self.aspect >= 1:
            return _resized(self.pixels, round(rows * self.aspect), columns)
        return _resized(self.pixels, rows, round(columns / self.aspect))


def viewable(study: str | Path | Series | Volume) -> Series | Volume:
    """What of a study a model may see: of a path its default series.

    Raises:
        BurnedInText: the pictures may show patient data and nobody vouches for them.
        InputError: nothing can be seen there.
    """
    if not isinstance(study, Volume):
        return let_through(study if isinstance(study, Series) else scan(study).default())
    if not np.isfinite(study.voxels).all():
        raise InvalidPixels("the volume holds NaN or infinite voxels; replace them first")
    return let_through(study)


def views_of(series: Series | Volume, profile: ViewProfile) -> Views:
    """The views of anything: a volume's by `make_views`, other images as pictures.

    Raises:
        InputError: nothing of it can be decoded.
    """
    if isinstance(series, Volume):
        return volume_views(series, profile)
    if not series.is_volume and not is_ct(series.files[0].sop_class, series.info.modality):
        return picture_views(load_pictures(series, profile.num_views), profile)
    return volume_views(load_volume(series), profile)


def volume_views(volume: Volume, profile: ViewProfile) -> Views:
    """`make_views`, and the volume's own problems among those of the views."""
    views = make_views(volume, profile)
    return replace(views, problems=(*volume.problems, *views.problems))


def picture_views(pictures: Sequence[Picture], profile: ViewProfile) -> Views:
    """Pictures as views: square pixels, padded with black to the profile's size."""
    squares = [picture.squared() for picture in pictures]
    side = profile.size or max(max(square.shape[:2]) for square in squares)
    pixels = np.zeros((len(squares), side, side, 3), np.uint8)
    sources = []
    for out, square, picture in zip(pixels, squares, pictures, strict=True):
        scale = 1.0 if profile.size is None else side / max(square.shape[:2])
        height, width = (max(round(n * scale), 1) for n in square.shape[:2])
        top, left = (side - height) // 2, (side - width) // 2
        out[top : top + height, left : left + width] = _resized(square, height, width)
        rows, columns = picture.pixels.shape[:2]
        sx, sy = columns / width, rows / height
        way = (sx, 0.0, -left * sx, 0.0, sy, -top * sy)
        seconds = None if picture.seconds is None else (picture.seconds, picture.seconds)
        sources.append(
            Source("dicom", slice_index=picture.index, window=profile.name, seconds=seconds, pixel_map=way)
        )  # fmt: skip
    labels = tuple(profile.label.format(number=k + 1) for k in range(len(squares)))
    problems = tuple(dict.fromkeys(p for picture in pictures for p in picture.problems))
    geometry = np.zeros((len(squares), 11), np.float32)
    return Views(np.moveaxis(pixels, -1, 1), geometry, tuple(sources), problems, labels)


def load_pictures(series: Series, limit: int = 16, *, overlays: bool = False) -> list[Picture]:
    """At most `limit` pictures of a series; of more images or cine frames evenly chosen ones.

    Args:
        series: of any kind.
        limit: the most pictures.
        overlays: burn overlay planes in; by default they are left out, as they may name people.

    Raises:
        InputError: none of its images can be decoded; the first one's reason.
    """
    frames = [(i, f, k) for i, f in enumerate(series.files) for k in _frames_of(f)]
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(limit, len(frames))).round().astype(int))
    require_plausible(
        series.files, sum(3 * f.rows * f.columns for _, f, _ in (frames[k] for k in chosen))
    )
    pictures, failed = [], []
    for index, file, frame in (frames[k] for k in chosen):
        try:
            pictures.append(_picture(series, replace(file, frame=frame), index, overlays))
        except InputError as error:
            failed.append((Problem("CORRUPT_SLICE", str(error), file.name), error))
    if not pictures:
        raise failed[0][1]
    problems = (*series.problems, *pictures[0].problems, *(problem for problem, _ in failed))
    return [replace(pictures[0], problems=problems), *pictures[1:]]


def _frames_of(file: SliceFile) -> Iterator[int | None]:
    if file.frame is not None or file.stored.frames < 2:
        yield file.frame
    else:
        yield from range(file.stored.frames)


@quiet_pydicom()
def _picture(series: Series, file: SliceFile, index: int, overlays: bool) -> Picture:
    import pydicom

    grey = file.stored.samples == 1 and file.stored.photometric != "PALETTE COLOR"
    # decoding comes first: it checks the limits before anything is unpacked
    decoded = _grey(series, file) if grey else read_pixels(file)
    target = file.open()
    try:
        header = pydicom.dcmread(target, stop_before_pixels=True, force=True)
        return _shown(file, index, decoded, header, overlays)
    except InvalidPixels as error:
        raise UnreadableFile(f"{file.name!r} cannot be coloured: {error}") from error
    except unreadable() as error:  # whose own words may quote values
        kind = type(error).__name__
        raise UnreadableFile(
            f"{file.name!r} has a broken header ({kind}); export it again"
        ) from error
    finally:
        if isinstance(target, io.BytesIO):
            target.close()


def _shown(
    file: SliceFile, index: int, decoded: Pixels | Volume, header: Any, overlays: bool
) -> Picture:
    rgb, problems = _rgb(file, decoded, header)
    if overlays:
        rgb = _burnt_in(rgb, header, file)
    spacing = file.spacing
    return Picture(
        rgb, file.name, index, file.frame, _seconds(header, file.frame),
        (spacing[0], spacing[1]) if spacing else None, _aspect(header, spacing),
        tuple(_regions(header)), (*problems, *overlay_problems(header)),
    )  # fmt: skip


def _grey(series: Series, file: SliceFile) -> Volume:
    return load_volume(replace(series, files=(file,), is_volume=False, problems=()))


def _rgb(
    file: SliceFile, decoded: Pixels | Volume, header: Any
) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """uint8 `[rows, columns, 3]` of one image, by what its values mean."""
    palette = palette_of(header)
    if isinstance(decoded, Pixels):
        rgb = palette.apply(decoded.stored) if palette else _colour(decoded)
        return _in_srgb(rgb, header, file.name)
    told_otherwise = ("NO_GEOMETRY", "OVERLAY")  # a picture needs no place; overlays: see below
    problems = tuple(p for p in decoded.problems if p.code not in told_otherwise)
    voi = voi_of(decoded, robust=False if decoded.display.vois else None)
    grey = np.rint(255 * unit_of(decoded, voi, 0)).astype(np.uint8)
    if palette:
        return palette.apply(read_pixels(file).stored, grey), problems
    return np.repeat(grey[..., None], 3, -1), problems


def _colour(decoded: Pixels) -> np.ndarray:
    """Colour samples as 8-bit RGB (PS3.3 C.7.6.3.1.2); decoders give ICT and RCT as RGB."""
    stored = decoded.stored[..., :3]
    eight = (stored >> max(decoded.bits - 8, 0)).astype(np.uint8)
    if decoded.photometric not in _COLOURS:
        raise InvalidPixels(f"its colour space (0028,0004) is none of {', '.join(_COLOURS)}")
    if decoded.photometric.startswith("YBR_FULL"):
        from pydicom.pixels.processing import convert_color_space

        return convert_color_space(eight, "YBR_FULL", "RGB")
    return eight


def _in_srgb(rgb: np.ndarray, header: Any, name: str) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """Colours of the image's ICC profile (0028,2000), where it has one, as sRGB."""
    if not header.get("ICCProfile"):
        return rgb, ()
    from PIL.ImageCms import PyCMSError
    from pydicom.pixels.processing import apply_icc_profile

    try:
        return apply_icc_profile(rgb.copy(), header, color_space="sRGB"), ()
    except (PyCMSError, ValueError, OSError):  # what a broken profile raises
        words = "a colour profile (0028,2000) that cannot be used; colours are shown without it"
        return rgb, (Problem("BAD_ICC_PROFILE", words, name),)


def _burnt_in(rgb: np.ndarray, header: Any, file: SliceFile) -> np.ndarray:
    """Overlay planes drawn in white (PS3.3 C.9.2)."""
    out = rgb.copy()
    for group in OVERLAY_GROUPS:
        plane = _plane(header, group, file)
        if plane is None:
            continue
        top, left = (int(v) - 1 for v in _value(header, group, 0x0050) or (1, 1))
        rows, columns = np.nonzero(plane)
        rows, columns = rows + top, columns + left
        inside = (rows >= 0) & (rows < out.shape[0]) & (columns >= 0) & (columns < out.shape[1])
        out[rows[inside], columns[inside]] = 255
    return out


def _plane(header: Any, group: int, file: SliceFile) -> np.ndarray | None:
    """One overlay plane of a frame: data of its own, or (retired) an unused bit of the pixels."""
    if (group, 0x3000) not in header:
        bit = _value(header, group, 0x0102)
        return read_bit(file, int(bit)) if bit else None
    plane: np.ndarray = header.overlay_array(group)
    if plane.ndim == 2:
        return plane  # of every frame
    number = (file.frame or 0) - (int(_value(header, group, 0x0051) or 1) - 1)
    return plane[number] if 0 <= number < len(plane) else None


def _value(header: Any, group: int, element: int) -> Any:
    return header[group, element].value if (group, element) in header else None


def _seconds(header: Any, frame: int | None) -> float | None:
    """When a cine frame was taken, by Frame Time or Frame Time Vector (PS3.3 C.7.6.5), in ms."""
    if frame is None:
        return None
    steps = header.get("FrameTimeVector")
    if isinstance(steps, Sequence) and len(steps) > frame:
        return float(sum(float(step) for step in steps[: frame + 1])) / 1000
    step = header.get("FrameTime")
    return float(step) * frame / 1000 if step not in (None, "") else None


def _aspect(header: Any, spacing: Sequence[float] | None) -> float:
    """Height of a pixel divided by its width: by spacing, else Pixel Aspect Ratio (0028,0034)."""
    ratio = spacing or header.get("PixelAspectRatio") or (1, 1)
    try:
        height, width = (float(v) for v in ratio)
    except (TypeError, ValueError):
        return 1.0
    found = height / width if width > 0 else 1.0
    return found if 0.1 <= found <= 10 else 1.0


def _regions(header: Any) -> Iterator[Region]:
    for item in header.get("SequenceOfUltrasoundRegions") or ():
        names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")  # fmt: skip
        corners = [item.get(name) for name in names]
        if any(corner is None for corner in corners):
            continue
        x0, y0, x1, y1 = (int(corner) for corner in corners)
        units = (item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection"))
        deltas = (item.get("PhysicalDeltaX"), item.get("PhysicalDeltaY"))
        step = None
        if units == (_CENTIMETRES, _CENTIMETRES) and all(deltas):
            step = (abs(float(deltas[0])) * 10, abs(float(deltas[1])) * 10)
        yield Region((x0, y0, x1, y1), step)


def _resized(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    from PIL import Image

    if pixels.shape[:2] == (rows, columns):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
