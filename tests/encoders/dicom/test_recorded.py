"""Recorded studies against reference volumes made by other software (see MANIFEST.md)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from encoders.dicom import describe, load_volume, scan
from encoders.errors import CrossReadError, NotDicom, UnreadableFile, UnsupportedTransferSyntax
from encoders.features import Problem

SERIES = {
    "head_phantom_study/S2010": "head_phantom_study/S2010",
    "head_tilt_irregular": "head_tilt_irregular",
    "chest_lidc_0001": "chest_lidc_0001",
    "chest_full_lowres": "chest_full_lowres",
    "abdomen_j2k": "abdomen_j2k",
    "missing_slice": "missing_slice",
    "enhanced/legacy_24x38x3/image": "enhanced/legacy_24x38x3/image",
}


def _codes(problems: tuple[Problem, ...]) -> set[str]:
    return {p.code for p in problems}


@pytest.mark.parametrize("name", SERIES)
def test_hounsfield_volume_is_voxel_for_voxel_the_reference(shared_data: Path, name: str) -> None:
    expected = json.loads((shared_data / "ref/expected_series.json").read_text())[name]["series"][0]
    folder = shared_data / SERIES[name]
    if not folder.is_dir():
        folder = next(p for p in (shared_data / "head_phantom_study").rglob("S2010") if p.is_dir())
    volume = load_volume(folder)
    assert list(volume.voxels.shape) == expected["shape_zyx"]
    assert volume.calibrated == ("legacy" not in name)  # its RescaleType is US
    voxels = np.ascontiguousarray(volume.voxels.astype("<i2"))
    assert hashlib.sha256(voxels.tobytes()).hexdigest() == expected["sha256_int16_hu_zyx"]
    _, row_mm, column_mm = volume.spacing_mm
    assert (row_mm, column_mm) == pytest.approx(expected["pixel_spacing_row_col"], abs=1e-4)
    assert volume.at((0, 0, 0)) == pytest.approx(expected["ipp_first"], abs=1e-3)
    gaps = sorted({round(float(g), 3) for g in np.diff(volume.positions_mm)})
    assert gaps == pytest.approx(expected["gaps_mm"], abs=2e-3)


@pytest.mark.parametrize(
    ("name", "nifti"),
    [
        ("chest_lidc_0001", "d2n_3000566_20000101000000.nii.gz"),
        ("abdomen_j2k", "d2n_0_20221208000000.nii.gz"),
    ],
)
def test_every_voxel_lies_where_dcm2niix_puts_it(shared_data: Path, name: str, nifti: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    theirs = nibabel.load(shared_data / "ref" / name / nifti)
    volume = load_volume(shared_data / name)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ theirs.affine
    values = np.asarray(theirs.dataobj)
    rng = np.random.default_rng(0)
    for index in rng.integers(0, volume.voxels.shape, (200, 3)):
        place = np.append(volume.at(index), 1.0)
        there = np.round(np.linalg.inv(to_lps) @ place)[:3].astype(int)
        assert values[tuple(there)] == volume.voxels[tuple(index)]


def test_the_liver_lies_on_the_patients_right(shared_data: Path) -> None:
    """Anatomy, not tags: the most soft tissue above the kidneys is the liver's."""
    nibabel = pytest.importorskip("nibabel")
    mask = nibabel.load(shared_data / "ref/abdomen_j2k/example_seg_dicom.nii.gz")
    labels = np.asarray(mask.dataobj)
    volume = load_volume(shared_data / "abdomen_j2k")
    liver = np.argwhere(labels == 5)  # label 5 of TotalSegmentator's class map is the liver
    assert len(liver) > 10_000
    ras = nibabel.affines.apply_affine(mask.affine, liver.mean(0))
    lps = ras * [-1, -1, 1]
    middle = volume.at((np.array(volume.voxels.shape) - 1) / 2)
    assert lps[0] < middle[0] - 20  # LPS: the patient's right is negative
    index = np.linalg.inv(volume.affine) @ np.append(lps, 1)
    hu = volume.voxels[tuple(np.round(index[:3]).astype(int))]
    assert 0 < hu < 200


def test_localizer_and_captured_screens_never_enter_a_volume(shared_data: Path) -> None:
    study = scan(shared_data / "head_phantom_study")
    series = study.default()
    assert len(series.files) == 28
    assert series.is_volume
    assert not any(f.localizer for f in series.files)
    assert all(len(s.files) < 28 or s is series for s in study.series)
    assert any("media directory" in p.message for p in study.problems)


def test_flaws_of_geometry_are_told_with_their_codes(shared_data: Path) -> None:
    assert "MISSING_SLICE" in _codes(load_volume(shared_data / "missing_slice").problems)
    tilted = load_volume(shared_data / "head_tilt_irregular")
    assert {"GANTRY_TILT", "IRREGULAR_SPACING"} <= _codes(tilted.problems)
    tilt = next(p for p in tilted.problems if p.code == "GANTRY_TILT")
    assert "18.5 degrees" in tilt.message
    assert "PADDING_MISMATCH" in _codes(load_volume(shared_data / "chest_lidc_0001").problems)


