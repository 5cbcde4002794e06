"""Pictures of X-ray, ultrasound, captures and cine against DCMTK's renders and pydicom's colours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from encoders.dicom import (
    PROFILES,
    describe,
    let_through,
    load_pictures,
    load_volume,
    scan,
    views_of,
)
from encoders.dicom.pictures import Picture, picture_views
from encoders.errors import CrossReadError, UnreadableFile

US, CAPTURE = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.7"
CINE = "1.2.840.10008.5.1.4.1.1.3.1"


def _pictures(file: Path | str, **options: Any) -> list[Picture]:
    return load_pictures(scan(file).default(), **options)


def _write(file: Path, pixels: np.ndarray, sop_class: str = US, **values: Any) -> Path:
    """A native image of these pixels: `[rows, columns]`, with frames before and colours after."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, "1.2.3.4"
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    header.SOPClassUID, header.SOPInstanceUID = sop_class, "1.2.3.4"
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    colour = pixels.shape[-1] == 3
    header.Modality, header.SamplesPerPixel = "US", 3 if colour else 1
    header.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        header.PlanarConfiguration = 0
    shape = pixels.shape[:-1] if colour else pixels.shape
    header.Rows, header.Columns = shape[-2:]
    if len(shape) == 3:
        header.NumberOfFrames = shape[0]
    bits = pixels.dtype.itemsize * 8
    header.BitsAllocated, header.BitsStored, header.HighBit = bits, bits, bits - 1
    header.PixelRepresentation, header.PixelData = 0, pixels.tobytes()
    for name, value in values.items():
        setattr(header, name, value)
    header.save_as(file, enforce_file_format=True)
    return file


@pytest.mark.parametrize(
    ("file", "render"),
    [
        ("ultrasound/US1_UNCI.dcm", "US1_UNCI.default.png"),
        ("ultrasound/color-pl.dcm", "color-pl.default.png"),  # planes, pixels of 4 to 3
        ("ultrasound/OBXXXX1A.dcm", "OBXXXX1A.default.png"),  # palette of 16 bits
        ("xray/dx_image.dcm", "dx_image.window1.png"),
        ("xray/CR-ModalitySequenceLUT.dcm", "CR-ModalitySequenceLUT.minmax.png"),
        ("lut/mlut_18.dcm", "mlut_18.minmax.png"),
        ("overlay/ovly_p01.dcm", "ovly_p01.no_overlay.png"),
    ],
)
def test_pictures_are_dcmtks_within_one_level(shared_data: Path, file: str, render: str) -> None:
    from PIL import Image

    picture = _pictures(shared_data / file)[0]
    theirs = np.asarray(Image.open(shared_data / "ref/dcmtk_render" / render).convert("RGB"))
    ours = picture.pixels if picture.pixels.shape == theirs.shape else picture.squared()
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(
    "name",
    [
        "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm",  # YBR_FULL_422, YBR_FULL
        "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_rle.dcm", "examples_rgb_color.dcm",
        "SC_rgb_jpeg_app14_dcmd.dcm", "SC_jpeg_no_color_transform.dcm",  # APP14 against attributes
        "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_gdcm_KY.dcm", "GDCMJ2K_TextGBR.dcm",  # RCT
        "SC_rgb_small_odd.dcm",
    ],
)  # fmt: skip
def test_colour_is_rgb_as_pydicom_converts_it(name: str) -> None:
    file = get_testdata_file(name, download=False)
    header = pydicom.dcmread(str(file))
    theirs = header.pixel_array  # pydicom 3 converts YBR to RGB
    assert np.array_equal(_pictures(str(file))[0].pixels, theirs)


def test_ict_and_rct_come_as_rgb_out_of_the_codestream(shared_data: Path) -> None:
    plain = _pictures(shared_data / "ultrasound/US1_UNCI.dcm")[0].pixels.astype(int)
    coded = _pictures(shared_data / "ultrasound/US1_J2KR.dcm")[0].pixels
    assert np.abs(coded - plain).mean((0, 1)).max() < 2.0


