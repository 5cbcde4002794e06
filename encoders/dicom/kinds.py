"""What a DICOM object is: by its SOP class whether it is a picture, by ImageType which sort.

Modality does not decide: dose pages are written with Modality CT (PS3.4 B.5, PS3.3 C.7.6.1.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

Kind = Literal["image", "localizer", "screen", "dose page", "bolus tracking", "reformat"]
DocumentKind = Literal["SR", "PDF", "CDA"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
CT_CLASSES = (_STORAGE + "2", _STORAGE + "2.1", _STORAGE + "2.2")
SECONDARY_CAPTURE = _STORAGE + "7"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"

_IMAGES = {
    "1": "CR", "1.1": "DX", "1.1.1": "DX", "1.2": "mammography", "1.2.1": "mammography",
    "1.3": "intra-oral X-ray", "1.3.1": "intra-oral X-ray",
    "2": "CT", "2.1": "Enhanced CT", "2.2": "Legacy Converted Enhanced CT",
    "3": "ultrasound", "3.1": "ultrasound", "6": "ultrasound", "6.1": "ultrasound",
    "6.2": "Enhanced US volume",
    "4": "MR", "4.1": "Enhanced MR", "4.3": "Enhanced MR", "4.4": "Legacy Converted Enhanced MR",
    "5": "NM", "20": "NM", "128": "PET", "128.1": "Legacy Converted Enhanced PET",
    "130": "Enhanced PET", "12.1": "XA", "12.1.1": "Enhanced XA", "12.2": "RF",
    "12.2.1": "Enhanced RF", "12.3": "XA", "13.1.1": "X-ray 3D", "13.1.2": "X-ray 3D",
    "13.1.3": "breast tomosynthesis", "14.1": "OCT", "14.2": "OCT", "481.1": "RT image",
}  # fmt: skip
_IMAGE_FAMILIES = ("7", "77.1")  # Secondary Capture; visible light and ophthalmic

_DOCUMENTS: dict[str, DocumentKind] = {
    "88.11": "SR", "88.22": "SR", "88.33": "SR", "88.34": "SR", "88.35": "SR",
    "104.1": "PDF", "104.2": "CDA",
}  # fmt: skip
_NOT_IMAGES = {  # the longest prefix that fits
    "9": "a recorded signal, no picture",
    "11": "how to show other images, no picture of its own",
    "66": "not reconstructed, no picture",
    "66.1": "how two frames of reference lie to each other",
    "66.2": "points in other images",
    "66.3": "how two frames of reference lie to each other",
    "66.4": "a mask of another series",
    "66.5": "a mesh, no picture",
    "66.6": "fibre tracks, no picture",
    "67": "units for other images, no picture",
    "30": "computed values of another series",
    "88": "structured report without free text to read",
    "88.59": "points at other images",
    "88.67": "a dose record, not the report of a study",
    "104": "encapsulated object, no picture",
    "481.2": "computed dose values",
    "481": "radiotherapy structures, plan or record, no picture",
    "34": "radiotherapy or implant object, no picture",
}


def is_image(sop_class: str, has_pixels: bool) -> bool:
    """Whether a class holds pictures; of private, new and absent ones, whether pixels are there."""
    short = sop_class.removeprefix(_STORAGE)
    if short in _IMAGES or _family(short, _IMAGE_FAMILIES):
        return True
    return has_pixels and not is_known(sop_class)


def is_known(sop_class: str) -> bool:
    """Whether the class is one of the standard's that is told apart here."""
    short = sop_class.removeprefix(_STORAGE)
    known = short in _IMAGES or _family(short, (*_IMAGE_FAMILIES, *_NOT_IMAGES))
    return sop_class == MEDIA_DIRECTORY or bool(known)


def document_kind(sop_class: str) -> DocumentKind | None:
    """Which sort of text an object holds, None if none."""
    return _DOCUMENTS.get(sop_class.removeprefix(_STORAGE))


def reason_against(sop_class: str) -> str:
    """Why an object of this class is not read as an image."""
    if sop_class == MEDIA_DIRECTORY:
        return "a media directory (DICOMDIR)"
    document = document_kind(sop_class)
    short = sop_class.removeprefix(_STORAGE)
    if document:
        words = f"{document} document: its text can be read as the report"
    elif not sop_class:
        return "neither a SOP class nor pixel data"
    else:
        family = _family(short, _NOT_IMAGES)
        words = _NOT_IMAGES[family] if family else "no pixel data"
    return f"not an image to read: {_name(sop_class)}: {words}"


@lru_cache(maxsize=256)
def kind_of(sop_class: str, image_type: tuple[str, ...]) -> Kind:
    """Which sort of picture: ImageType (0008,0008) values as scanners write them."""
    values = set(image_type)
    if values & {"DOSE_INFO", "DOSE INFO", "PATIENT_INFO", "DOSE"}:
        return "dose page"
    if sop_class.startswith(SECONDARY_CAPTURE) or any("SCREEN" in v for v in values):
        return "screen"
    if values & {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "REF_SURVIEW"}:
        return "localizer"
    if values & {"MON", "MONITOR", "MONITORING", "BOLUS"}:
        return "bolus tracking"
    words = {word for value in image_type[2:] for word in value.replace("_", " ").split()}
    return "reformat" if words & _REFORMATS or "MIN IP" in values or "MIN_IP" in values else "image"


_REFORMATS = {"MIP", "MINIP", "MPR", "REFORMATTED", "PROJECTION", "VRT", "VOLREN", "CURVED"}


def is_ct(sop_class: str, modality: str) -> bool:
    """Whether stored values of this class are Hounsfield units after rescale."""
    return sop_class in CT_CLASSES or (not sop_class and modality == "CT")


def _family(short: str, families: Sequence[str] | dict[str, str]) -> str:
    fits = [f for f in families if short == f or short.startswith(f + ".")]
    return max(fits, key=len, default="")


def _name(sop_class: str) -> str:
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    name = UID(sop_class, validation_mode=IGNORE).name  # else a warning quotes what is no UID
    return "private SOP class" if name == sop_class else name
