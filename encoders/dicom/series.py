"""What is in a DICOM input: file, folder or zip -> Study > Series of slices in spatial order.

Headers only, no pixels. Whatever is not used is listed as a `Problem` with its reason; patient
identifiers are never kept, only the allow-list of `SeriesInfo`.
"""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from encoders.errors import MissingInput, NotDicom, UnreadableFile
from encoders.features import Problem

MAX_MEMBERS = 20_000
MAX_UNPACKED_BYTES = 4 * 2**30
MAX_RATIO = 200

_CT = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
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


@dataclass(frozen=True)
class Series:
    """Slices that belong together, sorted along their normal, and why they were put together so."""

    files: tuple[SliceFile, ...]
    info: SeriesInfo
    problems: tuple[Problem, ...] = ()
    is_volume: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Study:
    """Everything found in one input."""

    series: tuple[Series, ...]
    problems: tuple[Problem, ...] = ()

    def default(self) -> Series:
        """The series to open: CT volumes first, then other volumes, then the most slices.

        Raises:
            NotDicom: nothing here is an image; the reasons are in the message.
        """
        if not self.series:
            reasons = "; ".join(f"{p.subject}: {p.message}" for p in self.problems[:3])
            raise NotDicom(f"no DICOM image found ({reasons or 'the input is empty'})")
        return max(
            self.series,
            key=lambda s: (
                not s.files[0].localizer and s.files[0].sop_class != _SECONDARY,
                s.is_volume and s.info.modality == "CT",
                s.is_volume,
                len(s.files),
            ),
        )