def test_sixteen_bit_colour_keeps_its_high_bits(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0x8000, 0xFFFF], [0x1234, 0xFF, 0x100]]], np.uint16)
    shown = _pictures(_write(tmp_path / "a", pixels, CAPTURE))[0].pixels
    assert shown.tolist() == [[[0, 128, 255], [0x12, 0, 1]]]


def test_colour_profile_is_applied_as_pillow_does_or_told_to_be_broken(tmp_path: Path) -> None:
    from PIL import Image, ImageCms

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    profile = Path(str(get_testdata_file("crayons.icc", download=False))).read_bytes()
    shown = _pictures(_write(tmp_path / "a", pixels, CAPTURE, ICCProfile=profile))[0]
    image = Image.fromarray(pixels)
    theirs = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.getDefaultIntent(ImageCms.ImageCmsProfile(io.BytesIO(profile))),
    )  # fmt: skip
    assert np.array_equal(shown.pixels, np.asarray(theirs))
    assert not np.array_equal(shown.pixels, pixels)
    broken = _pictures(_write(tmp_path / "b", pixels, CAPTURE, ICCProfile=b"broken"))[0]
    assert np.array_equal(broken.pixels, pixels)
    assert "BAD_ICC_PROFILE" in {p.code for p in broken.problems}


def test_supplemental_palette_colours_a_map_over_a_grey_image(shared_data: Path) -> None:
    file = shared_data / "enhanced/eCT_Supplemental.dcm"
    picture = _pictures(file)[0]
    shown, stored = picture.pixels, pydicom.dcmread(file).pixel_array[picture.frame]
    coloured = (stored >= 1024) & (stored < 1124)
    assert coloured.any()
    grey = (shown == shown[..., :1]).all(-1)
    assert grey[~coloured].all()
    assert not grey[coloured].all()


def test_overlays_are_told_and_stay_out_unless_asked_for(shared_data: Path) -> None:
    from PIL import Image

    file = shared_data / "overlay/ovly_p01.dcm"
    plain, burnt = _pictures(file)[0], _pictures(file, overlays=True)[0]
    told = [p for p in plain.problems if p.code == "OVERLAY"]
    assert len(told) == 1
    assert "4 overlay planes" in told[0].message
    drawn = (plain.pixels != burnt.pixels).any(-1)
    renders = shared_data / "ref/dcmtk_render"
    theirs = np.asarray(Image.open(renders / "ovly_p01.overlays.png").convert("RGB"))
    assert drawn.sum() > 1000
    assert (theirs[drawn] == 255).all()
    assert (burnt.pixels[drawn] == 255).all()


def _overlaid(path: Path, frames: int = 1, **elements: Any) -> Path:
    """An image of 12 bits, and an overlay plane by these elements of group 6000."""
    pixels = np.zeros((frames, 6, 8), np.uint16) if frames > 1 else np.zeros((6, 8), np.uint16)
    file = _write(path, pixels, CAPTURE, BitsStored=12, HighBit=11)
    header = pydicom.dcmread(file)
    for number, (vr, value) in {0x10: ("US", 6), 0x11: ("US", 8), **elements}.items():
        header.add_new((0x6000, int(number)), vr, value)
    header.save_as(file)
    return file


def test_plane_in_an_unused_bit_of_the_pixels_is_drawn_when_asked_for(tmp_path: Path) -> None:
    """As Siemens wrote them (retired in 2004): bit 12 of each word, no Overlay Data."""
    file = _overlaid(tmp_path / "a", **{"256": ("US", 16), "258": ("US", 12)})
    header = pydicom.dcmread(file)
    words = np.full((6, 8), 100, np.uint16)
    words[2, 3:6] |= 1 << 12
    words[4, 0] |= 1 << 13  # another plane, which is not declared
    header.PixelData = words.tobytes()
    header.save_as(file)
    plain, burnt = _pictures(file)[0], _pictures(file, overlays=True)[0]
    assert "OVERLAY" in [p.code for p in plain.problems]
    assert len(np.unique(plain.pixels)) == 1
    assert np.argwhere((plain.pixels != burnt.pixels).any(-1)).tolist() == [[2, 3], [2, 4], [2, 5]]


