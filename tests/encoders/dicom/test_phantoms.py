"""Generated series: geometry in every orientation, views against closed forms, planted identifiers."""

from __future__ import annotations

import logging
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.dicom import PROFILES, Volume, Window, load_volume, make_views, scan
from encoders.dicom.write import write_ct_series
from encoders.errors import InvalidPixels, MissingInput, NotDicom, UnreadableFile
from encoders.features import Source
from tests import makers

ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "axial from the head": ((-1, 0, 0), (0, 1, 0)),
    "axial prone": ((-1, 0, 0), (0, -1, 0)),
    "axial upside down": ((1, 0, 0), (0, -1, 0)),
    "decubitus": ((0, 1, 0), (-1, 0, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("position", ["HFS", "FFS", "HFP", "FFDR"])
def test_left_back_and_head_stay_where_they_are(name: str, position: str, tmp_path: Path) -> None:
    row, column = ORIENTATIONS[name]
    makers.write_blocks(tmp_path, row, column, position, shape=(48, 48, 48))
    volume = load_volume(tmp_path)
    for centre, hu in makers.BLOCKS.values():
        wanted = np.add(centre, (5.0, -7.0, 11.0))
        assert np.abs(makers.centre_of(volume, hu) - wanted).max() < 2.1  # half the largest step


@pytest.mark.parametrize("name", ["axial", "axial from the head", "axial prone", "decubitus"])
def test_views_show_the_patients_left_at_the_right_and_the_back_below(
    name: str, tmp_path: Path
) -> None:
    row, column = ORIENTATIONS[name]
    makers.write_blocks(tmp_path, row, column, shape=(48, 48, 48))
    whole = load_volume(tmp_path)
    for name_of_block, axis in (("left", 2), ("back", 1), ("head", 0)):
        alone = np.where(whole.voxels == makers.BLOCKS[name_of_block][1], 2500, -1000).astype(
            np.int16
        )
        bone = make_views(replace(whole, voxels=alone), PROFILES["crossread-ct"]).pixels[:, 2]
        centre = np.argwhere(bone > 128).mean(0) / bone.shape
        shift = centre - 0.5 + 0.5 / np.array(bone.shape)
        assert shift[axis] > 0.1
        assert np.abs(np.delete(shift, axis)).max() < 0.03


@given(
    x=st.floats(0, 96), y=st.floats(0, 96), name=st.sampled_from(["axial", "axial from the head", "axial prone"])
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_view_pixel_leads_back_to_its_millimetres(x: float, y: float, name: str) -> None:
    """`pixel_map` to the stored slice, then the volume's affine, equals the view's own geometry."""
    row, column = ORIENTATIONS[name]
    volume = _blocks_volume(row, column)
    views = make_views(volume, PROFILES["crossread-ct"])
    source, geometry = views.sources[3], views.geometry[3]
    x0, y0, _, _ = source.to_stored((x, y, x, y))
    assert source.slice_index is not None
    stored = volume.affine[:3, 1:3] @ [y0 - 0.5, x0 - 0.5]
    seen = geometry[3:6] * (x - 0.5) + geometry[6:9] * (y - 0.5)
    origin_stored = volume.affine[:3, 3] + volume.affine[:3, 0] * source.slice_index
    middle = volume.at((np.array(volume.voxels.shape) - 1) / 2)
    in_plane = (origin_stored + stored - middle) - (geometry[:3] + seen)
    assert np.abs(in_plane[:2]).max() < 1e-2
    assert abs(in_plane[2]) < 5.0  # a slab stands for several slices


def _blocks_volume(row, column) -> Volume:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        makers.write_blocks(Path(folder), row, column)
        return load_volume(Path(folder))


@pytest.mark.parametrize("name", ["crossread-ct", "crossread-ct-mip"])
def test_slab_views_are_block_means_or_the_brightest_slices_in_three_windows(name: str) -> None:
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 1000, (32, 192, 192)).astype(np.int16)
    affine = np.diag([8.0, 1.9, 1.9, 1.0])[
        [2, 1, 0, 3]
    ]  # slice along z, row along y, column along x
    volume = Volume(hu, affine, 8.0 * np.arange(32))
    views = make_views(volume, PROFILES[name])
    slices = hu.reshape(16, 2, 96, 2, 96, 2).mean((3, 5))
    shown = {"mean": slices.mean(1), "max": slices.max(1)}
    for channel, window in enumerate(PROFILES[name].windows):
        low = window.center - window.width / 2
        wanted = 255 * np.clip((shown[window.projection] - low) / window.width, 0, 1)
        assert np.abs(views.pixels[:, channel] - wanted).max() <= 0.51
    assert [s.slice_range for s in views.sources[:2]] == [(0, 2), (2, 4)]


@given(center=st.floats(-1000, 1000), width=st.floats(1, 4000), hu=st.floats(-2000, 3000))
def test_window_is_a_clipped_line(center: float, width: float, hu: float) -> None:
    grey = int(Window("any", center, width).apply(np.array(hu)))
    assert abs(grey - 255 * min(max((hu - center + width / 2) / width, 0), 1)) <= 0.5 + 1e-6


def test_spacing_between_slices_changes_what_the_model_is_told(tmp_path: Path) -> None:
    voxels = np.zeros((16, 8, 8), np.int16)
    geometries = []
    for mm in (5.0, 50.0):
        affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [mm, 0, 0, 0], [0, 0, 0, 1]])
        write_ct_series(voxels, affine, tmp_path / str(mm))
        views = make_views(load_volume(tmp_path / str(mm)), PROFILES["crossread-ct"])
        geometries.append(np.diff(views.geometry[:, 2]))
    assert np.allclose(geometries[1], 10 * geometries[0])


