"""Data sets full of planted identifiers: one unmistakable value in each attribute of Table E.1-1."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import encoders.dicom.confidentiality as room

WORD = "QXZPLANT"  # starts every planted text; with a tag 16 characters, the most of SH, AE and CS
DATE = "1907"  # the year of every planted date
UID = "1.2.3.4.777"
TIME = "133742"
NEEDLES = (WORD, DATE + "07", UID, TIME)
MASKED = {"50XXXXXX": 0x50003000, "60XX3000": 0x60003000, "60XX4000": 0x60004000,
          "GGGGEEEE": 0x00091001}  # fmt: skip
NOT_TEXT = ("OB", "OW", "UN", "OF", "OD")


@cache
def rows() -> dict[str, dict[str, str]]:
    """The table's records, read without our loader."""
    text = (Path(room.__file__).parent / "attributes.csv").read_text(encoding="utf-8")
    records = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {record["tag"]: record for record in records}


def tag_of(row: str) -> int:
    return MASKED.get(row) or int(row, 16)


def vr_of(tag: int) -> str:
    if tag >> 24 == 0x60:
        return "LT" if tag & 0xFFFF == 0x4000 else "OW"
    if not dictionary_has_tag(tag):
        return "LO"
    return dictionary_VR(tag).split(" or ")[0]


def planted(tag: int) -> DataElement:
    """The attribute with a value that names it, fit for its VR."""
    vr = vr_of(tag)
    word = f"{WORD}{tag:08X}"
    number = tag % 28 + 1
    values: dict[str, Any] = {
        "DA": f"{DATE}07{number:02d}", "DT": f"{DATE}07{number:02d}{TIME}.5", "TM": f"{TIME}.{tag % 999}",
        "UI": f"{UID}.{tag}", "AS": "077Y", "IS": "777", "DS": "7.77", "PN": f"{word}^John",
        "UR": f"http://{word}.org/", "SQ": [inner(word)],
    }  # fmt: skip
    if vr == "US":
        return DataElement(tag, vr, 777)
    if vr in NOT_TEXT:
        return DataElement(tag, vr, f"{word} ".encode())
    return DataElement(tag, vr, Sequence(values["SQ"]) if vr == "SQ" else values.get(vr, word))


def inner(word: str) -> Dataset:
    """An item with planted values, of a code and of a person."""
    item = Dataset()
    item.PatientName, item.TextValue, item.InstitutionName = f"{word}^Sq", f"{word} T", f"{word} I"
    item.ReferencedSOPInstanceUID, item.PersonName = f"{UID}.99", f"{word}^Pn"
    item.StudyDate = f"{DATE}0711"
    return item


def whole_table(*, nested: bool = False) -> Dataset:
    """Every attribute of the table planted, in the data set itself or in an item of a sequence."""
    data = Dataset()
    with pydicom.config.disable_value_validation():
        for row in rows():
            data.add(planted(tag_of(row)))
        data.add(DataElement(0x00090010, "LO", f"{WORD} CREATOR"))
        if not nested:
            return data
        outer = Dataset()
        outer.SharedFunctionalGroupsSequence = Sequence([data])
        return outer


def texts_of(data: Dataset) -> Iterator[str]:
    """Every value at every depth, as text."""
    for element in data.iterall():
        if element.VR == "SQ":
            continue
        value = element.value
        yield value.decode("latin-1") if isinstance(value, bytes) else str(value)


# not in the table, yet free enough to hold anything, and looked at by readers
ODD = ("RescaleType", "Units", "WindowCenterWidthExplanation", "VOILUTFunction", "Manufacturer",
       "ManufacturerModelName", "StackID", "PresentationLUTShape", "LossyImageCompressionMethod",
       "PatientPosition", "PatientSex", "ConversionType", "LossyImageCompression", "FrameLabel",
       "PixelSpacingCalibrationType", "ScanOptions", "SoftwareVersions")  # fmt: skip


def plant_study(folder: Path, num_slices: int = 8, *, odd: bool = False) -> Path:
    """A readable CT volume whose every identifying attribute, name and margin is planted.

    With `odd` so are attributes of units, windows and devices.
    """
    from tests.makers import write_blocks

    parent = folder / f"{WORD} Doe^John"
    write_blocks(parent, shape=(num_slices, 24, 24))
    for number, file in enumerate(sorted(parent.iterdir())):
        data = pydicom.dcmread(file)
        plant(data, number)
        if odd:
            with pydicom.config.disable_value_validation():
                for keyword in ODD:
                    setattr(data, keyword, f"{WORD} {keyword[:7]}")
                data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", f"{WORD} TYPE"]
        data.save_as(parent / f"{WORD}^JOHN 1907-07 {UID}.{number}.dcm", enforce_file_format=True)
        file.unlink()
    return parent


def plant(data: Any, number: int) -> None:
    """Fill a file's data set, meta header and preamble with planted values."""
    with pydicom.config.disable_value_validation():
        for row in rows():
            element = planted(tag_of(row))
            if element.tag.group >= 8 and element.keyword != "EncapsulatedDocument":
                data.add(element)
        data.add_new(0x00090010, "LO", f"{WORD} CREATOR")
        data.add_new(0x60000010, "US", 1)
        data.BodyPartExamined, data.ConvolutionKernel = f"{WORD} BODY", f"{WORD} KERNEL"
        data.ICCProfile = f"{WORD} profile".encode()
        data.SOPInstanceUID = f"{UID}.1.{number}"
        data.StudyInstanceUID, data.SeriesInstanceUID = f"{UID}.2", f"{UID}.3"
        data.FrameOfReferenceUID = f"{UID}.4"
        meta = data.file_meta
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        meta.SourceApplicationEntityTitle = f"{WORD}AE"
        meta.PrivateInformationCreatorUID, meta.PrivateInformation = f"{UID}.5", WORD.encode()
    data.preamble = f"{WORD} preamble".encode().ljust(128, b"\0")
