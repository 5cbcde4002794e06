"""One file's header -> its slices and what may be told of them; or why it is not an image.

Headers only, no pixels. No patient identifier is kept, only the allow-list of `SeriesInfo`.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoders.features import Problem

_CT = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_IMAGES = (
    *_CT,
    "1.2.840.10008.5.1.4.1.1.4",  # MR, then Enhanced and Legacy Converted MR
    "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.1",  # CR, then DX and mammography
    "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1",  # ultrasound
    "1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3",  # ultrasound, retired
    "1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.128",  # NM, PET
    "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2",  # XA, RF
)  # fmt: skip
Vector = tuple[float, ...]


@dataclass(frozen=True)
class SeriesInfo:
    """What may be told of a series: the allow-list of requirement 46, no identifier among it."""

    modality: str = ""
    body_part: str = ""
    sex: str = ""
    age_bucket: str = ""
    slice_thickness_mm: float | None = None
    kernel: str = ""
    contrast: bool | None = None
    kvp: float | None = None
    patient_position: str = ""
    num_slices: int = 0
    rows: int = 0
    columns: int = 0
    spacing_mm: Vector | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class SliceFile:
    """One slice: where its pixels are and where it lies in the patient (LPS mm)."""

    name: str
    source: Path | bytes
    series_uid: str
    sop_uid: str
    sop_class: str
    rows: int
    columns: int
    frame: int | None = None
    position: Vector | None = None  # Image Position (Patient) (0020,0032)
    orientation: Vector | None = None  # Image Orientation (Patient) (0020,0037)
    spacing: Vector | None = None  # row, column distance (0028,0030)
    rescale: Vector | None = None  # slope, intercept
    localizer: bool = False

    def open(self) -> io.BytesIO | Path:
        """What pydicom reads."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source


class Unusable(Exception):
    """A file that gives no slice, with the problem to list."""

    def __init__(self, code: str, message: str, subject: str) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, subject)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Values are taken as they are, and no warning or log line of pydicom quotes them.

    What is wrong with a file is told as a `Problem`; pydicom's own words may hold identifiers.
    """
    from pydicom.config import disable_value_validation

    log = logging.getLogger("pydicom")
    before = log.disabled
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = before


@quiet_pydicom()
def read_slices(name: str, source: Path | bytes) -> list[tuple[SliceFile, SeriesInfo]]:
    """The slices of one file, one per frame.

    Raises:
        Unusable: not DICOM, not an image or broken; the problem to list is in it.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    target = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        header = pydicom.dcmread(target, stop_before_pixels=True)
        sop_class = str(
            header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", "")
        )
        if header.get("DirectoryRecordSequence") is not None:
            raise Unusable("NOT_AN_IMAGE", "a media directory (DICOMDIR)", name)
        _require_image(header, sop_class, name)
        return [(f, _info(header)) for f in _frames(header, name, source, sop_class)]
    except InvalidDicomError as error:
        raise Unusable("NOT_DICOM", "not a DICOM file (no DICM prefix)", name) from error
    except RecursionError as error:
        raise Unusable("UNREADABLE_FILE", "sequences nested too deep", name) from error
    except (EOFError, OSError, ValueError, TypeError, AttributeError, KeyError, IndexError,
            NotImplementedError, OverflowError) as error:  # fmt: skip  # what pydicom lets through
        raise Unusable(
            "UNREADABLE_FILE", f"broken header ({type(error).__name__})", name
        ) from error


def _require_image(header: Any, sop_class: str, name: str) -> None:
    import pydicom

    known = sop_class in _IMAGES or sop_class.startswith(SECONDARY_CAPTURE)
    if known or (not sop_class and "Rows" in header):
        if int(header.get("Rows") or 0) < 1 or int(header.get("Columns") or 0) < 1:
            raise Unusable("UNREADABLE_FILE", "an image without Rows or Columns", name)
        return
    kind = pydicom.uid.UID(sop_class).name if sop_class else "no SOP class"
    raise Unusable("NOT_AN_IMAGE", f"not an image to read: {kind}", name)


