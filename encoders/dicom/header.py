"""One file's header -> its slices and what may be told of them; or why it is not an image.

Headers only, no pixels. No patient identifier is kept, only the allow-list of `SeriesInfo`; UIDs
are kept to put slices together and never told.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from encoders.dicom import tags, vocabulary
from encoders.dicom.burned_in import BurnedIn, burned_in_risk
from encoders.dicom.elements import Elements, Flaw, Tree, Values, read_elements, text
from encoders.dicom.intake import Origin, read_start
from encoders.dicom.kinds import (
    DocumentKind,
    Kind,
    document_kind,
    is_image,
    is_known,
    kind_of,
    reason_against,
)
from encoders.features import Problem

Vector = tuple[float, ...]
MAX_MM = 1e6  # no patient lies farther from the origin
MAX_FRAMES = 100_000
MAX_DESCRIBED = 25_000  # frames with attributes of their own


class Traits(NamedTuple):
    """What may tell apart images that lie at the same place: phases, echoes, reconstructions."""

    image_type: tuple[str, ...] = ()
    thickness: str = ""  # mm, to a tenth
    stack: str = ""  # Stack ID (0020,9056)
    container: str = ""  # the multi-frame object, or the concatenation it is a part of
    phase: str = ""  # Temporal Position
    b_value: str = ""  # of diffusion
    acquisition: str = ""
    trigger: str = ""  # ms after the R wave
    acquisition_time: str = ""
    content_time: str = ""


class Part(NamedTuple):
    """Which part of a concatenation an object is (PS3.3 C.7.6.16.2.2.4)."""

    concatenation: str
    number: int
    total: int


@dataclass(frozen=True)
class Stored:
    """How and where the pixels of a file are stored (PS3.3 C.7.6.3, PS3.5 8).

    `offset` and `length` are those of the value in the file; length -1 if encapsulated, offset 0
    where the data set is deflated. `plain` values need no more than slope and intercept, and `shown` to
    be looked at.
    """

    syntax: str = ""
    offset: int = 0
    length: int = 0
    frames: int = 1
    samples: int = 1
    bits_allocated: int = 0
    bits_stored: int = 0
    high_bit: int = 0
    signed: bool = False
    photometric: str = ""
    plain: bool = True
    lossy: bool = False  # Lossy Image Compression (0028,2110)
    padding: tuple[int, int] | None = None  # stored values (0028,0120) and (0028,0121)
    units: str = ""  # of PET and NM (0054,1001)
    shown: tuple[str, ...] = ()  # window centres, widths, names, function; LUT shape


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
    plane: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class SliceFile:
    """One slice: where its pixels are and where it lies in the patient (LPS mm)."""

    name: str
    source: Origin
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
    rescale_type: str = ""  # (0028,1054)
    kind: Kind = "image"
    study_uid: str = ""
    frame_of_reference: str = ""  # (0020,0052); compared, never told
    series_number: str = ""
    instance_number: int = 0
    kernel: str = ""
    echo: str = ""
    traits: Traits = field(default_factory=Traits)
    part: Part | None = None
    burned_in: BurnedIn | None = None  # None: its header tells of no risk
    stored: Stored = field(default_factory=Stored)
    info: SeriesInfo = field(default_factory=SeriesInfo, repr=False)
    prefix: bytes = field(default=b"", repr=False)  # preamble and meta header the file lacks

    @property
    def localizer(self) -> bool:
        """Whether it is a scout view."""
        return self.kind == "localizer"

    def open(self) -> io.BytesIO | Path:
        """What pydicom reads."""
        return open_origin(self.source, self.prefix)


@dataclass(frozen=True)
class Document:
    """An object that holds text: a structured report, a PDF or a CDA document."""

    name: str
    source: Origin
    kind: DocumentKind
    sop_class: str
    study_uid: str = ""
    prefix: bytes = field(default=b"", repr=False)

    def open(self) -> io.BytesIO | Path:
        """What pydicom reads."""
        return open_origin(self.source, self.prefix)


@dataclass(frozen=True)
class Header:
    """What one file gives: slices or a document, and what is wrong with it."""

    slices: tuple[SliceFile, ...] = ()
    document: Document | None = None
    problems: tuple[Problem, ...] = ()


def open_origin(source: Origin, prefix: bytes = b"") -> io.BytesIO | Path:
    """A path as it is, everything else as bytes in memory."""
    if isinstance(source, Path) and not prefix:
        return source
    data = source if isinstance(source, bytes) else source.read_bytes()
    return io.BytesIO(prefix + data)


def read_header(name: str, source: Origin, *, lenient: bool = False) -> Header:
    """The slices of one file, one per frame with a place of its own; or why there are none.

    Nothing is raised: a file that is broken, foreign or no image gives a `Problem`.

    Args:
        name: what to call the file.
        source: its path, bytes or place in an archive.
        lenient: also read files without preamble or meta header, or with a wrong one.
    """
    try:
        found = read_elements(lambda size: read_start(source, size), tags.HEADER, lenient=lenient)
        return _interpret(found, name, source)
    except Flaw as flaw:
        return Header(problems=(Problem(flaw.code, str(flaw), name),))
    except OSError as error:
        words = f"cannot be opened ({type(error).__name__})"
        return Header(problems=(Problem("UNREADABLE_FILE", words, name),))


def _interpret(found: Elements, name: str, source: Origin) -> Header:
    values = Values(found.values, found.little)
    sop_class = values.text(tags.SOP_CLASS) or text(found.meta.get(tags.META_SOP_CLASS))
    if not is_image(sop_class, found.pixels is not None):
        if found.flaw and not sop_class:
            raise found.flaw
        kind, uid = document_kind(sop_class), values.text(tags.STUDY)
        document = Document(name, source, kind, sop_class, uid, found.prefix) if kind else None
        problem = Problem("NOT_AN_IMAGE", reason_against(sop_class), name)
        return Header(document=document, problems=(problem,))
    if found.flaw:
        raise found.flaw
    if found.pixels is None:
        raise Flaw("an image without pixel data")
    whole = _whole(values, found, name, source, sop_class)
    frames, problems = _frames(values, whole)
    if sop_class and not is_known(sop_class):
        words = "a private or new SOP class; read as a plain image, not as Hounsfield units"
        problems.append(Problem("PRIVATE_SOP_CLASS", words, name))
    return Header(tuple(frames), problems=tuple(problems))


def _whole(
    values: Values, found: Elements, name: str, source: Origin, sop_class: str
) -> SliceFile:  # fmt: skip
    """The file as one slice; its frames differ from it by their functional groups."""
    rows, columns = values.unsigned(tags.ROWS), values.unsigned(tags.COLUMNS)
    if not (0 < rows < 65536 and 0 < columns < 65536):
        raise Flaw("an image without Rows (0028,0010) or Columns (0028,0011) of one number each")
    image_type = values.texts(tags.IMAGE_TYPE)
    stored = _stored(values, found)
    uid, part = values.text(tags.SOP_INSTANCE), None
    if values.text(tags.CONCATENATION):
        numbers = values.unsigned(tags.PART_NUMBER), values.unsigned(tags.PART_TOTAL)
        part = Part(values.text(tags.CONCATENATION), *numbers)
    traits = Traits(
        image_type, _tenth(values.number(tags.THICKNESS)), "",
        "" if stored.frames == 1 else part.concatenation if part else uid,
        values.text(tags.PHASE), str(values.double(tags.B_VALUE) or ""),
        values.text(tags.ACQUISITION), values.text(tags.TRIGGER),
        values.text(tags.ACQUISITION_TIME), values.text(tags.CONTENT_TIME),
    )  # fmt: skip
    return SliceFile(
        name, source, values.text(tags.SERIES), uid, sop_class, rows, columns,
        position=_vector(values, tags.POSITION, 3), orientation=_orientation(values),
        spacing=_spacing(values), rescale=_rescale(values),
        rescale_type=values.text(tags.RESCALE_TYPE), kind=kind_of(sop_class, image_type),
        study_uid=values.text(tags.STUDY),
        frame_of_reference=values.text(tags.FRAME_OF_REFERENCE),
        series_number=values.text(tags.SERIES_NUMBER),
        instance_number=values.integer(tags.INSTANCE_NUMBER), kernel=values.text(tags.KERNEL),
        echo=values.text(tags.ECHO), traits=traits, part=part, stored=stored,
        burned_in=_burned_in(values, sop_class),
        info=_info(values, rows, columns), prefix=found.prefix,
    )  # fmt: skip


def _burned_in(values: Values, sop_class: str) -> BurnedIn | None:
    return _risk(
        sop_class, values.text(tags.MODALITY), values.texts(tags.IMAGE_TYPE),
        tuple(values.text(tag) for tag in _DEVICE),
        (values.unsigned(tags.ROWS), values.unsigned(tags.COLUMNS)),
        sum(tag in values.tree for tag in tags.OVERLAYS),
    )  # fmt: skip


_DEVICE = (tags.CONVERSION, tags.BURNED_IN, tags.MANUFACTURER, tags.MODEL)


@lru_cache(maxsize=64)  # the slices of a series give the same
def _risk(
    sop_class: str, modality: str, image_type: tuple[str, ...], device: tuple[str, ...],
    size: tuple[int, int], num_overlays: int,
) -> BurnedIn | None:  # fmt: skip
    conversion, burned_in, manufacturer, model = device
    facts = {
        "SOPClassUID": sop_class, "Modality": modality, "ImageType": image_type,
        "ConversionType": conversion, "BurnedInAnnotation": burned_in,
        "Manufacturer": manufacturer, "ManufacturerModelName": model,
        "Rows": size[0], "Columns": size[1],
    }  # fmt: skip
    risk = burned_in_risk(facts, num_overlays)
    return risk if risk.at_risk else None


def _stored(values: Values, found: Elements) -> Stored:
    frames = values.integer(tags.NUM_FRAMES, 1) or 1
    if frames > MAX_FRAMES:
        raise Flaw(f"declares {frames} frames (0028,0008)")
    offset, length = found.pixels or (0, 0)
    bits = values.unsigned(tags.BITS_ALLOCATED)
    used = values.unsigned(tags.BITS_STORED, bits)
    return Stored(
        found.syntax, offset, length, frames, values.unsigned(tags.SAMPLES, 1), bits, used,
        values.unsigned(tags.HIGH_BIT, used - 1), values.unsigned(tags.SIGNED) == 1,
        values.text(tags.PHOTOMETRIC),
        values.tree.keys().isdisjoint(_NOT_PLAIN) and all(values.tree.get(t) for t in _NEEDED),
        values.text(tags.LOSSY) == "01",
        _padding(values), values.text(tags.UNITS), tuple(text(values.tree.get(t)) for t in _SHOWN),
    )  # fmt: skip


_SHOWN = (
    tags.WINDOW_CENTER,
    tags.WINDOW_WIDTH,
    tags.WINDOW_NAMES,
    tags.WINDOW_FUNCTION,
    tags.LUT_SHAPE,
)
_NEEDED = (tags.BITS_STORED, tags.SIGNED)
_NOT_PLAIN = (tags.MODALITY_LUT, tags.PHILIPS_SCALE, tags.VOI_LUT, *tags.OVERLAYS)


def _padding(values: Values) -> tuple[int, int] | None:
    """Two stored values; of signed pixels also where they are written as unsigned ones."""
    signed = values.unsigned(tags.SIGNED) == 1
    ends = []
    for tag in (tags.PADDING, tags.PADDING_LIMIT):
        raw = values.tree.get(tag)
        if isinstance(raw, bytes) and len(raw) in (2, 4):
            ends.append(int.from_bytes(raw, values.order, signed=signed))
        elif tag == tags.PADDING:
            return None
    return min(ends), max(ends)


def _frames(values: Values, whole: SliceFile) -> tuple[list[SliceFile], list[Problem]]:
    """A slice per frame where functional groups place them (PS3.3 C.7.6.16), else the file."""
    groups = values.items(tags.FRAME_GROUPS)
    if not groups:
        return [whole], []
    if len(groups) > MAX_DESCRIBED:
        raise Flaw(f"describes {len(groups)} frames (5200,9230)")
    problems = []
    if len(groups) != whole.stored.frames:
        words = f"{whole.stored.frames} frames declared, {len(groups)} described"
        problems.append(Problem("FRAME_COUNT", words, whole.name))
    shared = values.items(tags.SHARED_GROUPS)[:1]
    little = values.order == "little"
    frames = [
        _frame(_Groups([group, *shared], little), whole, index)
        for index, group in enumerate(groups[: whole.stored.frames])
    ]
    return frames, problems


class _Groups:
    """The functional groups of one frame: its own, else the shared ones."""

    def __init__(self, holders: Sequence[Tree], little: bool) -> None:
        self.holders, self.little = holders, little
        self.nothing = Values({}, little)

    def __getitem__(self, tag: int) -> Values:
        for holder in self.holders:
            found = holder.get(tag)
            if isinstance(found, list) and found:
                return Values(found[0], self.little)
        return self.nothing


def _frame(groups: _Groups, whole: SliceFile, index: int) -> SliceFile:
    content, values = groups[tags.CONTENT], groups[tags.TRANSFORM]
    kernel = groups[tags.RECONSTRUCTION].text(tags.KERNEL) or whole.kernel
    thickness = groups[tags.MEASURES].number(tags.THICKNESS)
    frame_type = (
        groups[tags.CT_FRAME_TYPE].texts(tags.FRAME_TYPE)
        or groups[tags.MR_FRAME_TYPE].texts(tags.FRAME_TYPE)
        or whole.traits.image_type
    )
    traits = whole.traits._replace(
        image_type=frame_type,
        thickness=_tenth(thickness),
        stack=content.text(tags.STACK),
        phase=str(content.unsigned(tags.PHASE_INDEX, size=4) or "")
        or str(groups[tags.PHASE_SEQUENCE].double(tags.PHASE_OFFSET) or ""),
        acquisition=str(content.unsigned(tags.FRAME_ACQUISITION) or ""),
        b_value=str(groups[tags.DIFFUSION].double(tags.B_VALUE) or ""),
        trigger=str(groups[tags.CARDIAC].double(tags.TRIGGER_DELAY) or ""),
        acquisition_time="",
        content_time="",
    )
    return replace(
        whole,
        frame=index,
        sop_uid=f"{whole.sop_uid}#{index}",
        position=_vector(groups[tags.PLANE], tags.POSITION, 3),
        orientation=_orientation(groups[tags.TURN]),
        spacing=_spacing(groups[tags.MEASURES]),
        rescale=_rescale(values) if values.tree else whole.rescale,
        rescale_type=values.text(tags.RESCALE_TYPE) if values.tree else whole.rescale_type,
        kind=kind_of(whole.sop_class, frame_type),
        kernel=kernel,
        echo=str(groups[tags.ECHO_SEQUENCE].double(tags.ECHO_TIME) or whole.echo),
        traits=traits,
        info=replace(
            whole.info,
            kernel=vocabulary.kernel(kernel),
            slice_thickness_mm=thickness or whole.info.slice_thickness_mm,
        ),
    )


def _tenth(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def _vector(values: Values, tag: int, size: int) -> Vector | None:
    numbers = values.numbers(tag)
    fits = len(numbers) == size and all(abs(v) < MAX_MM for v in numbers)
    return numbers if fits else None


def _orientation(values: Values) -> Vector | None:
    """Two directions that span a plane, as long as they are; None if they span none."""
    turn = _vector(values, tags.ORIENTATION, 6)
    if turn is None:
        return None
    (a, b, c), (d, e, f) = turn[:3], turn[3:]
    area = (b * f - c * e) ** 2 + (c * d - a * f) ** 2 + (a * e - b * d) ** 2
    return turn if area > 0.01 else None


def _spacing(values: Values) -> Vector | None:
    """Row and column distance in mm; in projections that at the detector for lack of a better."""
    for tag in (tags.SPACING, tags.IMAGER_SPACING):
        found = values.numbers(tag)[:2]
        if len(found) == 2 and all(0 < v < MAX_MM for v in found):
            return found
    return None


def _rescale(values: Values) -> Vector | None:
    slope, intercept = values.number(tags.SLOPE), values.number(tags.INTERCEPT)
    return (slope, intercept) if slope and intercept is not None else None


def _info(values: Values, rows: int, columns: int) -> SeriesInfo:
    age = re.fullmatch(r"(\d{3})([YMWD])", values.text(tags.AGE))
    years = (int(age[1]) if age[2] == "Y" else int(age[1]) // 12 * (age[2] == "M")) if age else None
    bucket = "" if years is None else ("90+" if years >= 90 else f"{years // 10 * 10}s")
    agent = values.tree.get(tags.CONTRAST_AGENT)
    contrast = None if agent is None else bool(values.text(tags.CONTRAST_AGENT))
    return SeriesInfo(
        modality=vocabulary.modality(values.text(tags.MODALITY)),
        body_part=vocabulary.body_part(values.text(tags.BODY_PART)),
        sex=vocabulary.sex(values.text(tags.SEX)), age_bucket=bucket,
        slice_thickness_mm=values.number(tags.THICKNESS),
        kernel=vocabulary.kernel(values.text(tags.KERNEL)),
        contrast=True if values.items(tags.CONTRAST_SEQUENCE) else contrast,
        kvp=values.number(tags.KVP),
        patient_position=vocabulary.patient_position(values.text(tags.PATIENT_POSITION)),
        rows=rows, columns=columns,
    )  # fmt: skip
