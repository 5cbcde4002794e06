"""The readers of a DICOM series that the benchmarks compare, behind one signature.

A folder or file in, a `Found` out: how many slices, and where the reader puts the last one. What a
reader raises is for the caller to catch; one that is not installed is not in `READERS`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Found:
    """What a reader made of a series: slices, LPS mm of the first and the last, their values."""

    slices: int
    ends_mm: np.ndarray
    low: float = 0.0
    high: float = 0.0
    note: str = ""


def crossread(path: Path) -> Found:
    """This project: scan, then the default series."""
    from encoders.dicom import load_volume, scan

    volume = load_volume(scan(path).default())
    last = len(volume.voxels) - 1
    ends = np.array([volume.at((k, 0, 0)) for k in (0, last)])
    codes = [p.code for p in volume.problems]
    told = ", ".join(sorted(set(codes) - {"PADDING_MISMATCH", "IMPLAUSIBLE_HU"}))
    return Found(len(volume.voxels), ends, volume.voxels.min(), volume.voxels.max(), told)


def pydicom_loop(path: Path) -> Found:
    """A plain loop, as most scripts have it: read, sort by z, rescale, stack."""
    import pydicom

    files = [pydicom.dcmread(f) for f in sorted(path.rglob("*")) if f.is_file()]
    files.sort(key=lambda f: float(f.ImagePositionPatient[2]))
    images = [
        f.pixel_array * np.float32(f.RescaleSlope) + np.float32(f.RescaleIntercept) for f in files
    ]
    voxels = np.stack(images)
    ends = np.array([files[k].ImagePositionPatient for k in (0, -1)], float)
    return Found(len(voxels), ends, voxels.min(), voxels.max())


def simpleitk(path: Path) -> Found:
    """SimpleITK's series reader, or its file reader for a file."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if path.is_file():
        image = sitk.ReadImage(str(path))
    else:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
        if not names:
            raise ValueError("no series found")
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        image = reader.Execute()
    voxels = sitk.GetArrayViewFromImage(image)
    size = image.GetSize()
    if len(size) == 4:
        image, size = image[:, :, :, 0], size[:3]
    ends = [image.TransformIndexToPhysicalPoint((0, 0, k)) for k in (0, size[2] - 1)]
    return Found(size[2], np.array(ends), voxels.min(), voxels.max())


def monai(path: Path) -> Found:
    """MONAI's LoadImage with its PydicomReader."""
    import warnings

    from monai.transforms import LoadImage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = LoadImage(reader="PydicomReader", image_only=True)(str(path))
    return _of_affine(np.asarray(image), np.asarray(image.affine), 2)


def highdicom(path: Path) -> Found:
    """highdicom's volume of a series, or of a multi-frame image."""
    import highdicom
    import pydicom

    if path.is_file():
        volume = highdicom.imread(path).get_volume()
    else:
        files = [pydicom.dcmread(f, force=True) for f in sorted(path.rglob("*")) if f.is_file()]
        volume = highdicom.get_volume_from_series(files)
    ends = [(volume.affine @ [k, 0, 0, 1])[:3] for k in (0, volume.spatial_shape[0] - 1)]
    return Found(volume.spatial_shape[0], np.array(ends), volume.array.min(), volume.array.max())


def _as_folder(path: Path, beside: Path) -> Path:
    """A folder as it is; of a single file a folder that holds it, for readers of folders."""
    if path.is_dir():
        return path
    folder = beside / "in"
    folder.mkdir()
    shutil.copy(path, folder)
    return folder


def dicom2nifti(path: Path) -> Found:
    """dicom2nifti's conversion of a folder."""
    from dicom2nifti import convert_dir

    with tempfile.TemporaryDirectory() as out:
        folder = _as_folder(path, Path(out))
        convert_dir.convert_directory(str(folder), out, compression=False, reorient=False)
        return _nifti(sorted(Path(out).glob("*.nii")), "")


def dcm2niix(path: Path) -> Found:
    """dcm2niix of PyPI, a process of its own that writes NIfTI."""
    with tempfile.TemporaryDirectory() as out:
        folder = _as_folder(path, Path(out))
        done = subprocess.run(
            [str(_executable()), "-z", "n", "-b", "n", "-f", "%s", "-o", out, str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        warned = "warns" if "Warning" in done.stdout + done.stderr else ""
        return _nifti(sorted(Path(out).glob("*.nii")), warned)


def _nifti(files: list[Path], note: str) -> Found:
    import nibabel

    if not files:
        raise ValueError("no output")
    images = [nibabel.load(f) for f in files]
    plain = [
        im
        for im, f in zip(images, files, strict=True)
        if "_Eq" not in f.name and "_Tilt" not in f.name
    ]
    image = max(plain or images, key=lambda im: im.shape[2] if len(im.shape) > 2 else 1)
    extra = f"{len(files)} outputs" if len(files) > 1 else ""
    found = _of_affine(np.asarray(image.dataobj), image.affine, 2)
    return Found(
        found.slices, found.ends_mm, found.low, found.high, ", ".join(filter(None, (note, extra)))
    )


def _of_affine(voxels: np.ndarray, affine: np.ndarray, axis: int) -> Found:
    count = voxels.shape[axis] if voxels.ndim > axis else 1
    ends = [(_TO_LPS @ affine @ [0, 0, k, 1])[:3] for k in (0, count - 1)]
    return Found(count, np.array(ends), float(voxels.min()), float(voxels.max()))


def _executable() -> Path | None:
    import sys

    beside = Path(sys.executable).parent / "dcm2niix"
    found = shutil.which("dcm2niix")
    return beside if beside.exists() else Path(found) if found else None


_ALL: dict[str, tuple[Callable[[Path], Found], str]] = {
    "CrossRead": (crossread, "pydicom"),
    "pydicom loop": (pydicom_loop, "pydicom"),
    "SimpleITK": (simpleitk, "SimpleITK"),
    "MONAI": (monai, "monai"),
    "highdicom": (highdicom, "highdicom"),
    "dicom2nifti": (dicom2nifti, "dicom2nifti"),
    "dcm2niix": (dcm2niix, ""),
}


def readers() -> dict[str, Callable[[Path], Found]]:
    """Those that are installed."""
    return {
        name: read
        for name, (read, package) in _ALL.items()
        if (find_spec(package) if package else _executable())
    }


def versions() -> dict[str, Any]:
    """Of what is compared."""
    from importlib.metadata import PackageNotFoundError, version

    out = {}
    for name in ("pydicom", "simpleitk", "monai", "highdicom", "dicom2nifti", "dcm2niix"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out