def _frames(header: Any, name: str, source: Path | bytes, sop_class: str) -> Iterator[SliceFile]:
    image_type = [str(v).upper() for v in header.get("ImageType") or ()]
    whole = SliceFile(
        name, source, str(header.get("SeriesInstanceUID", "")), str(header.get("SOPInstanceUID", "")),
        sop_class, int(header.Rows), int(header.Columns),
        position=_vector(header.get("ImagePositionPatient"), 3),
        orientation=_vector(header.get("ImageOrientationPatient"), 6),
        spacing=_spacing(header),
        rescale=_rescale(header),
        localizer="LOCALIZER" in image_type,
    )  # fmt: skip
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        yield whole
        return
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    for index, group in enumerate(groups):
        plane = _macro(group, shared, "PlanePositionSequence")
        turn = _macro(group, shared, "PlaneOrientationSequence")
        measures = _macro(group, shared, "PixelMeasuresSequence")
        values = _macro(group, shared, "PixelValueTransformationSequence")
        yield replace(
            whole,
            frame=index,
            sop_uid=f"{whole.sop_uid}#{index}",
            position=_vector(plane and plane.get("ImagePositionPatient"), 3),
            orientation=_vector(turn and turn.get("ImageOrientationPatient"), 6),
            spacing=_vector(measures and measures.get("PixelSpacing"), 2),
            rescale=_rescale(values) if values is not None else whole.rescale,
        )


def _macro(group: Any, shared: Any, name: str) -> Any:
    """A functional group of a frame, else the shared one (PS3.3 C.7.6.16)."""
    for holder in (group, shared):
        found = holder.get(name) if holder is not None else None
        if found:
            return found[0]
    return None


def _vector(value: Any, size: int) -> Vector | None:
    if not value or isinstance(value, str) or len(value) != size:
        return None
    numbers = tuple(float(v) for v in value)
    return numbers if np.isfinite(numbers).all() else None


def _spacing(header: Any) -> Vector | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        found = _vector(header.get(name), 2)
        if found and min(found) > 0:
            return found
    return None


def _rescale(header: Any) -> Vector | None:
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None or float(slope) == 0:
        return None
    return float(slope), float(intercept)


def _info(header: Any) -> SeriesInfo:
    def text(name: str) -> str:
        value = header.get(name)
        return "" if value is None else str(value if isinstance(value, str) else value[0])

    def number(name: str) -> float | None:
        value = header.get(name)
        return None if value in (None, "") else float(value)

    age = text("PatientAge")
    years = int(age[:3]) if age.endswith("Y") and age[:3].isdigit() else None
    bucket = "" if years is None else ("90+" if years >= 90 else f"{years // 10 * 10}s")
    agent = header.get("ContrastBolusAgent")
    return SeriesInfo(
        modality=text("Modality"), body_part=text("BodyPartExamined"), sex=text("PatientSex"),
        age_bucket=bucket, slice_thickness_mm=number("SliceThickness"),
        kernel=text("ConvolutionKernel"), contrast=None if agent is None else bool(agent),
        kvp=number("KVP"), patient_position=text("PatientPosition"),
        rows=int(header.Rows), columns=int(header.Columns),
    )  # fmt: skip


def normal_of(orientation: Vector) -> np.ndarray:
    """Unit normal of a slice: row direction cross column direction (PS3.3 C.7.6.2.1.1)."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / (np.linalg.norm(normal) or 1.0)


def is_ct(sop_class: str, info: Mapping[str, Any] | SeriesInfo) -> bool:
    """Whether stored values of this class are Hounsfield units after rescale."""
    modality = info.modality if isinstance(info, SeriesInfo) else info.get("modality")
    return sop_class in _CT or (not sop_class and modality == "CT")
