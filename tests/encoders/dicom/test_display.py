"""Grey levels for people against pydicom's own transformations and DCMTK's renders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from encoders.dicom import load_volume
from encoders.dicom.display import PRESETS, Display, Voi, display_of, hanging, lookup_table
from encoders.dicom.header import SeriesInfo

WIDE = np.arange(-2000, 3000, dtype=np.int16).reshape(50, 100)


def _header(**values: Any) -> Dataset:
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsStored, header.PixelRepresentation = 16, 1
    for name, value in values.items():
        setattr(header, name, value)
    return header


def _lut(first: int, bits: int, entries: list[int], vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [len(entries) % 65536, first, bits])
    data = np.array(entries, "<u2").tobytes() if vr == "OW" else entries
    item.add_new("LUTData", vr, data)
    return item


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (0, 1), (40.5, 80.25)])
def test_windows_are_those_of_pydicom(function: str, center: float, width: float) -> None:
    header = _header(WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    with np.errstate(over="ignore"):  # of their exponential
        theirs = pydicom.pixels.apply_windowing(WIDE, header)
    theirs = (theirs + 32768) / 65535 * 255
    assert np.abs(display_of(header).grey(WIDE) - theirs).max() <= 0.51


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_voi_tables_are_those_of_pydicom(vr: str) -> None:
    entries = (np.linspace(0, 1, 700) ** 2 * 4095).astype(int).tolist()
    header = _header(VOILUTSequence=[_lut(-100, 12, entries, vr)])
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    theirs = pydicom.pixels.apply_voi(WIDE.astype(np.int32), header) / 4095 * 255
    assert np.abs(display_of(header).grey(WIDE) - theirs).max() <= 1.0


def test_eight_bit_table_of_many_entries_does_not_wrap() -> None:
    """pydicom indexes with the table's own type: entry 300 of an 8-bit table becomes entry 44."""
    header = _header(VOILUTSequence=[_lut(0, 8, [min(i // 4, 255) for i in range(1024)])])
    grey = display_of(header).grey(np.array([-5, 0, 300, 1020, 5000]))
    assert grey.tolist() == [0, 0, 75, 255, 255]


def test_table_of_bytes_packed_in_words_is_unpacked() -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 0, 8])
    item.add_new("LUTData", "OW", bytes([1, 2, 3, 4]))
    assert lookup_table(item, signed=False)[2].tolist() == [1, 2, 3, 4]


def test_table_whose_data_are_too_short_is_left_out_and_told() -> None:
    broken = _lut(0, 16, [1, 2, 3])
    broken.LUTDescriptor = [500, 0, 16]
    found = display_of(_header(VOILUTSequence=[broken], WindowCenter=40, WindowWidth=400))
    assert [v.function for v in found.vois] == ["LINEAR"]
    assert [p.code for p in found.problems] == ["BAD_VOI_LUT"]


def test_several_windows_keep_their_explanations() -> None:
    header = _header(WindowCenter=[40, -600, 500], WindowWidth=[80, 1500, 2000])
    header.WindowCenterWidthExplanation = ["BRAIN", "LUNG"]
    found = display_of(header)
    assert [v.name for v in found.vois] == ["BRAIN", "LUNG", "window 3"]
    assert np.array_equal(found.grey(WIDE), PRESETS["brain"].grey(WIDE))
    assert np.array_equal(found.grey(WIDE, "LUNG"), PRESETS["lung"].grey(WIDE))
    with pytest.raises(KeyError, match="unknown"):
        found.grey(WIDE, "unknown")


def test_window_narrower_than_one_is_exact_and_told() -> None:
    """pydicom refuses it; PS3.3 C.11.2.1.2.1 allows it for LINEAR_EXACT only."""
    found = display_of(_header(WindowCenter=0.5, WindowWidth=0.5))
    assert [p.code for p in found.problems] == ["NARROW_WINDOW"]
    values = np.array([0.2, 0.25, 0.5, 0.75, 0.9], np.float32)
    assert found.grey(values).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("width", [0, -5])
def test_window_without_width_is_left_out(width: int) -> None:
    found = display_of(_header(WindowCenter=10, WindowWidth=width))
    assert found.vois == ()
    assert [p.code for p in found.problems] == ["BAD_WINDOW"]


def test_unknown_function_is_linear_and_told() -> None:
    found = display_of(_header(WindowCenter=10, WindowWidth=5, VOILUTFunction="CUBIC"))
    assert found.vois[0].function == "LINEAR"
    assert [p.code for p in found.problems] == ["UNKNOWN_VOI"]


@pytest.mark.parametrize(
    ("kind", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False), ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True), ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),  # both say the same thing: once, not twice
    ],
)  # fmt: skip
def test_inversion_happens_once_and_after_the_window(
    kind: str, shape: str | None, inverted: bool
) -> None:
    header = _header(PhotometricInterpretation=kind, WindowCenter=0, WindowWidth=1000)
    if shape:
        header.PresentationLUTShape = shape
    plain = Voi("w", 0, 1000).grey(WIDE).astype(int)
    shown = display_of(header).grey(WIDE).astype(int)
    assert np.abs(shown - (255 - plain if inverted else plain)).max() <= 1


