"""One data set without the patient: PS3.15 Annex E, attribute by attribute.

A data set in, a new one out; the actions come from `confidentiality`, stand-ins from `pseudonyms`.
Knows no files (see `export.py`) and looks at no pixel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encoders.dicom.confidentiality import EDITION, Action, Profile, row_of
from encoders.dicom.pseudonyms import DUMMY_DATE, Pseudonyms, shifted
from encoders.dicom.vocabulary import body_part, harmless_words, kernel

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

REMOVED = "REMOVED"
_DATES = ("DA", "DT", "TM")
_LABELS = ("LO", "SH", "PN", "UC")
_PROSE = ("LT", "ST", "UT", "UR")
_DUMMIES: dict[str, Any] = {
    "AE": REMOVED, "AS": "000Y", "CS": REMOVED, "DA": DUMMY_DATE, "DT": f"{DUMMY_DATE}000000",
    "TM": "000000", "UR": "urn:removed", "IS": "0", "DS": "0", "OB": b"\0\0", "OW": b"\0\0",
    "UN": b"\0\0", **dict.fromkeys(("LT", "ST", "UT"), REMOVED),
}  # fmt: skip
# Beyond the table (its note 1 asks for that): what names people, places and networks all the same
_ALSO_REMOVED = frozenset({
    "PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar",
    "PatientAlternativeCalendar", "BreedRegistrationNumber", "NTPSourceAddress", "ICCProfile",
    "PlacerOrderNumberProcedure", "FillerOrderNumberProcedure", "HangingProtocolCreator",
    "PlacerOrderNumberImagingServiceRequestRetired", "HangingProtocolUserGroupName",
    "FillerOrderNumberImagingServiceRequestRetired", "ContactDisplayName", "OwnerID",
    "ComponentWelderIDs", "AssignedLocation", "StorageMediaFileSetID", "EncryptedContent",
    "ItineraryID", "ItineraryIDAssigningAuthority", "RouteID", "BoardingPassID", "CarrierID",
    "DeviceID", "RadiationMachineName", "EncryptedAttributesSequence", "Signature",
    "RecordKey", "PriorRecordKey", "DigitalSignaturePurposeCodeSequence",
})  # fmt: skip
_SAFE_PROSE = ("CodingScheme", "ImageDisplayFormat")  # keywords of prose that names no one
_CLASS_UIDS = ("SOPClass", "TransferSyntax", "CodingScheme", "ContextUID", "MappingResource")
# The numeric elements of PS3.15 Table E.3.10-1, as its note 2 advises: text and bulk data may name
# people. Compared with the edition in github.com/chsasank/dicom_standard at 2c591286.
_BRAIN_PARTS = tuple(range(0x01, 0x17))
_SAFE_PRIVATE = {
    ("Philips PET Private Group", 0x7053): (0x00, 0x09),  # SUV and activity factors
    ("Philips MR Imaging DD 001", 0x2005): (0x0D, 0x0E),  # scale intercept and slope
    ("Philips Imaging DD 001", 0x2001): (0x03,),  # b value
    ("SIEMENS MR HEADER", 0x0019): (0x0C, 0x0E, 0x27),  # b value, direction, matrix
    ("GEMS_ACQU_01", 0x0019): (0x23, 0x24, 0x27),  # table speed, times
    ("GEMS_SERS_01", 0x0025): (0x07,),  # images in the series
    ("GEMS_PARM_01", 0x0043): (0x39, 0x6F),  # b value, gradient coil
    ("GEMS_HELIOS_01", 0x0045): (0x01, 0x02),  # detector rows and width
    ("GEIIS PACS", 0x0903): (0x10, 0x11, 0x12),  # flags
    ("ELSCINT1", 0x00E1): (0x21, 0x50),  # dose length product, duration
    ("ELSCINT1", 0x01F1): (0x07, 0x26, 0x27),  # table velocity, pitch, rotation time
    ("NQHeader", 0x0099): (0x04, 0x10, 0x21),  # return code, motion, volume
    ("NQLeft", 0x0199): _BRAIN_PARTS,
    ("NQRight", 0x0299): _BRAIN_PARTS,
    ("SIEMENS Ultrasound SC2000", 0x0119): (0x05, 0x06, 0x07, 0x08, 0x09, 0x13),
    ("SIEMENS Ultrasound SC2000", 0x0139): (0x01,),
    ("SIEMENS Ultrasound SC2000", 0x0149): (0x01, 0x02, 0x03),
}
# what a value must look like that is kept as it is (PS3.5 6.2); free text hides in broken values
_FORMS = {
    vr: re.compile(form)
    for vr, form in {
        "DS": r" *[-+\d.eE]{0,16} *", "IS": r" *[-+\d]{0,12} *", "AS": r"\d{3}[DWMY]",
        "DA": r"[\d.]{0,10}", "TM": r"[\d:.]{0,16} *", "DT": r"[\d.+-]{0,26} *", "UI": r"[\d.]{0,64}",
    }.items()
}  # fmt: skip
# kept by the standard, but people write what they like into them: only known terms stay
_TERMS = {"BodyPartExamined": body_part, "ConvolutionKernel": kernel}
_NUMERIC = ("DS", "IS", "FD", "FL", "SL", "SS", "UL", "US", "SV", "UV")


@dataclass(frozen=True)
class Deidentifier:
    """The profile with options, under one key."""

    profile: Profile
    names: Pseudonyms

    def dataset(self, source: Dataset) -> Dataset:
        """A new data set without what identifies a patient; `source` is left as it is."""
        return _Patient(self, source).clean(source)

    def describe(self, out: Dataset, burned_in: str) -> None:
        """Write into a data set what was done to it (PS3.3 C.12.1.1.1, C.7.1.1, C.7.6.1).

        Args:
            out: gets the attributes.
            burned_in: YES or NO for Burned In Annotation (0028,0301); empty leaves it alone.
        """
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        codes = []
        for value, meaning in self.profile.codes():
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
            codes.append(code)
        dates = {"dates": "UNMODIFIED", "modified-dates": "MODIFIED"}
        kept = next((dates[o] for o in self.profile.retain if o in dates), REMOVED)
        out.PatientIdentityRemoved = "YES"
        out.DeidentificationMethod = [f"CrossRead, PS3.15 {EDITION}", *(c.CodeMeaning[:64] for c in codes)]  # fmt: skip
        out.DeidentificationMethodCodeSequence = Sequence(codes)
        out.LongitudinalTemporalInformationModified = kept
        if burned_in:
            out.BurnedInAnnotation = burned_in


class _Patient:
    """One data set at work: its patient's stand-in and shift of dates."""

    def __init__(self, tool: Deidentifier, source: Dataset) -> None:
        self.profile, self.names = tool.profile, tool.names
        told = (str(source.get(k) or "").strip() for k in ("PatientID", "IssuerOfPatientID"))
        patient = "|".join(told).strip("|") or str(source.get("StudyInstanceUID") or "")
        self.alias = self.names.word("patient", patient)
        self.days = self.names.shift_days(patient)

    def clean(self, source: Dataset, *, nested: bool = False, strict: bool = False) -> Dataset:
        """The attributes that stay, as they stay; `strict` spares no text in any of them."""
        from pydicom.dataset import Dataset

        out = Dataset()
        for element in _readable(source):
            kept = self._one(element, source, nested, strict)
            if kept is not None:
                out.add(kept)
        return out

    def _one(
        self, element: DataElement, source: Dataset, nested: bool, strict: bool
    ) -> DataElement | None:  # fmt: skip
        if element.keyword in ("PatientName", "PatientID"):
            return _with(element, self.alias) if element.value or not nested else element
        action = self._action(element, source, nested)
        if strict and action == "K" and element.VR in (*_LABELS, *_PROSE, "AE", *_DATES):
            action = "D"
        if action == "X":
            return None
        if action == "C":
            return self._cleaned(element, nested)
        if element.VR == "SQ":
            return self._sequence(element, action, strict)
        if element.keyword in _TERMS and not all(
            _TERMS[element.keyword](v) for v in _texts(element)
        ):
            return _with(element, None)
        if action == "K" or element.is_empty:
            return element if _is_as_its_vr_says(element) else None
        if action == "Z":
            return _with(element, None)
        return self._replaced(element)

    def _action(self, element: DataElement, source: Dataset, nested: bool) -> Action:
        """By the table; what it does not list by its VR (notes 1 and 4 of PS3.15 E.1.1)."""
        tag = element.tag
        if tag.group < 8 or tag.element == 0 or tag.group & 0xFF00 == 0x6000:
            return "X"  # commands, meta, group lengths; overlays with all that describes them
        row = row_of(tag)
        if tag.is_private:
            safe = "safe-private" in self.profile.retain and _is_safe_private(element, source)
            return "K" if safe else "X"
        if row is not None:
            return self.profile.action(row, nested=nested)
        if element.keyword in _ALSO_REMOVED or not element.keyword:
            return "X"
        if element.VR in _DATES:
            if "dates" in self.profile.retain:
                return "K"
            return "C" if "modified-dates" in self.profile.retain else "D"
        if element.VR == "UI":
            known = any(word in element.keyword for word in _CLASS_UIDS)
            return "K" if known or "uids" in self.profile.retain else "U"
        if element.VR in _PROSE and not element.keyword.startswith(_SAFE_PROSE):
            return "C" if "descriptors" in self.profile.clean else "D"
        return "D" if element.VR in ("PN", "AE") else "K"

    def _sequence(self, element: DataElement, action: Action, strict: bool) -> DataElement | None:
        """Items cleaned (K, U), none (Z), or nothing readable left in them (D)."""
        if action == "Z" or element.is_empty:
            return _with(element, [])
        if action == "D" and element.keyword == "ContentSequence":
            return _with(element, [_removed_content()])
        strict = strict or action == "D"
        items = [self.clean(item, nested=True, strict=strict) for item in element.value]
        return _with(element, items)

    def _replaced(self, element: DataElement) -> DataElement:
        """A stand-in for each value, fit for the VR."""
        values = element.value if element.VM > 1 else [element.value]
        if element.VR == "UI":
            return _with(element, [self.names.uid(str(v)) for v in values])
        if element.VR in _LABELS:
            return _with(element, [self.names.word(element.keyword, str(v)) for v in values])
        return _with(element, _DUMMIES.get(element.VR))

    def _cleaned(self, element: DataElement, nested: bool) -> DataElement | None:
        """What is harmless of the value; where nothing is, the profile's own action."""
        if element.VR == "SQ":
            return self._sequence(element, "K", strict=False)
        if element.is_empty:
            return element
        values = _texts(element)
        kept: list[str | None]
        if element.VR == "TM" or element.keyword == "TimezoneOffsetFromUTC":
            kept = [v if re.fullmatch(r"[+-]?[\d:.]*", v) else None for v in values]
        elif element.VR in _DATES:
            kept = [shifted(v, self.days) for v in values]
        elif element.VR in (*_LABELS, *_PROSE) and element.VR != "PN":
            kept = [harmless_words(v) or None for v in values]
        else:
            kept = [None]
        if all(kept):
            return _with(element, kept)
        row = row_of(element.tag)
        action = row.basic(nested) if row else "D"
        if action == "X":
            return None
        return self._replaced(element) if action == "D" else _with(element, None)