def test_frames_of_an_overlay_lie_over_the_frames_they_are_of(tmp_path: Path) -> None:
    """Two overlay frames from image frame 2 on: the first and the fourth stay as they are."""
    bits = np.zeros((2, 6, 8), np.uint8)
    bits[0, 0, 0] = bits[1, 5, 7] = 1
    data = np.packbits(bits.ravel(), bitorder="little").tobytes()
    file = _overlaid(
        tmp_path / "a", 4,
        **{"21": ("IS", 2), "80": ("SS", [1, 1]), "81": ("US", 2), "256": ("US", 1), "258": ("US", 0),
           "12288": ("OW", data)},
    )  # fmt: skip
    drawn = [
        np.argwhere((a.pixels != b.pixels).any(-1)).tolist()
        for a, b in zip(_pictures(file), _pictures(file, overlays=True), strict=True)
    ]
    assert drawn == [[], [[0, 0]], [[5, 7]], []]


def _region(x0: int, x1: int, unit: int, delta: float) -> Dataset:
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x1, 39
    region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = unit, 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = delta, 0.02
    return region


def test_lengths_are_measured_inside_one_calibrated_region_only(tmp_path: Path) -> None:
    """Left half in cm, right half a trace over seconds: only the left measures mm."""
    file = _write(
        tmp_path / "us", np.zeros((40, 60, 3), np.uint8), PixelSpacing=[9, 9],
        SequenceOfUltrasoundRegions=[_region(0, 29, 3, 0.01), _region(30, 59, 4, 0.5)],
    )  # fmt: skip
    picture = _pictures(file)[0]
    assert picture.mm_between((0, 0), (10, 0)) == pytest.approx(1.0)
    assert picture.mm_between((5, 0), (5, 10)) == pytest.approx(2.0)
    assert picture.mm_between((5, 0), (50, 0)) is None
    assert picture.mm_between((40, 0), (50, 0)) is None