def read_study(path: Path | str) -> Study:
    """Read the headers of a file, a folder (with its subfolders) or a zip.

    Raises:
        MissingInput: the path does not exist.
        UnreadableFile: a zip that is broken, or unpacks to more than is safe.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInput(f"{path.name!r} does not exist; give a DICOM file, folder or zip")
    slices: list[tuple[SliceFile, SeriesInfo]] = []
    problems: list[Problem] = []
    for name, source in _members(path, problems):
        try:
            slices.extend(_read_slices(name, source))
        except _Unusable as unusable:
            problems.append(unusable.problem)
    groups: dict[Any, list[tuple[SliceFile, SeriesInfo]]] = {}
    for item in slices:
        groups.setdefault(_group_key(item[0]), []).append(item)
    series = tuple(_make_series(group) for group in groups.values())
    return Study(series, tuple(problems))


def describe(study: Study) -> dict[str, Any]:
    """A study in JSON types, for `crossread info`: series, sizes, reasons, no identifiers."""
    return {
        "series": [
            {
                **series.info.to_dict(),
                "is_volume": series.is_volume,
                "reason": series.reason,
                "default": series is study.default(),
                "problems": [asdict(p) for p in series.problems],
            }
            for series in study.series
        ],
        "problems": [asdict(p) for p in study.problems],
    }


class _Unusable(Exception):
    """A file that gives no slice, with the problem to list."""

    def __init__(self, code: str, message: str, subject: str) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, subject)


def _members(path: Path, problems: list[Problem]) -> Iterator[tuple[str, Path | bytes]]:
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield file.name, file
    elif zipfile.is_zipfile(path):
        yield from _zip_members(path, problems)
    else:
        yield path.name, path


def _zip_members(path: Path, problems: list[Problem]) -> Iterator[tuple[str, bytes]]:
    """Members are read in memory, so no name can escape; sizes are checked before unpacking."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
            total = sum(e.file_size for e in entries)
            packed = max(sum(e.compress_size for e in entries), 1)
            if (
                len(entries) > MAX_MEMBERS
                or total > MAX_UNPACKED_BYTES
                or (total > 2**26 and total / packed > MAX_RATIO)
            ):
                raise UnreadableFile(
                    f"{path.name!r} holds {len(entries)} files that unpack to {total / 2**20:.0f}"
                    f" MiB ({total / packed:.0f} times its size): refused as unsafe"
                )
            for entry in entries:
                name = PurePosixPath(entry.filename).name
                parts = PurePosixPath(entry.filename.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts:
                    problems.append(Problem("UNSAFE_PATH", "path leaves the archive", name))
                    continue
                yield name, archive.read(entry)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
        raise UnreadableFile(
            f"{path.name!r} is a broken or encrypted zip; pack it again"
        ) from error


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
def _read_slices(name: str, source: Path | bytes) -> list[tuple[SliceFile, SeriesInfo]]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    target = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        header = pydicom.dcmread(target, stop_before_pixels=True)
        sop_class = str(
            header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", "")
        )
        if header.get("DirectoryRecordSequence") is not None:
            raise _Unusable("NOT_AN_IMAGE", "a media directory (DICOMDIR)", name)
        _require_image(header, sop_class, name)
        return [(f, _info(header)) for f in _frames(header, name, source, sop_class)]
    except InvalidDicomError as error:
        raise _Unusable("NOT_DICOM", "not a DICOM file (no DICM prefix)", name) from error
    except RecursionError as error:
        raise _Unusable("UNREADABLE_FILE", "sequences nested too deep", name) from error
    except (EOFError, OSError, ValueError, TypeError, AttributeError, KeyError, IndexError,
            NotImplementedError, OverflowError) as error:  # fmt: skip  # what pydicom lets through
        raise _Unusable(
            "UNREADABLE_FILE", f"broken header ({type(error).__name__})", name
        ) from error


def _require_image(header: Any, sop_class: str, name: str) -> None:
    import pydicom

    known = sop_class in _IMAGES or sop_class.startswith(_SECONDARY)
    if known or (not sop_class and "Rows" in header):
        if int(header.get("Rows") or 0) < 1 or int(header.get("Columns") or 0) < 1:
            raise _Unusable("UNREADABLE_FILE", "an image without Rows or Columns", name)
        return
    kind = pydicom.uid.UID(sop_class).name if sop_class else "no SOP class"
    raise _Unusable("NOT_AN_IMAGE", f"not an image to read: {kind}", name)


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


def _group_key(file: SliceFile) -> tuple[Any, ...]:
    """What the slices of one volume share; directions within about a degree count as equal."""
    turn = tuple(round(v / 0.02) for v in file.orientation) if file.orientation else None
    spacing = tuple(round(v, 3) for v in file.spacing) if file.spacing else None
    return (
        file.series_uid, file.sop_class, file.rows, file.columns, turn, spacing, file.localizer
    )  # fmt: skip


def normal_of(orientation: Vector) -> np.ndarray:
    """Unit normal of a slice: row direction cross column direction (PS3.3 C.7.6.2.1.1)."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / (np.linalg.norm(normal) or 1.0)


def _make_series(group: list[tuple[SliceFile, SeriesInfo]]) -> Series:
    files: dict[str, SliceFile] = {}
    problems = []
    for file, _ in group:
        if file.sop_uid in files and file.sop_uid:
            problems.append(
                Problem("DUPLICATE_INSTANCE", "the same image twice; one kept", file.name)
            )
            continue
        files[file.sop_uid or f"{file.name}#{len(files)}"] = file
    ordered = list(files.values())
    first, info = ordered[0], group[0][1]
    placed = all(f.position and f.orientation for f in ordered) and first.orientation is not None
    if placed and first.orientation is not None:
        normal = normal_of(first.orientation)
        ordered.sort(key=lambda f: float(np.dot(f.position or (0, 0, 0), normal)))
    is_volume = placed and len(ordered) > 1 and not first.localizer
    reason = (
        "localizer images" if first.localizer
        else f"{len(ordered)} slices of one orientation, matrix and spacing" if is_volume
        else "no position and orientation" if not placed
        else "a single image"
    )  # fmt: skip
    info = replace(info, num_slices=len(ordered), spacing_mm=first.spacing)
    return Series(tuple(ordered), info, tuple(problems), is_volume, reason)


def is_ct(sop_class: str, info: Mapping[str, Any] | SeriesInfo) -> bool:
    """Whether stored values of this class are Hounsfield units after rescale."""
    modality = info.modality if isinstance(info, SeriesInfo) else info.get("modality")
    return sop_class in _CT or (not sop_class and modality == "CT")
