"""Writes single DICOM files with any attributes, for tests of what a header says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CT = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
ROOT = "1.2.826.0.1.3680043.10.1470.9."
EXPLICIT = "1.2.840.10008.1.2.1"


def write_slice(path: Path, number: int = 1, /, **attributes: Any) -> Path:
    """A CT slice at z = 2.5 mm * number; attributes by keyword replace or (None) remove its own."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    values: dict[str, Any] = {
        "SOPClassUID": CT, "SOPInstanceUID": f"{ROOT}3.{number}", "StudyInstanceUID": ROOT + "1",
        "SeriesInstanceUID": ROOT + "2", "FrameOfReferenceUID": ROOT + "4", "Modality": "CT",
        "SeriesNumber": 1, "InstanceNumber": number, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [0, 0, 2.5 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1], "SliceThickness": 2.5, "Rows": 4, "Columns": 4,
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
        "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 1,
        "RescaleIntercept": 0, "ConvolutionKernel": "B30f",
        "PixelData": np.full(16, number, "<i2").tobytes(),
    }  # fmt: skip
    values |= attributes
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(EXPLICIT)
    meta.MediaStorageSOPClassUID = values["SOPClassUID"] or CT
    meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"] or ROOT + "5"
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    for keyword, value in values.items():
        if value is not None:
            setattr(data, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_stack(folder: Path, numbers: Sequence[int], /, **attributes: Any) -> Path:
    """Slices of one series; a list given for an attribute has one value per slice.

    Names are shuffled so that none tells the order.
    """
    names = np.random.default_rng(len(numbers)).permutation(10**6)[: len(numbers)]
    prefix = attributes.pop("prefix", "")
    for place, number in enumerate(numbers):
        each = {k: v[place] if isinstance(v, list) else v for k, v in attributes.items()}
        uid = f"{ROOT}3.{len(prefix) + 1}.{prefix and ord(prefix[0])}0.{place + 1}"
        write_slice(folder / f"{prefix}{names[place]}", number, **{"SOPInstanceUID": uid, **each})
    return folder


def write_enhanced(path: Path, heights: Sequence[float], /, **attributes: Any) -> Path:
    """An Enhanced CT of one frame per height in mm; frame i is filled with the value i."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    def item(**values: Any) -> Any:
        found = Dataset()
        for keyword, value in values.items():
            setattr(found, keyword, value)
        return found

    frames = []
    for number, height in enumerate(heights):
        place = item(ImagePositionPatient=[0, 0, height])
        value = item(RescaleSlope=1, RescaleIntercept=-1000 - number, RescaleType="HU")
        frames.append(
            item(
                PlanePositionSequence=Items([place]),
                PixelValueTransformationSequence=Items([value]),
                FrameContentSequence=Items([item(StackID="1", InStackPositionNumber=number + 1)]),
            )
        )
    shared = item(
        PlaneOrientationSequence=Items([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        PixelMeasuresSequence=Items([item(PixelSpacing=[0.5, 0.5], SliceThickness=2)]),
        CTImageFrameTypeSequence=Items([item(FrameType=["ORIGINAL", "PRIMARY", "AXIAL", "NONE"])]),
    )
    own: dict[str, Any] = {
        "SOPClassUID": ENHANCED_CT, "NumberOfFrames": len(heights),
        "ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None,
        "RescaleSlope": None, "RescaleIntercept": None,
        "SharedFunctionalGroupsSequence": Items([shared]),
        "PerFrameFunctionalGroupsSequence": Items(frames),
        "PixelData": b"".join(np.full(16, i, "<i2").tobytes() for i in range(len(heights))),
    }  # fmt: skip
    return write_slice(path, **{**own, **attributes})
