"""Left stays left, from files to what a model sees, what people see, and where a box points.

An asymmetric phantom in every orientation and patient position, and anatomy on recorded studies.
"""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from encoders.dicom import PROFILES, Views, Volume, load_volume, make_views
from encoders.dicom.display import upright
from encoders.dicom.header import SeriesInfo
from tests import makers

POSITIONS = ("HFS", "FFS", "HFP", "FFP", "HFDR", "HFDL", "FFDR", "FFDL")
MIDDLE = np.array([5.0, -7.0, 11.0])  # of the phantom in the patient
_AXES = [np.array(v) * sign for sign in (1, -1) for v in np.eye(3, dtype=int)]
TURNS = [(row, column) for row, column in product(_AXES, _AXES) if row @ column == 0]
AXIAL, CORONAL, SAGITTAL = ((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, -1)), ((0, 1, 0), (0, 0, -1))


def _name(value: object) -> str:
    return "".join(str(int(v)) for v in np.ravel(value)) if not isinstance(value, str) else value


def _phantom(folder: Path, row, column, position: str = "HFS") -> Volume:
    """Read back from files; each voxel 4 x 1.5 x 2 mm, the blocks whole in every turn."""
    makers.write_blocks(folder, row, column, position, shape=(24, 54, 42))
    return load_volume(folder)


def _alone(volume: Volume, block: str) -> Volume:
    """Only one block, as bright as bone in every window and scale."""
    bright = volume.voxels == makers.BLOCKS[block][1]
    return replace(volume, voxels=np.where(bright, 2500, -1000).astype(np.int16))


def _seen(views: Views) -> tuple[int, np.ndarray]:
    """The view that shows the block best, and the block's centre (x, y) in it."""
    bright = views.pixels.min(1) > 127
    best = int(bright.sum((1, 2)).argmax())
    ys, xs = np.nonzero(bright[best])
    return best, np.array([xs.mean() + 0.5, ys.mean() + 0.5])


def _place(volume: Volume, views: Views, view: int, point: np.ndarray) -> np.ndarray:
    """LPS mm of a picture point as an answer's evidence gives it: `Source`, then the volume."""
    source = views.sources[view]
    x, y, _, _ = source.to_stored((point[0], point[1], point[0], point[1]))
    assert source.slice_index is not None
    return volume.at((source.slice_index, y - 0.5, x - 0.5))


def _as(volume: Volume, profile: str) -> Volume:
    """The volume as the modality that a profile is for."""
    modality = {"mr": "MR", "cxr": "DX"}.get(profile, "CT")
    unit = "HU" if modality == "CT" else ""
    return replace(volume, info=SeriesInfo(modality=modality), unit=unit)


@pytest.mark.parametrize(("row", "column"), TURNS, ids=_name)
def test_boxes_of_every_profile_point_at_the_blocks_place_in_every_orientation(
    row, column, tmp_path: Path
) -> None:
    volume = _phantom(tmp_path, row, column)
    for block, profile in product(makers.BLOCKS, PROFILES):
        alone = _as(_alone(volume, block), profile)
        # all slices of the phantom: the cxr profile takes a few, evenly, and may miss a block
        views = make_views(alone, replace(PROFILES[profile], num_views=24))
        view, point = _seen(views)
        wanted = np.add(makers.BLOCKS[block][0], MIDDLE)
        assert np.abs(_place(volume, views, view, point) - wanted).max() < 9.1  # inside the block
        assert np.abs(_place(volume, views, view, point) - wanted)[[0, 1]].max() < 9.1
        geometry = views.geometry[view].astype(float)
        middle = volume.at((np.array(volume.voxels.shape) - 1) / 2)
        shown = geometry[:3] + geometry[3:6] * (point[0] - 0.5) + geometry[6:9] * (point[1] - 0.5)
        assert np.abs(shown + middle - _place(volume, views, view, point)).max() < 0.01


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    ("turn", "seen"),
    [(AXIAL, ("left", "back")), (CORONAL, ("left", "head")), (SAGITTAL, ("back", "head"))],
    ids=["axial", "coronal", "sagittal"],
)
def test_patient_position_turns_nothing_in_what_a_model_sees(
    turn, seen: tuple[str, str], position: str, tmp_path: Path
) -> None:
    volume = _phantom(tmp_path, *turn, position)
    assert volume.info.patient_position in ("", position)
    for profile in ("crossread-ct", "medgemma-ct"):
        across, along = (
            _seen(views)[1] / views.pixels.shape[-1]
            for views in (make_views(_alone(volume, block), PROFILES[profile]) for block in seen)
        )
        assert across[0] > 0.6
        assert along[1] < 0.4 if seen[1] == "head" else along[1] > 0.6


@pytest.mark.parametrize(("row", "column"), TURNS, ids=_name)
def test_people_see_left_at_the_right_head_or_front_up_and_letters_that_say_so(row, column) -> None:
    affine = np.eye(4)
    affine[:3, 1], affine[:3, 2], affine[:3, 0] = column, row, np.cross(row, column)
    turn = upright(affine)
    shape = (50, 40)
    place = np.moveaxis(np.indices(shape, float), 0, -1) @ np.stack([affine[:3, 1], affine[:3, 2]])
    shown = turn.apply(place)
    right_to_left, down = shown[0, -1] - shown[0, 0], shown[-1, 0] - shown[0, 0]
    letters = {(0, 1): "L", (0, -1): "R", (1, 1): "P", (1, -1): "A", (2, 1): "H", (2, -1): "F"}
    ends = []
    for way in (right_to_left, down):
        axis = int(np.abs(way).argmax())
        sign = int(np.sign(way[axis]))
        ends += [letters[axis, -sign], letters[axis, sign]]
    assert turn.letters == tuple(ends)
    assert turn.letters[:2] in (("R", "L"), ("A", "P"))
    assert turn.letters[2:] in (("A", "P"), ("H", "F"))
    box = turn.box((3, 5, 4, 6), shape)
    assert np.array_equal(shown[int(box[1]), int(box[0])], place[5, 3])