def _readable(source: Dataset) -> Iterator[DataElement]:
    """The elements whose values can be read as their VR says; what cannot be judged is left out."""
    for tag in sorted(source.keys()):
        try:
            yield source[tag]
        except Exception:  # pydicom raises what any converter may
            continue


def _texts(element: DataElement) -> list[str]:
    return [str(v) for v in (element.value if element.VM > 1 else [element.value])]


def _is_as_its_vr_says(element: DataElement) -> bool:
    form = _FORMS.get(element.VR)
    if form is None or element.is_empty:
        return True
    values = element.value if element.VM > 1 else [element.value]
    return all(form.fullmatch(getattr(v, "original_string", None) or str(v)) for v in values)


def _with(element: DataElement, value: Any) -> DataElement:
    from pydicom.dataelem import DataElement, empty_value_for_VR

    if value is None:
        value = empty_value_for_VR(element.VR)
    single = isinstance(value, list) and len(value) == 1 and element.VR != "SQ"
    return DataElement(element.tag, element.VR, value[0] if single else value)


def _is_safe_private(element: DataElement, source: Dataset) -> bool:
    group, number = element.tag.group, element.tag.element
    if element.tag.is_private_creator:
        creator = str(element.value).strip()
        return any(name == creator and g == group for name, g in _SAFE_PRIVATE)
    block = source.get((group, number >> 8))
    creator = "" if block is None else str(block.value).strip()
    safe = _SAFE_PRIVATE.get((creator, group), ())
    return number & 0xFF in safe and element.VR in _NUMERIC


def _removed_content() -> Dataset:
    """The one content item that stands for a removed report (PS3.3 C.17.3)."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121106", "DCM", "Comment"
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.ConceptNameCodeSequence, item.TextValue = Sequence([name]), REMOVED
    return item
