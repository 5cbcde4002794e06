"""How likely a picture shows patient data as text, from its header alone; and whether it shows a face.

No pixel is looked at: a low score is no proof of clean pixels, a high one is a reason to keep the
picture from models and pages until somebody has looked (PS3.15 E.3.1, E.3.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from encoders.dicom.confidentiality import read_csv
from encoders.dicom.kinds import kind_of
from encoders.features import Problem

THRESHOLD = 0.5
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, half-open

_SOP = "1.2.840.10008.5.1.4.1.1."
# first fitting prefix counts; the rest of the classes come from scanners that write no text
_CLASSES = (
    ("7", 0.9, "a secondary capture"), ("6", 0.8, "ultrasound"), ("3", 0.8, "ultrasound"),
    ("77.1", 0.6, "a photograph"), ("12", 0.6, "angiography or fluoroscopy"),
    ("13.1.1", 0.6, "angiography or fluoroscopy"), ("20", 0.3, "nuclear medicine"),
    ("1", 0.2, "a radiograph"),
)  # fmt: skip
_SUMMARY = re.compile(r"RESULTS|SUMMARY|REPORT|CAPTURE|SNAPSHOT")
_CONVERSIONS = {"DF": "digitized film", "SD": "a scanned document", "SI": "a scanned image"}
_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|FACE|FACIAL|SINUS|ORBIT|CRANI|CEREB|NEURO|MAXILL|MANDIB|EAR\b"
)
_TOMOGRAPHIC = ("CT", "MR", "PT")


@dataclass(frozen=True)
class BurnedIn:
    """The risk (0 to 1) that pixels hold text, why, and where the device is known to write it."""

    score: float
    reasons: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()

    @property
    def at_risk(self) -> bool:
        """Whether the picture is to be kept from models and pages."""
        return self.score >= THRESHOLD

    def problem(self, subject: str = "") -> Problem:
        """The risk as a flaw to list."""
        message = f"pixels may show patient data as text: {', '.join(self.reasons)}"
        return Problem("BURNED_IN_RISK", message, subject)


def burned_in_risk(facts: Mapping[str, Any], num_overlays: int = 0) -> BurnedIn:
    """The risk of one file, from attributes by keyword and its number of overlay planes.

    The highest piece of evidence counts. A device's own "NO" in (0028,0301) halves what the kind
    of object tells, but not what names a screen: dose pages full of text are known to say "NO".
    """
    boxes = _boxes(facts)
    evidence = sorted(_evidence(facts), reverse=True)
    if boxes:
        evidence.append((0.8, "a device known to write into its pictures"))
    if num_overlays:
        evidence.append((0.3, f"{num_overlays} overlay planes"))
    score = max((weight for weight, _ in evidence), default=0.05)
    return BurnedIn(score, tuple(reason for _, reason in evidence), boxes)


def _evidence(facts: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    declared = str(facts.get("BurnedInAnnotation") or "").strip().upper()
    if declared == "YES":
        yield 1.0, "Burned In Annotation (0028,0301) says so"
    sop_class = str(facts.get("SOPClassUID") or "")
    kind = sop_class.removeprefix(_SOP)
    for prefix, weight, name in _CLASSES:
        if kind == prefix or kind.startswith(prefix + "."):
            yield weight / 2 if declared == "NO" else weight, name
            break
    image_type = [str(v).strip().upper() for v in facts.get("ImageType") or ()]
    summary = any(_SUMMARY.search(value) for value in image_type)
    if summary or kind_of("", tuple(image_type)) in ("screen", "dose page"):
        yield 0.9, "Image Type (0008,0008) names a screen or summary"
    conversion = _CONVERSIONS.get(str(facts.get("ConversionType") or "").strip())
    if conversion:
        yield 0.8, conversion


@cache
def _devices() -> Mapping[str, Sequence[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for device in read_csv("devices.csv"):
        found.setdefault(device["modality"], []).append(device)
    return found


def _boxes(facts: Mapping[str, Any]) -> tuple[Box, ...]:
    """Where the first device of the table that fits writes its text."""
    devices = _devices().get(str(facts.get("Modality") or ""), ())
    told = {
        "manufacturer": facts.get("Manufacturer"), "model": facts.get("ManufacturerModelName"),
        "image_type": facts.get("ImageType"), "rows": facts.get("Rows"),
        "columns": facts.get("Columns"),
    }  # fmt: skip
    values = {name: str("" if v is None else v).upper() for name, v in told.items()}
    for device in devices:
        wanted = {n: device[n].upper() for n in values if device[n]}
        exact = all(values[n] == v for n, v in wanted.items() if n in ("rows", "columns"))
        if exact and all(v in values[n] for n, v in wanted.items()):
            boxes = [b.split() for b in device["boxes"].split(";") if b.strip()]
            return tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in boxes)
    return ()


def shows_face(facts: Mapping[str, Any]) -> bool:
    """Whether a face could be rendered from this file's series: a tomogram of the head."""
    if str(facts.get("Modality") or "") not in _TOMOGRAPHIC:
        return False
    names = ("BodyPartExamined", "SeriesDescription", "StudyDescription", "ProtocolName")
    return any(_HEAD.search(str(facts.get(n) or "").upper()) for n in names)
