"""The structured report of a result: TID 1500 (PS3.16) in a Comprehensive 3D SR, by highdicom.

Every finding is a measurement group with its code, side, size in millimetres, probability and the
outlined region of the slice it was seen on. Verdict, discrepancies, warnings and what made the
result stand under Qualitative Evaluations, in this project's coding scheme where none fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.dicom.results import (
    LABEL,
    MANUFACTURER,
    SERIES_NUMBERS,
    Observation,
    Place,
    Remark,
    Result,
    file_of,
    new_uid,
    reference,
    shown_files,
)
from encoders.dicom.series import Series

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SCHEME = "99CROSSREAD"
_LUNG, _PLEURA = ("39607008", "Lung"), ("3120008", "Pleura")
_HEART, _AORTA = ("80891009", "Heart"), ("15825003", "Aorta")
_BODY = ("38266002", "Entire body")
# finding -> its SNOMED CT code, None where this project's own is used, and where it is seen
_FINDINGS: dict[str, tuple[str | None, tuple[str, str]]] = {
    "nodule": ("27925004", _LUNG),
    "mass": ("4147007", _LUNG),
    "consolidation": ("95436008", _LUNG),
    "atelectasis": ("46621007", _LUNG),
    "emphysema": ("87433001", _LUNG),
    "pleural effusion": ("60046008", _PLEURA),
    "pneumothorax": ("36118008", _PLEURA),
    "cardiomegaly": ("287272002", _HEART),
    "aortic calcification": (None, _AORTA),
}


def build_report(result: Result, series: Series, identity: Dataset) -> Dataset:
    """The SR document of a result, ready to save."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import Comprehensive3DSR

    maker = result.maker
    own = CodingSchemeIdentificationItem(SCHEME, name="CrossRead concepts")
    data = Comprehensive3DSR(
        evidence=_evidence(result, series, identity),
        content=_root(result, series),
        series_instance_uid=new_uid(),
        series_number=SERIES_NUMBERS["report"],
        sop_instance_uid=new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=maker.model[:64],
        software_versions=maker.version,
        device_serial_number=maker.weights_sha256[:16],
        series_description=f"AI findings, {LABEL[14:]}",
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[own],
        specific_character_set="ISO_IR 192",
    )
    data.update(identity)
    return data


def _evidence(result: Result, series: Series, identity: Dataset) -> list[Dataset]:
    """A header for every slice referred to; patient and study come from it."""
    from pydicom.dataset import Dataset

    headers = []
    for file in shown_files(result, series):
        header, item = Dataset(), reference(file)
        header.update(identity)
        header.SOPClassUID = item.ReferencedSOPClassUID
        header.SOPInstanceUID = item.ReferencedSOPInstanceUID
        header.SeriesInstanceUID = file.series_uid
        headers.append(header)
    return headers


def _root(result: Result, series: Series) -> Dataset:
    """The root container of TID 1500 with all it contains."""
    from highdicom.sr import CodeContentItem, CodedConcept, LanguageOfContentItemAndDescendants
    from pydicom.sr.codedict import codes

    children: list[Any] = [
        *LanguageOfContentItemAndDescendants(CodedConcept("en", "RFC5646", "English")),
        *_observer(result),
        CodeContentItem(
            codes.DCM.ProcedureReported, _procedure(series), "HAS CONCEPT MOD"
        ),
        _image_library(result, series),
    ]  # fmt: skip
    if result.observations:
        groups = [_group(o, n, result, series) for n, o in enumerate(result.observations, 1)]
        children.append(_container(codes.DCM.ImagingMeasurements, [i for g in groups for i in g]))
    children.append(_evaluations(result, series))
    return _container(codes.DCM.ImagingMeasurementReport, children, None, "1500")


def _container(
    name: Any, children: list[Any], relation: str | None = "CONTAINS", template: str | None = None
) -> Any:
    from highdicom.sr import ContainerContentItem, ContentSequence

    item = ContainerContentItem(name, template_id=template, relationship_type=relation)
    item.ContentSequence = ContentSequence(children)
    return item


def _own(value: str, meaning: str) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, meaning)


def _observer(result: Result) -> Any:
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    maker = result.maker
    device = DeviceObserverIdentifyingAttributes(
        uid=new_uid(), name=maker.model[:64], manufacturer_name=MANUFACTURER,
        model_name=maker.preprocessing, serial_number=maker.weights_sha256,
    )  # fmt: skip
    return ObservationContext(ObserverContext(codes.DCM.Device, device))