def test_legacy_enhanced_object_equals_its_single_frames(shared_data: Path) -> None:
    classic = load_volume(shared_data / "chest_full_lowres")
    enhanced = load_volume(shared_data / "derived/chest_lowres_legacy_enhanced.dcm")
    assert np.array_equal(classic.voxels, enhanced.voxels)
    assert np.allclose(classic.affine, enhanced.affine, atol=1e-4)


def test_every_transfer_syntax_is_decoded_as_recorded(shared_data: Path) -> None:
    """Lossless files hold the raw slice, lossy ones differ by what was recorded of them; two
    retired syntaxes and 12-bit JPEG, which no permissively licensed decoder reads, are refused."""
    expected = json.loads((shared_data / "ref/expected_pixels.json").read_text())
    raw = load_volume(shared_data / "transfer_syntaxes_ct/CTImage.dcm").voxels.astype(int)
    files = sorted((shared_data / "transfer_syntaxes_ct").iterdir())
    assert len(files) == 16
    for file in files:
        wanted = expected[f"transfer_syntaxes_ct/{file.name}"].get("max_abs_hu_diff_to_raw")
        if wanted is None or file.stem.endswith(".4.51"):
            with pytest.raises(UnsupportedTransferSyntax, match=r"stored as JPEG .*no installed"):
                load_volume(file)
            continue
        volume = load_volume(file)
        assert np.abs(volume.voxels - raw).max() == pytest.approx(wanted, abs=0.005), file.name


@pytest.mark.parametrize(
    "name",
    [
        "empty.dcm", "not_dicom.dcm", "truncated.dcm", "nested_sequences.dcm", "short_pixels.dcm",
        "frames_lie.dcm", "j2k_siz_mismatch.dcm", "rle_claims_8GB.dcm", "tar_symlink.tar", "zip_bomb.zip",
    ],
)  # fmt: skip
def test_hostile_file_is_refused_and_named(shared_data: Path, name: str) -> None:
    with pytest.raises(CrossReadError, match=r"\w"):
        load_volume(shared_data / "derived/hostile" / name)


def test_archive_member_that_would_escape_is_listed_not_followed(shared_data: Path) -> None:
    study = scan(shared_data / "derived/hostile/zip_slip.zip")
    assert "UNSAFE_PATH" in _codes(study.problems)
    with pytest.raises(UnreadableFile, match="unsafe"):
        scan(shared_data / "derived/hostile/zip_bomb.zip")


def test_a_broken_neighbour_costs_only_itself(
    shared_data: Path, phantom_series: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(phantom_series, tmp_path / "study")
    shutil.copy(shared_data / "derived/hostile/truncated.dcm", tmp_path / "study/zz.dcm")
    shutil.copy(shared_data / "derived/hostile/not_dicom.dcm", tmp_path / "study/notes.dcm")
    study = scan(tmp_path / "study")
    assert len(study.default().files) == 24
    assert "notes.dcm" in {p.subject for p in study.problems}


def test_objects_that_are_no_images_are_listed_by_kind(shared_data: Path) -> None:
    study = scan(shared_data / "non_images")
    with pytest.raises(NotDicom, match="no DICOM image found"):
        study.default()
    kinds = " ".join(p.message for p in study.problems)
    for kind in ("Segmentation", "RT Structure Set", "RT Plan", "SR Storage"):
        assert kind in kinds


@pytest.mark.parametrize(
    ("name", "nifti"),
    [
        ("12bitUnsigned", "2.nii"),
        ("12bitUnsigned_0x0F0F", "3.nii"),
        ("12bitSigned_0x0F0F", "4.nii"),
    ],
)
def test_junk_in_unused_bits_is_masked_as_dcm2niix_does(
    shared_data: Path, name: str, nifti: str
) -> None:
    nibabel = pytest.importorskip("nibabel")
    theirs = np.asarray(nibabel.load(shared_data / "ref/bits12" / nifti).dataobj)
    mosaic = load_volume(shared_data / f"bits12/{name}.dcm").voxels[0]  # 6 x 6 tiles, 35 used
    tiles = mosaic.reshape(6, 64, 6, 64).transpose(0, 2, 1, 3).reshape(36, 64, 64)[:35]
    assert np.array_equal(tiles, theirs.transpose(2, 1, 0)[:, ::-1])


def test_modalities_without_hounsfield_units_say_so(shared_data: Path) -> None:
    for folder in ("xray", "ultrasound"):
        for file in (shared_data / folder).iterdir():
            volume = load_volume(file)
            assert not volume.calibrated
            assert "UNCALIBRATED" in _codes(volume.problems)


def test_description_of_everything_names_no_identifier(shared_data: Path) -> None:
    """Every patient name, ID and UID found by pydicom itself is absent from what is told."""
    import pydicom

    told = json.dumps(describe(scan(shared_data / "chest_lidc_0001")))
    told += json.dumps(describe(scan(shared_data / "head_phantom_study")))
    for folder in ("chest_lidc_0001", "head_phantom_study"):
        for file in (p for p in (shared_data / folder).rglob("*") if p.is_file()):
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            for name in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID",
                         "InstitutionName", "ReferringPhysicianName"):  # fmt: skip
                value = str(header.get(name, "") or "")
                assert len(value) < 4 or value not in told
