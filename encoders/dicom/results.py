"""Results out: a reading as DICOM objects of the study it is about, each a draft for research.

Plain values and the series flow in; a structured report, key images and an encapsulated PDF flow
out (PS3.3 A.35, A.8, A.45.1). The patient and study modules are read again from a file of the
series at the moment of writing: nothing else of this project carries them.
"""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.dicom.geometry import normal_of
from encoders.dicom.header import SliceFile
from encoders.dicom.series import Series
from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.write import ROOT_UID
from encoders.errors import InputError, UnreadableImage
from encoders.features import Problem

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

MANUFACTURER = "CrossRead"
LABEL = "AI result for research, not for diagnosis"
STRIP_ROWS = 18  # below a key image, for the label
SERIES_NUMBERS = {"report": 901, "pictures": 902, "document": 903}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
_POSITION_TOLERANCE_MM = 0.05
# Patient, General Study and Patient Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2): what an
# archive files an object by, and what says that the study was de-identified.
_IDENTITY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
_ALSO = ("IssuerOfPatientID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight",
         "PatientIdentityRemoved")  # fmt: skip
_METHOD, _METHOD_CODES = "DeidentificationMethod", "DeidentificationMethodCodeSequence"
_SHAPES = {"DA": r"\d{8}", "TM": r"\d{2,6}(\.\d{1,6})?", "AS": r"\d{3}[DWMY]"}
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Place:
    """A slice by its position along the series' normal, and a box (x0, y0, x1, y1) of its pixels."""

    slice_index: int
    position_mm: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Observation:
    """A finding; `probability` is None where the model gave none."""

    name: str
    side: str | None
    size_mm: float | None
    probability: float | None
    place: Place | None = None


@dataclass(frozen=True)
class Remark:
    """A discrepancy between the report and the images."""

    kind: str
    sentence: str | None
    correction: str | None
    probability: float | None
    place: Place | None = None


@dataclass(frozen=True)
class Maker:
    """What made the result, no field empty: the model, the hash of its weights, the preprocessing."""

    model: str
    weights_sha256: str
    preprocessing: str
    version: str


@dataclass(frozen=True)
class Result:
    """What is written.

    Attributes:
        verdict: the conclusion in a sentence.
        pictures: PNG key images, each with the place it shows.
        document: the reading as PDF.
        quotes_report: whether the document repeats words of the report, which may name a patient.
    """

    observations: tuple[Observation, ...]
    remarks: tuple[Remark, ...]
    warnings: tuple[Problem, ...]
    verdict: str
    maker: Maker
    pictures: tuple[tuple[Place, bytes], ...] = ()
    document: bytes = b""
    quotes_report: bool = False


@quiet_pydicom()
def write_results(result: Result, series: Series, folder: Path) -> list[Path]:
    """Write `sr.dcm`, `key_1.dcm` ... and `report.pdf.dcm` as new series of the study.

    Raises:
        InputError: the series names no study or no instances that a result could refer to.
    """
    from encoders.dicom.structured_report import build_report

    identity = read_identity(series)
    folder.mkdir(parents=True, exist_ok=True)
    objects = [("sr.dcm", build_report(result, series, identity))]
    uid = new_uid()
    for number, (place, png) in enumerate(result.pictures, 1):
        picture = _key_image(result, series, identity, (place, png))
        picture.SeriesInstanceUID, picture.InstanceNumber = uid, number
        objects.append((f"key_{number}.dcm", picture))
    if result.document:
        objects.append(("report.pdf.dcm", _document(result, series, identity)))
    for name, data in objects:
        data.save_as(folder / name, enforce_file_format=True)
    return [folder / name for name, _ in objects]