def test_lengths_without_regions_follow_the_spacing_or_are_unknown(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    spaced = _pictures(_write(tmp_path / "a", pixels, CAPTURE, PixelSpacing=[2.0, 0.5]))[0]
    assert spaced.mm_between((0, 0), (2, 3)) == pytest.approx(np.hypot(1.0, 6.0))
    assert _pictures(_write(tmp_path / "b", pixels))[0].mm_between((0, 0), (1, 1)) is None


def test_cine_is_sampled_over_its_length_with_the_seconds_of_each_frame(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(100, dtype=np.uint8), 16 * 3).reshape(100, 4, 4, 3)
    file = _write(tmp_path / "cine", frames, CINE, FrameTime=40.0)
    shown = _pictures(file, limit=5)
    assert [p.frame for p in shown] == [0, 25, 50, 74, 99]
    assert [int(p.pixels[0, 0, 0]) for p in shown] == [0, 25, 50, 74, 99]
    assert [p.seconds for p in shown] == pytest.approx([0.0, 1.0, 2.0, 2.96, 3.96])
    steps = [0.0, *([10.0] * 50), *([100.0] * 49)]
    vector = _pictures(_write(tmp_path / "v", frames, CINE, FrameTimeVector=steps), limit=3)
    assert [p.seconds for p in vector] == pytest.approx([0.0, 0.5, 5.4])


def test_cine_of_grey_frames_is_shown_alike(tmp_path: Path) -> None:
    frames = np.linspace(0, 255, 3 * 64).astype(np.uint8).reshape(3, 8, 8)
    shown = _pictures(_write(tmp_path / "c", frames, CINE, WindowCenter=128, WindowWidth=256))
    assert np.abs(np.stack([p.pixels[..., 0] for p in shown]).astype(int) - frames).max() <= 1


def test_views_of_pictures_are_square_and_lead_back_to_stored_pixels(tmp_path: Path) -> None:
    """Pixels twice as high as wide, a mark near one corner: found again by the picture's map."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[12:16, 40:48] = 255
    series = scan(_write(tmp_path / "a", pixels, PixelAspectRatio=[2, 1])).default()
    for name in ("cxr", "crossread-ct", "medgemma-ct"):
        views = views_of(series, PROFILES[name])
        _, _, height, width = views.pixels.shape
        assert height == width
        rows, columns = np.nonzero(views.pixels[0, 0] > 127)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert views.sources[0].to_stored(box) == pytest.approx((40, 12, 48, 16), abs=0.7)
        shape = views.pixels.shape[-1] / 60 * np.array([8, 8])
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx(shape, abs=1.1)


def test_several_x_rays_of_a_series_all_become_views() -> None:
    grey = Picture(np.full((4, 6, 3), 9, np.uint8), "a")
    views = picture_views([grey, Picture(np.full((8, 2, 3), 7, np.uint8), "b", 1)], PROFILES["cxr"])
    assert views.pixels.shape == (2, 3, 8, 8)
    assert views.labels == ("IMAGE 1", "IMAGE 2")
    assert [s.slice_index for s in views.sources] == [0, 1]


def test_single_images_of_every_kind_reach_the_prompt(shared_data: Path, tiny_composite) -> None:
    """X-ray, ultrasound, capture, palette: described, prepared and named, none crashes."""
    _, processor = tiny_composite
    for folder in ("xray", "ultrasound", "lut", "overlay"):
        for file in sorted((shared_data / folder).iterdir()):
            study = scan(file)
            assert describe(study)["series"], file.name
            series = let_through(study.default(), allow_burned_in=True)
            medium = processor.prepare("dicom", series)
            assert medium.views.shape[0] == len(medium.labels) == 1
            assert medium.views.std() > 0


def test_colour_space_nobody_writes_any_more_is_refused_by_name(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    file = _write(tmp_path / "hsv.dcm", pixels, CAPTURE, PhotometricInterpretation="HSV")
    with pytest.raises(UnreadableFile, match=r"colour space .* none of RGB"):
        _pictures(file)


def test_volume_of_a_palette_image_holds_luminance_not_table_indices(shared_data: Path) -> None:
    file = shared_data / "ultrasound/OBXXXX1A.dcm"
    weights = np.array([0.299, 0.587, 0.114])
    luminance = _pictures(file)[0].pixels @ weights
    assert np.abs(load_volume(file).voxels[0] - luminance).max() <= 0.51


def test_palette_that_is_broken_refuses_its_image_by_name(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), np.uint8)
    file = _write(tmp_path / "broken.dcm", pixels, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(UnreadableFile, match=r"broken\.dcm.*palette"):
        _pictures(file)


def test_mutated_headers_are_shown_or_refused_never_fatal(tmp_path: Path) -> None:
    """Bytes of the display attributes are changed at random: windows, tables, overlays, palette."""
    rng = np.random.default_rng(7)
    grey, colour = np.arange(64, dtype=np.uint8).reshape(8, 8), np.zeros((8, 8, 3), np.uint8)
    table = (np.arange(64, dtype="<u2") * 1000).tobytes()
    palette = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [64, 0, 16]), ("Data", table))
    }
    seeds = [
        _write(tmp_path / "g", grey, WindowCenter=[9, 3], WindowWidth=[4, 2], FrameTime=40.0),
        _write(tmp_path / "c", colour, SequenceOfUltrasoundRegions=[_region(0, 7, 3, 0.1)]),
        _write(tmp_path / "p", grey, PhotometricInterpretation="PALETTE COLOR", **palette),
    ]
    shown = 0
    for round_ in range(150):
        data = bytearray(seeds[round_ % 3].read_bytes())
        places = rng.integers(data.index(b"\x28\x00\x02\x00") - 80, len(data) - 70, 3)
        for place in places:
            data[int(place)] = int(rng.choice([0, 1, 32, 65, 92, 255]))
        (tmp_path / "x").write_bytes(data)
        try:
            pictures = _pictures(tmp_path / "x", overlays=True)
        except CrossReadError:
            continue
        shown += 1
        assert all(p.pixels.dtype == np.uint8 and p.pixels.shape[-1] == 3 for p in pictures)
    assert shown > 30