def test_window_of_a_frame_stands_in_its_functional_group() -> None:
    def group(center: float) -> Dataset:
        item, voi = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 100
        item.FrameVOILUTSequence = [voi]
        return item

    header = _header(
        PerFrameFunctionalGroupsSequence=[group(1), group(2)],
        SharedFunctionalGroupsSequence=[group(9)],
    )
    assert display_of(header, 1).vois[0].center == 2
    del header.PerFrameFunctionalGroupsSequence[1].FrameVOILUTSequence
    assert display_of(header, 1).vois[0].center == 9


def test_broken_window_costs_the_window_not_the_series(
    phantom_series: Path, tmp_path: Path
) -> None:
    """Found by fuzzing: a window of letters stopped the loading of the whole series."""
    data = sorted(phantom_series.iterdir())[12].read_bytes()
    at = data.index(b"\x28\x00\x50\x10DS") + 8  # the value of Window Center
    (tmp_path / "broken.dcm").write_bytes(data[:at] + b"xy" + data[at + 2 :])
    volume = load_volume(tmp_path / "broken.dcm")
    assert "BAD_WINDOW" in {p.code for p in volume.problems}
    assert volume.display.grey(volume.voxels).max() == 255


def test_header_that_cannot_be_asked_keeps_its_inversion() -> None:
    class Unknown(Dataset):
        """pydicom fails at the moment it is asked for an element of an unknown VR."""

        def get(self, key: Any, default: Any = None) -> Any:
            if key == "WindowCenter":
                raise NotImplementedError
            return super().get(key, default)

    header = Unknown()
    header.PhotometricInterpretation = "MONOCHROME1"
    found = display_of(header)
    assert found.inverted
    assert [p.code for p in found.problems] == ["BAD_DISPLAY"]


def test_overlay_planes_of_any_image_are_told() -> None:
    header = _header()
    header.add_new((0x6002, 0x0010), "US", 4)
    header.add_new((0x6002, 0x3000), "OW", b"\0\0")
    problems = display_of(header).problems
    assert [p.code for p in problems] == ["OVERLAY"]
    assert problems[0].message.startswith("1 overlay")
    assert display_of(_header()).problems == ()


def test_presets_are_those_radiologists_use() -> None:
    wanted = {"brain": (40, 80), "lung": (-600, 1500), "mediastinum": (50, 350),
              "abdomen": (40, 400), "bone": (500, 2000)}  # fmt: skip
    assert {name: (PRESETS[name].center, PRESETS[name].width) for name in wanted} == wanted
    assert {"stroke", "subdural", "liver"} <= set(PRESETS)
    assert [v.name for v in hanging(SeriesInfo(body_part="HEAD"))] == ["brain", "bone"]
    assert [v.name for v in hanging(SeriesInfo(body_part="CHEST"))] == ["lung", "mediastinum"]


def test_values_without_a_window_are_shown_over_their_range() -> None:
    assert Display().grey(np.array([5, 10, 15])).tolist() == [0, 128, 255]
    assert Display().grey(np.array([7, 7])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("file", "render", "voi"),
    [
        *(
            (file, f"{stem}.{window}.png", voi)
            for file, stem in (
                ("transfer_syntaxes_ct/CTImage.dcm", "CTImage"),
                ("head_phantom_study/S2010/I100", "I100"),
            )
            for window, voi in (
                ("w40_400_linear", Voi("", 40, 400)),
                ("w40_400_sigmoid", Voi("", 40, 400, "SIGMOID")),
                ("wm600_1500_linear", Voi("", -600, 1500)),
            )
        ),
        ("xray/dx_image.dcm", "dx_image.window1.png", None),
        ("lut/vlut_04.dcm", "vlut_04.voilut1.png", None),
        ("lut/vlut_04.dcm", "vlut_04.minmax.png", Voi("", 127.5, 255, "LINEAR_EXACT")),
        ("lut/mlut_18.dcm", "mlut_18.minmax.png", None),
        ("overlay/ovly_p01.dcm", "ovly_p01.no_overlay.png", None),
    ],
)
def test_grey_is_dcmtks_within_one_level(
    shared_data: Path, file: str, render: str, voi: Voi | None
) -> None:
    from PIL import Image

    volume = load_volume(shared_data / file)
    theirs = np.asarray(Image.open(shared_data / "ref/dcmtk_render" / render)).astype(int)
    assert np.abs(volume.display.grey(volume.voxels[0], voi) - theirs).max() <= 1
