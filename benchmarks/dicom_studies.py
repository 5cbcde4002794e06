"""The files that the DICOM benchmarks read: studies made from a head phantom, or generated.

With the recorded files of the project beside it (see CONTRIBUTING.md) the slices are those of its
plastic head; without, a generated body. Every maker writes into a folder it is given.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import generate_uid

SYNTAXES = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}
_ENCODERS = {"RLE": "pylibjpeg", "JPEG-LS": "pyjpegls", "JPEG 2000": "pylibjpeg"}


def recorded() -> Path | None:
    """The recorded files, None where they are not."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CROSSREAD_SHARED_DATA", beside))
    return folder if (folder / "MANIFEST.md").is_file() else None


def head() -> list[Any]:
    """28 slices of 512 x 512 as pydicom has them, lowest first."""
    folder = recorded()
    if folder is None:
        return _generated()
    files = [f for f in (folder / "head_phantom_study/S2010").iterdir() if f.name != "DIRFILE"]
    slices = [pydicom.dcmread(f) for f in files]
    return sorted(slices, key=lambda s: float(s.ImagePositionPatient[2]))


def _generated() -> list[Any]:
    import tempfile

    from encoders.dicom import write_ct_series

    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(x**2 / 0.6 + y**2 < 0.5, 40.0, -1000.0)
    voxels = (body + rng.normal(0, 12, (28, 512, 512))).clip(-1024, 3000).astype(np.int16)
    affine = np.array([[0, 0, 0.45, 0], [0, 0.45, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    with tempfile.TemporaryDirectory() as folder:
        return [pydicom.dcmread(f) for f in write_ct_series(voxels, affine, Path(folder))]


def write_series(
    folder: Path, slices: list[Any], copies: int = 1, compression: str = "uncompressed"
) -> Path:
    """A series of its own: the slices stacked so many times over, compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    uid, number = generate_uid(), 0
    for copy_number in range(copies):
        for original in slices:
            number += 1
            data = copy.deepcopy(original)
            data.SeriesInstanceUID, data.InstanceNumber = uid, number
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            x, y, z = (float(v) for v in data.ImagePositionPatient)
            data.ImagePositionPatient = [x, y, round(z + 5 * len(slices) * copy_number, 4)]
            _save(data, folder / f"{number:04d}.dcm", compression)
    return folder


def _save(data: Any, path: Path, compression: str) -> None:
    if compression in _ENCODERS:
        plugin = _ENCODERS[compression]
        data.compress(SYNTAXES[compression], encoding_plugin=plugin, generate_instance_uid=False)
    elif compression == "deflated":
        data.file_meta.TransferSyntaxUID = pydicom.uid.UID(SYNTAXES[compression])
    data.save_as(path)
    if compression == "JPEG lossless":
        _to_jpeg_lossless(path)


def _to_jpeg_lossless(path: Path) -> None:
    import gdcm

    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def write_quirks(folder: Path) -> dict[str, Path]:
    """The cases of the table of real quirks; needs the recorded files."""
    data = recorded()
    if data is None:
        return {}
    chest = sorted((data / "chest_lidc_0001").iterdir())
    made: dict[str, Callable[[Path], None]] = {
        "one slice missing": lambda out: _copy([f for f in chest if f != chest[7]], out),
        "one duplicate position": lambda out: (_copy(chest, out), _again(chest[7], out))[0],
        "4 images at one place": lambda out: _one_place(chest[:4], out),
        "J2K with wrong Psot": lambda out: _wrong_length(data / "abdomen_j2k", out),
    }
    for name, make in made.items():
        (folder / name).mkdir(parents=True)
        make(folder / name)
    return {
        "gantry tilt and gaps": data / "head_tilt_irregular",
        "one slice missing": folder / "one slice missing",
        "one duplicate position": folder / "one duplicate position",
        "mixed study folder": data / "head_phantom_study",
        "no SOPClassUID": data / "abdomen_j2k",
        "4 images at one place": folder / "4 images at one place",
        "Enhanced CT, 2 frames": data / "enhanced/eCT_Supplemental.dcm",
        "J2K with wrong Psot": folder / "J2K with wrong Psot",
    }


def _copy(files: list[Path], out: Path) -> None:
    for file in files:
        shutil.copy(file, out)


def _again(file: Path, out: Path) -> None:
    """The same place once more, as another instance."""
    image = pydicom.dcmread(file)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.InstanceNumber = 900
    image.save_as(out / "again.dcm")


def _one_place(files: list[Path], out: Path) -> None:
    place = pydicom.dcmread(files[0]).ImagePositionPatient
    for file in files:
        image = pydicom.dcmread(file)
        image.ImagePositionPatient = place
        image.save_as(out / file.name)


def _wrong_length(folder: Path, out: Path) -> None:
    """In one slice of the series the tile part's length (Psot) leads beyond the data."""
    files = sorted(folder.iterdir())
    _copy(files, out)
    broken = out / files[9].name
    data = bytearray(broken.read_bytes())
    at = data.index(b"\xff\x90", data.rindex(b"\xff\x4f\xff\x51")) + 6
    data[at : at + 4] = (2**24).to_bytes(4, "big")
    broken.write_bytes(bytes(data))