def _procedure(series: Series) -> Any:
    from pydicom.sr.codedict import codes

    known = {
        "CT": codes.cid100.CTUnspecifiedBodyRegion,
        "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    }
    return known.get(series.info.modality, codes.cid100.ImagingProcedure)


def _image_library(result: Result, series: Series) -> Any:
    """The images that the report speaks of (TID 1600)."""
    from pydicom.sr.codedict import codes

    images = [_image(reference(file)) for file in shown_files(result, series)]
    return _container(codes.DCM.ImageLibrary, [_container(codes.DCM.ImageLibraryGroup, images)])


def _image(item: Dataset, relation: str = "CONTAINS") -> Any:
    from highdicom.sr import ImageContentItem
    from pydicom.sr.codedict import codes

    frame = item.get("ReferencedFrameNumber")
    return ImageContentItem(
        codes.DCM.SourceImageForImageProcessingOperation, item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID,
        referenced_frame_numbers=[int(frame)] if frame else None, relationship_type=relation,
    )  # fmt: skip


def _group(seen: Observation, number: int, result: Result, series: Series) -> Any:
    """One finding: TID 1410 where it was outlined on a slice, else TID 1501."""
    from highdicom.sr import (
        AlgorithmIdentification,
        MeasurementsAndQualitativeEvaluations,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        TrackingIdentifier,
    )

    code, site = _coded(seen)
    maker = result.maker
    parameters = [f"weights sha256: {maker.weights_sha256}",
                  f"preprocessing: {maker.preprocessing}"]  # fmt: skip
    shared: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(new_uid(), f"finding {number}"),
        "finding_type": code,
        "algorithm_id": AlgorithmIdentification(maker.model, maker.version, parameters),
        "finding_sites": [site],
        "measurements": _measurements(seen),
    }
    region = _region(seen.place, series)
    if region is None:
        return MeasurementsAndQualitativeEvaluations(**shared)
    return PlanarROIMeasurementsAndQualitativeEvaluations(**shared, referenced_region=region)


def _coded(seen: Observation) -> tuple[Any, Any]:
    from highdicom.sr import CodedConcept, FindingSite
    from pydicom.sr.codedict import codes

    value, (site, meaning) = _FINDINGS.get(seen.name, (None, _BODY))
    code = CodedConcept(value, "SCT", seen.name) if value else _own(_token(seen.name), seen.name)
    side = {"right": codes.SCT.Right, "left": codes.SCT.Left}.get(seen.side or "")
    return code, FindingSite(CodedConcept(site, "SCT", meaning), laterality=side)


def _token(name: str) -> str:
    """A code value: at most 16 characters (PS3.3 8.1)."""
    return "".join(w[:7].capitalize() for w in name.split())[:16]


def _measurements(seen: Observation) -> list[Any]:
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    found = []
    if seen.probability is not None:
        chance = round(seen.probability, 4)
        found.append(Measurement(codes.DCM.Probability, chance, codes.UCUM.NoUnits))
    if seen.size_mm is not None:
        found.append(Measurement(codes.SCT.Diameter, seen.size_mm, codes.UCUM.Millimeter))
    return found


def _region(place: Place | None, series: Series) -> Any:
    """The evidence as a closed outline in the pixels of the stored slice, (0, 0) its corner."""
    from highdicom.sr import ImageRegion, SourceImageForRegion

    file = file_of(series, place) if place is not None else None
    if place is None or place.box is None or file is None:
        return None
    x0, y0, x1, y1 = place.box
    outline = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], np.float32)
    item = reference(file)
    frame = item.get("ReferencedFrameNumber")
    source = SourceImageForRegion(
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, [int(frame)] if frame else None
    )
    return ImageRegion("POLYLINE", outline, source)


def _evaluations(result: Result, series: Series) -> Any:
    """Verdict, label, discrepancies, warnings and maker: TID 1500 rows 11 to 13."""
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    maker = result.maker
    items = [
        _text(codes.DCM.Conclusion, result.verdict),
        _text(_own("label", "Intended use"), LABEL),
        _text(_own("model", "Model"), maker.model),
        _text(_own("weights", "SHA-256 of the model's weights"), maker.weights_sha256),
        _text(_own("preprocessing", "Preprocessing"), maker.preprocessing),
        *(_remark(remark, series) for remark in result.remarks),
        *(
            _text(_own("warning", "Warning"), f"{w.code}: {w.message}" + f" ({w.subject})" * bool(w.subject))
            for w in result.warnings
        ),
    ]  # fmt: skip
    name = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
    return _container(name, [item for item in items if item is not None])


def _text(name: Any, words: str | None) -> Any:
    from highdicom.sr import TextContentItem

    return TextContentItem(name, words, relationship_type="CONTAINS") if words else None


def _remark(remark: Remark, series: Series) -> Any:
    """A discrepancy of the report: its type, words, correction, probability and slice."""
    from highdicom.sr import CodeContentItem, NumContentItem
    from pydicom.sr.codedict import codes

    kind = _own(remark.kind, remark.kind)
    children = [
        CodeContentItem(_own("errortype", "Type of discrepancy"), kind, "CONTAINS"),
        _text(_own("sentence", "Sentence of the report"), remark.sentence),
        _text(_own("correction", "Suggested correction"), remark.correction),
    ]
    if remark.probability is not None:
        children.append(
            NumContentItem(
                codes.DCM.Probability, round(remark.probability, 4), codes.UCUM.NoUnits,
                relationship_type="CONTAINS",
            )
        )  # fmt: skip
    file = file_of(series, remark.place) if remark.place is not None else None
    if file is not None:
        children.append(_image(reference(file)))
    return _container(_own("discrepancy", "Discrepancy"), [c for c in children if c is not None])