def new_uid() -> str:
    """A UID of this project's root that was never used before."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=ROOT_UID))


def read_identity(series: Series) -> Dataset:
    """Patient and study of a series, from the header of its first file, as UTF-8.

    Values that are no dates, ages or sexes are left empty: an object that repeated them would not
    be accepted by an archive.

    Raises:
        InputError: no StudyInstanceUID (0020,000D).
    """
    import pydicom
    from pydicom.dataset import Dataset

    first = series.files[0]
    tags = [
        *_IDENTITY, *_ALSO, _METHOD, _METHOD_CODES, "StudyInstanceUID", "SpecificCharacterSet"
    ]  # fmt: skip
    header = pydicom.dcmread(
        first.open(), stop_before_pixels=True, specific_tags=tags, force=True
    )  # fmt: skip
    if not header.get("StudyInstanceUID"):
        raise InputError(
            f"{first.name!r} has no StudyInstanceUID (0020,000D); a result cannot be filed under it;"
            " export the study again, or read it without writing DICOM"
        )
    identity = Dataset()
    for name in (*_IDENTITY, *_ALSO):
        value = _plain(header, name)
        if value or name in _IDENTITY:
            setattr(identity, name, value)
    if identity.get("PatientIdentityRemoved") == "YES":  # then one of the two is required
        identity.DeidentificationMethod = header.get(_METHOD) or "not stated in the source"
        if header.get(_METHOD_CODES):
            identity.DeidentificationMethodCodeSequence = header[_METHOD_CODES].value
    identity.StudyInstanceUID = header.StudyInstanceUID
    identity.SpecificCharacterSet = "ISO_IR 192"
    return identity


def _plain(header: Any, name: str) -> str:
    if header.get(name) is None:
        return ""
    element = header[name]
    first = element.value if element.VM <= 1 else element.value[0]
    text = str(first).strip()
    if name == "PatientSex" and text not in ("M", "F", "O"):
        return ""
    return text if re.fullmatch(_SHAPES.get(element.VR, ".*"), text, re.DOTALL) else ""


def file_of(series: Series, place: Place) -> SliceFile | None:
    """The slice a place lies on: by position, since a volume may have left slices out.

    None where it can't be told for sure.
    """
    files = series.files
    turn = files[0].orientation
    if place.position_mm is None or turn is None or any(f.position is None for f in files):
        whole = series.info.num_slices == len(files) and 0 <= place.slice_index < len(files)
        return files[place.slice_index] if whole else None
    normal = normal_of(turn)
    wanted = place.position_mm

    def distance(file: SliceFile) -> float:
        return abs(float(np.dot(file.position or (0, 0, 0), normal)) - wanted)

    nearest = min(files, key=distance)
    return nearest if distance(nearest) < _POSITION_TOLERANCE_MM else None


def reference(file: SliceFile) -> Dataset:
    """What a reference to a slice holds: SOP class and instance, and the frame from 1.

    Raises:
        InputError: the slice lacks one of them.
    """
    from pydicom.dataset import Dataset

    instance = file.sop_uid.partition("#")[0]
    if not instance or not file.sop_class:
        raise InputError(
            f"{file.name!r} has no SOP class or instance UID; a result cannot refer to it"
        )
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = file.sop_class, instance
    if file.frame is not None:
        item.ReferencedFrameNumber = file.frame + 1
    return item


def _new_object(result: Result, identity: Dataset, sop_class: str, number: int) -> FileDataset:
    """A dataset with patient, study, series, equipment and SOP common modules."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    now = datetime.datetime.now()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = UID(sop_class), ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = UID(new_uid())
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    data.update(identity)
    data.SOPClassUID, data.SOPInstanceUID = UID(sop_class), meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = new_uid(), number, 1
    data.Manufacturer, data.ManufacturerModelName = MANUFACTURER, result.maker.model[:64]
    data.SoftwareVersions = result.maker.version
    data.SeriesDate = data.ContentDate = data.InstanceCreationDate = now.strftime("%Y%m%d")
    data.SeriesTime = data.ContentTime = data.InstanceCreationTime = now.strftime("%H%M%S")
    return data


def _key_image(
    result: Result, series: Series, identity: Dataset, picture: tuple[Place, bytes]
) -> FileDataset:
    """A Secondary Capture (PS3.3 A.8) of one PNG, referring to the slice it shows."""
    place, png = picture
    data = _new_object(result, identity, _SECONDARY_CAPTURE, SERIES_NUMBERS["pictures"])
    data.Modality, data.SeriesDescription = "OT", f"AI key images, {LABEL[14:]}"
    data.ConversionType, data.ImageType = "WSD", ["DERIVED", "SECONDARY"]
    data.DerivationDescription = LABEL
    data.ContentQualification = "RESEARCH"
    data.BurnedInAnnotation, data.PatientOrientation, data.Laterality = "NO", "", ""
    source = file_of(series, place)
    if source is not None:
        data.SourceImageSequence = [reference(source)]
    pixels = _labelled(png)
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3, "RGB"
    data.PlanarConfiguration = data.PixelRepresentation = 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    raw = pixels.tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    return data


def _labelled(png: bytes) -> np.ndarray:
    """RGB `[rows, columns, 3]`, with the label in a strip below the picture."""
    from PIL import Image, ImageDraw, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(png)) as image:
            picture = image.convert("RGB")
    except UnidentifiedImageError as error:
        raise UnreadableImage("a key image is not a picture; give PNG bytes") from error
    sheet = Image.new("RGB", (picture.width, picture.height + STRIP_ROWS))
    sheet.paste(picture)
    ImageDraw.Draw(sheet).text((6, picture.height + 3), LABEL, fill=(255, 255, 255))
    return np.asarray(sheet)


def _document(result: Result, series: Series, identity: Dataset) -> FileDataset:
    """An Encapsulated PDF (PS3.3 A.45.1)."""
    data = _new_object(result, identity, _ENCAPSULATED_PDF, SERIES_NUMBERS["document"])
    data.Modality, data.SeriesDescription = "DOC", f"AI report, {LABEL[14:]}"
    data.ConversionType = "WSD"
    data.DocumentTitle = LABEL
    data.ConceptNameCodeSequence = []
    data.AcquisitionDateTime = ""
    data.VerificationFlag = "UNVERIFIED"
    data.BurnedInAnnotation = "YES" if result.quotes_report else "NO"
    data.SourceInstanceSequence = _sources(result, series)
    data.MIMETypeOfEncapsulatedDocument = "application/pdf"
    length = len(result.document)
    data.EncapsulatedDocument = result.document + b"\0" * (length % 2)
    data.EncapsulatedDocumentLength = length
    return data


def _sources(result: Result, series: Series) -> list[Dataset]:
    return [reference(file) for file in shown_files(result, series)]


def shown_files(result: Result, series: Series) -> Sequence[SliceFile]:
    """The slices a result speaks of, each once, in the series' order; else its middle slice."""
    marks = [o.place for o in result.observations] + [r.place for r in result.remarks]
    places = [*marks, *(place for place, _ in result.pictures)]
    found = {id(f): f for p in places if p is not None and (f := file_of(series, p)) is not None}
    middle = series.files[len(series.files) // 2]
    return [f for f in series.files if id(f) in found] or [middle]