def test_boxes_go_back_to_the_stored_slice_with_ordered_corners() -> None:
    flipped = Source("dicom", pixel_map=(-2.0, 0.0, 64.0, 0.0, 3.0, 1.0))
    assert flipped.to_stored((1, 2, 5, 4)) == (54.0, 7.0, 62.0, 13.0)


def test_written_series_reads_back_as_it_was(tmp_path: Path) -> None:
    voxels, affine = makers.write_blocks(tmp_path)
    volume = load_volume(tmp_path)
    assert np.array_equal(volume.voxels, voxels)
    assert np.allclose(volume.affine, affine, atol=1e-6)
    assert volume.info.modality == "CT"
    assert volume.problems == ()


def test_written_series_is_valid_for_another_reader(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    voxels, _ = makers.write_blocks(tmp_path)
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = sitk.ReadImage(files)
    assert image.GetSpacing() == pytest.approx((2.0, 1.5, 4.0))
    assert np.array_equal(sitk.GetArrayFromImage(image), voxels)


def test_folder_zip_and_shuffled_names_give_one_volume(
    phantom_series: Path, tmp_path: Path
) -> None:
    wanted = load_volume(phantom_series).digest
    files = sorted(phantom_series.iterdir())
    shuffled = tmp_path / "shuffled/deep"
    shuffled.mkdir(parents=True)
    for number, file in enumerate(np.random.default_rng(1).permutation(np.array(files, object))):
        shutil.copy(file, shuffled / f"IM{number}")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for file in files:
            archive.write(file, f"a/b/{file.name}")
    assert load_volume(tmp_path / "shuffled").digest == wanted
    assert load_volume(tmp_path / "study.zip").digest == wanted


def test_single_file_is_a_volume_of_one_slice(phantom_series: Path) -> None:
    volume = load_volume(sorted(phantom_series.iterdir())[3])
    assert volume.voxels.shape == (1, 64, 48)
    assert volume.calibrated


def test_removed_slice_leaves_true_positions_and_a_warning(
    phantom_series: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_series, tmp_path / "s")
    sorted((tmp_path / "s").iterdir())[10].unlink()
    volume = load_volume(tmp_path / "s")
    assert [p.code for p in volume.problems] == ["MISSING_SLICE"]
    assert len(volume.positions_mm) == 23
    assert np.diff(volume.positions_mm).max() == pytest.approx(8.0)


def test_same_slice_twice_is_kept_once(phantom_series: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_series, tmp_path / "s")
    first = sorted((tmp_path / "s").iterdir())[0]
    shutil.copy(first, tmp_path / "s/again.dcm")
    volume = load_volume(tmp_path / "s")
    assert len(volume.voxels) == 24
    assert "DUPLICATE_INSTANCE" in {p.code for p in volume.problems}


def test_missing_empty_and_foreign_inputs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="nowhere"):
        scan(tmp_path / "nowhere")
    with pytest.raises(NotDicom, match="empty"):
        scan(tmp_path).default()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NotDicom, match=r"notes\.txt: not a DICOM file"):
        load_volume(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises((NotDicom, UnreadableFile)):
        load_volume(tmp_path / "broken.zip")


def test_values_that_no_ct_holds_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidPixels, match="-1024"):
        write_ct_series(np.full((1, 4, 4), -3000, np.int16), np.eye(4), tmp_path)


def test_planted_identifiers_reach_no_description_log_or_error(
    phantom_series: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = {}
    for number, file in enumerate(sorted(phantom_series.iterdir())[:4]):
        header = pydicom.dcmread(file)
        for keyword, value in (
            ("PatientName", f"Zebra{number}^Quagga"), ("PatientID", f"ID-SECRET-{number}"),
            ("PatientBirthDate", "19330405"), ("AccessionNumber", f"ACC{number}XY"),
            ("InstitutionName", "Hidden Clinic"), ("OperatorsName", "Oper^Ator"),
            ("StudyDescription", "for Mrs Zebra"), ("PatientAddress", "7 Secret Lane"),
        ):  # fmt: skip
            setattr(header, keyword, value)
            secrets[value] = keyword
        header.PatientAge = "061Y"
        if number == 3:
            header.PixelData = header.PixelData[:100]
        header.save_as(tmp_path / f"{number}.dcm")
    from encoders.dicom import describe

    caplog.set_level(logging.DEBUG)
    study = scan(tmp_path)
    volume = load_volume(study.default())
    told = repr(describe(study)) + repr(volume.info) + repr(volume.problems) + caplog.text
    for secret in secrets:
        assert secret not in told
    assert volume.info.age_bucket == "60s"
    assert "CORRUPT_SLICE" in {p.code for p in volume.problems}