@pytest.mark.parametrize("position", ["FFS", "HFDL"])
@pytest.mark.parametrize(("row", "column"), TURNS[::5], ids=_name)
def test_key_slices_of_the_page_outline_the_block_they_name(
    row, column, position: str, tmp_path: Path
) -> None:
    from PIL import Image

    from pipelines.html import draw_slice

    volume = _phantom(tmp_path, row, column, position)
    for block in makers.BLOCKS:
        alone = _alone(volume, block)
        index = int(np.argwhere(alone.voxels == 2500)[:, 0].mean())
        ys, xs = np.nonzero(alone.voxels[index] == 2500)
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        drawn = np.asarray(Image.open(io.BytesIO(draw_slice(alone, index, [box]))).convert("RGB"))
        yellow = np.argwhere((drawn == (255, 196, 0)).all(-1) & (np.arange(drawn.shape[1]) < 440))
        inside = drawn[tuple(yellow.mean(0).astype(int))]
        assert inside.min() > 200
        letters = upright(volume.affine).letters
        at = yellow.mean(0)[::-1] / (440, drawn.shape[0]) - 0.5
        toward = {"left": "L", "back": "P", "head": "H"}[block]
        if toward in letters[:2]:
            assert (at[0] > 0.1) == (letters[1] == toward)
        if toward in letters[2:]:
            assert (at[1] > 0.1) == (letters[3] == toward)


def test_liver_is_at_the_left_of_every_picture_the_model_sees(shared_data: Path) -> None:
    """Patient right is a picture's left: the liver of the reference segmentation, by affine only."""
    nibabel = pytest.importorskip("nibabel")
    mask = nibabel.load(shared_data / "ref/abdomen_j2k/example_seg_dicom.nii.gz")
    volume = load_volume(shared_data / "abdomen_j2k")
    liver = np.argwhere(np.asarray(mask.dataobj) == 5)  # TotalSegmentator's label of the liver
    lps = nibabel.affines.apply_affine(mask.affine, liver) * [-1, -1, 1]
    index = np.rint(volume.index_of(lps)).astype(int)
    assert (np.median(volume.voxels[tuple(index.T)]) > 50) < 200
    marked = np.full_like(volume.voxels, -1000)
    marked[tuple(index.T)] = 2500
    for profile in ("crossread-ct", "crossread-ct-large", "medgemma-ct"):
        pixels = make_views(replace(volume, voxels=marked), PROFILES[profile]).pixels
        bright = np.argwhere(pixels.min(1) > 127)
        assert bright[:, 2].mean() < 0.42 * pixels.shape[-1]


def test_heart_and_aorta_are_at_the_right_of_the_pictures_though_feet_came_first(
    shared_data: Path,
) -> None:
    """Enhanced blood in front of the spine against the middle of the body, found by grey level in MedGemma's wide window alone."""
    from scipy import ndimage

    volume = load_volume(shared_data / "chest_lidc_0001")
    assert volume.info.patient_position in ("", "FFS")
    apart = []
    for picture in make_views(volume, PROFILES["medgemma-ct"]).pixels[:, 0]:
        hu = picture.astype(float) / 255 * 2048 - 1024
        blood = ndimage.binary_opening((hu > 150) & (hu < 700), iterations=5)
        blood[330:] = False  # the spine
        body, count = ndimage.label(ndimage.binary_opening(hu > -300, iterations=3))
        sizes = ndimage.sum(body > 0, body, range(1, count + 1))
        columns = np.argwhere(body == 1 + int(np.argmax(sizes)))[:, 1]
        middle = (columns.min() + columns.max()) / 2
        apart.append(np.argwhere(blood)[:, 1].mean() - middle)
    assert min(apart) > 0
    assert np.median(apart) > 10, apart


def test_every_pixel_lies_where_nibabels_canonical_orientation_puts_it(shared_data: Path) -> None:
    """A CT of other makers' software, RAS: pictures equal its canonical array, turned to LPS."""
    nibabel = pytest.importorskip("nibabel")
    from encoders.dicom.views import to_rgb

    image = nibabel.load(shared_data / "nifti/example_ct.nii.gz")
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)[:, [2, 1, 0, 3]]
    hu = np.asarray(image.dataobj).astype(np.int16).transpose(2, 1, 0)
    affine[:3, :3] = np.linalg.norm(affine[:3, :3], axis=0) * np.sign(np.round(affine[:3, :3], 1))
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    positions = np.arange(len(hu)) * float(affine[:3, 0] @ normal / np.linalg.norm(normal))
    views = make_views(Volume(hu, affine, positions), PROFILES["medgemma-ct"])
    theirs = np.asarray(nibabel.as_closest_canonical(image).dataobj).astype(np.int16)
    rows, columns = theirs.shape[1], theirs.shape[0]
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    for picture, source in zip(views.pixels[::9], views.sources[::9], strict=True):
        z = float(volume_z(affine, source.slice_index))
        k = round((z - nibabel.as_closest_canonical(image).affine[2, 3]) / abs(affine[2, 0]))
        lps = theirs[::-1, ::-1, k].T  # x to the left, y to the back
        wanted = to_rgb(np.ascontiguousarray(lps), PROFILES["medgemma-ct"].windows)
        shown = picture[:, top : top + rows, left : left + columns]
        assert np.array_equal(np.moveaxis(shown, 0, -1), wanted)


def volume_z(affine: np.ndarray, index: int | None) -> float:
    return float(affine[2, 3] + affine[2, 0] * (index or 0))
