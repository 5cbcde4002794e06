"""DICOM out: a CT Image Storage series (PS3.3 A.3) from voxels and an affine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from encoders.errors import InvalidPixels

ROOT_UID = "1.2.826.0.1.3680043.10.1470."  # this project's own prefix under Medical Connections


def write_ct_series(
    voxels: np.ndarray,
    affine: np.ndarray,
    folder: Path,
    *,
    description: str = "Generated chest phantom",
    patient_position: str = "HFS",
) -> list[Path]:
    """Write HU `[slice, row, column]` as one file a slice, identifiers invented from the content.

    Args:
        voxels: integers within -1024..31743.
        affine: (slice, row, column) index -> LPS mm; rows and columns orthogonal.

    Raises:
        InvalidPixels: values that do not fit.
    """
    if voxels.ndim != 3 or voxels.min() < -1024 or voxels.max() > 31743:
        raise InvalidPixels("a CT series takes HU [slice, row, column] within -1024..31743")
    folder.mkdir(parents=True, exist_ok=True)
    root = hashlib.sha256(np.ascontiguousarray(voxels).tobytes()).hexdigest()
    uid = ROOT_UID + str(int(root[:24], 16))
    row_mm, column_mm = (float(np.linalg.norm(affine[:3, i])) for i in (1, 2))
    turn = [*(affine[:3, 2] / column_mm), *(affine[:3, 1] / row_mm)]
    normal = np.cross(turn[:3], turn[3:])
    thickness = abs(float(affine[:3, 0] @ normal))
    files = []
    for index, hu in enumerate(voxels):
        data = _slice_dataset(hu, uid, index)
        place = affine[:3, 3] + index * affine[:3, 0]
        data.ImagePositionPatient = [_decimal(v) for v in place]
        data.ImageOrientationPatient = [_decimal(v) for v in turn]
        data.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
        data.SliceThickness = _decimal(thickness)
        data.PatientPosition, data.SeriesDescription = patient_position, description
        file = folder / f"slice_{index:04d}.dcm"
        data.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def _slice_dataset(hu: np.ndarray, uid: str, index: int):  # type: ignore[no-untyped-def]
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = UID(f"{uid}.3.{index + 1}")
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    data.FrameOfReferenceUID = f"{uid}.4"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Modality, data.Manufacturer = "CT", "CrossRead phantom"
    data.BodyPartExamined, data.KVP = "CHEST", "120"
    data.PatientName, data.PatientID = "Phantom^Generated", "GENERATED"
    data.PatientBirthDate = data.PatientSex = data.ReferringPhysicianName = ""
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = ""
    data.PositionReferenceIndicator = data.Laterality = data.AcquisitionNumber = ""
    data.SeriesNumber, data.InstanceNumber = 1, index + 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = hu.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.WindowCenter, data.WindowWidth = "40", "400"
    data.PixelData = (hu.astype(np.int32) + 1024).astype("<u2").tobytes()
    return data


def _decimal(value: float) -> str:
    """A DS value: at most 16 characters (PS3.5 6.2)."""
    return f"{value:.8f}".rstrip("0").rstrip(".")[:16]
