"""Headers against pydicom's own reading of them; limits; what is a picture and what is not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement

from encoders.dicom import elements, load_volume, scan, tags
from encoders.dicom.elements import Flaw, Tree, read_elements
from encoders.dicom.header import read_header
from encoders.dicom.kinds import kind_of
from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.vocabulary import shown_name
from encoders.errors import NotDicom
from tests.encoders.dicom.slices import ENHANCED_CT, ROOT, SECONDARY, write_enhanced, write_slice

COLLECTION = Path(pydicom.__file__).parent / "data/test_files"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
STORAGE = "1.2.840.10008.5.1.4.1.1."


def differences(tree: Tree, dataset, at: str = "") -> Iterator[str]:
    """Where our raw values are not pydicom's."""
    for tag in sorted(tags.HEADER):
        ours, element = tree.get(tag), dataset.get_item(tag) if tag in dataset else None
        if tag >> 16 == 2:
            continue
        if isinstance(ours, list):
            theirs = dataset[tag].value
            if len(ours) != len(theirs):
                yield f"{at}{tag:08x}: {len(ours)} items, not {len(theirs)}"
            for item, their in zip(ours, theirs, strict=False):
                yield from differences(item, their, f"{at}{tag:08x}.")
        elif isinstance(element, RawDataElement):
            if (element.value or b"") != ours:
                yield f"{at}{tag:08x}: {ours!r}, not {element.value!r}"
        elif element is None and ours is not None:
            yield f"{at}{tag:08x}: {ours!r}, not there"


def assert_read_as_pydicom_does(folder: Path) -> int:
    compared = 0
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = file.read_bytes()
        try:
            ours = read_elements(lambda size, data=data: data[:size], tags.HEADER)  # type: ignore[misc]
        except Flaw:
            continue
        if ours.flaw:
            continue
        with quiet_pydicom():
            theirs = pydicom.dcmread(file, stop_before_pixels=True)
            assert list(differences(ours.values, theirs)) == [], file.name
        compared += 1
    return compared


def test_values_of_pydicoms_collection_are_those_pydicom_reads():
    assert assert_read_as_pydicom_does(COLLECTION) > 130


def test_values_of_recorded_files_are_those_pydicom_reads(shared_data: Path):
    assert assert_read_as_pydicom_does(shared_data) > 240


# --- preamble, meta header, transfer syntax (requirement 2)


@pytest.mark.parametrize(
    ("name", "code", "read"),
    [
        ("ExplVR_LitEndNoMeta.dcm", "NOT_DICOM", "NOT_AN_IMAGE"),
        ("ExplVR_BigEndNoMeta.dcm", "NOT_DICOM", "NOT_AN_IMAGE"),
        ("meta_missing_tsyntax.dcm", "WRONG_TRANSFER_SYNTAX", "UNREADABLE_FILE"),
        ("no_meta.dcm", "NOT_DICOM", "NOT_DICOM"),  # starts with a stray byte: nobody can tell
    ],
)
def test_file_without_meta_header_is_read_only_when_asked_to(name: str, code: str, read: str):
    file = COLLECTION / name
    assert [p.code for p in scan(file).problems] == [code]
    assert [p.code for p in scan(file, lenient=True).problems] == [read]


@pytest.mark.parametrize("name", ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm"])
def test_values_read_leniently_are_those_pydicom_reads_by_force(name: str):
    data = (COLLECTION / name).read_bytes()
    ours = read_elements(lambda size: data[:size], tags.HEADER, lenient=True)
    with quiet_pydicom():
        theirs = pydicom.dcmread(COLLECTION / name, force=True)
        assert list(differences(ours.values, theirs)) == []
    assert len(ours.values) > 4


def test_slice_without_preamble_has_the_pixels_of_the_same_with_it(tmp_path: Path):
    whole = write_slice(tmp_path / "whole", 3)
    data = whole.read_bytes()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    (tmp_path / "bare").write_bytes(data[start:])
    with pytest.raises(NotDicom, match="no DICM prefix"):
        load_volume(tmp_path / "bare")
    bare = load_volume(scan(tmp_path / "bare", lenient=True).default())
    assert np.array_equal(bare.voxels, load_volume(whole).voxels)


def with_syntax(file: Path, syntax: str) -> Path:
    """The same bytes under another transfer syntax."""
    data = pydicom.dcmread(file)
    was = str(data.file_meta.TransferSyntaxUID)
    raw = file.read_bytes()
    padded = [s.encode() + b"\0" * (len(s) % 2) for s in (was, syntax)]
    old, new = (struct.pack("<HH2sH", 2, 16, b"UI", len(p)) + p for p in padded)
    assert old in raw
    length = int.from_bytes(raw[140:144], "little") + len(new) - len(old)
    raw = raw.replace(old, new)
    file.write_bytes(raw[:140] + length.to_bytes(4, "little") + raw[144:])
    return file


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.2", "1.2.3.4", "nonsense"])
def test_wrong_transfer_syntax_is_an_error_that_names_the_tag(tmp_path: Path, syntax: str):
    write_slice(tmp_path / "right", 1)
    wrong = with_syntax(write_slice(tmp_path / "wrong", 2), syntax)
    study = scan(tmp_path)
    if syntax == "1.2.3.4":  # a private syntax of explicit VR: its header can be read
        assert study.problems == ()
        return
    if syntax == "nonsense":
        assert len(study.default().files) == 2
        return
    (problem,) = study.problems
    assert (problem.code, problem.subject) == ("WRONG_TRANSFER_SYNTAX", shown_name("wrong"))
    assert "(0002,0010)" in problem.message
    assert len(study.default().files) == 1
    assert len(scan(wrong, lenient=True).default().files) == 1


# --- limits (requirement 6)


def raw_file(body: bytes, syntax: str = EXPLICIT) -> bytes:
    """A file of hand-made bytes: CT class, then the body."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 16, b"UI", len(uid)) + uid
    ct = (STORAGE + "2").encode() + b"\0"
    first = struct.pack("<HH2sH", 8, 0x16, b"UI", len(ct)) + ct
    length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta))
    return b"\0" * 128 + b"DICM" + length + meta + first + body


def nested(depth: int, defined: bool) -> bytes:
    """Sequences in sequences; of the Shared Functional Groups, so that they are followed."""
    body = b""
    for _ in range(depth):
        if defined:
            item = struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body
            head = struct.pack("<HH2sHL", 0x5200, 0x9229, b"SQ", 0, len(item))
            body = head + item
        else:
            ends = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
            head = struct.pack("<HH2sHL", 0x5200, 0x9229, b"SQ", 0, 0xFFFFFFFF)
            body = head + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + body + ends
    return body


@pytest.mark.parametrize("defined", [True, False])
def test_deep_nesting_is_refused_before_anything_recurses(defined: bool):
    for depth, words in ((elements.MAX_DEPTH, "without"), (elements.MAX_DEPTH + 1, "32 deep")):
        (problem,) = read_header("deep", raw_file(nested(depth, defined))).problems
        assert words in problem.message
    opening = struct.pack(
        "<HH2sHLHHL", 0x5200, 0x9229, b"SQ", 0, 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1
    )
    (problem,) = read_header("abyss", raw_file(opening * 100_000)).problems
    assert "32 deep" in problem.message


def test_too_many_elements_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elements, "MAX_ELEMENTS", 10_000)
    one = struct.pack("<HH2sH", 9, 1, b"LO", 0)
    (problem,) = read_header("many", raw_file(one * 20_000)).problems
    assert "more than 10000 elements" in problem.message
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    many = struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF) + item * 20_000
    (problem,) = read_header("items", raw_file(many)).problems
    assert "more than 10000 elements" in problem.message


def test_header_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elements, "MAX_CPU_SECONDS", 0.0)
    one = struct.pack("<HH2sH", 9, 1, b"LO", 0)
    (problem,) = read_header("slow", raw_file(one * 5000)).problems
    assert "took more than" in problem.message


def test_header_without_end_is_refused_unread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elements, "MAX_HEADER_BYTES", 2**20)
    body = struct.pack("<HH2sHL", 9, 1, b"OB", 0, 2**24) + b"\0" * 2**24
    asked = []

    def read(size: int) -> bytes:
        asked.append(size)
        return raw_file(body)[:size]

    found = read_elements(read, tags.HEADER)
    assert found.flaw is not None
    assert "1 MiB before the pixel data" in str(found.flaw)
    assert max(asked) < 2**24


def test_deflated_header_is_inflated_no_further_than_needed(tmp_path: Path):
    whole = write_slice(tmp_path / "plain", 2)
    data = whole.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = machine.compress(data[start:] + b"\0" * 2**22) + machine.flush()
    syntax = "1.2.840.10008.1.2.1.99"
    meta = struct.pack("<HH2sH", 2, 16, b"UI", 22) + syntax.encode()
    head = b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta
    found = read_elements(lambda size: (head + packed)[:size], tags.HEADER)
    assert found.flaw is None
    plain = read_elements(lambda size: data[:size], tags.HEADER)
    assert found.values == plain.values


# --- which objects are pictures (10, 11, 12)


@pytest.mark.parametrize(
    ("sop_class", "word"),
    [
        (STORAGE + "88.11", "Basic Text SR"), (STORAGE + "88.59", "points at other images"),
        (STORAGE + "88.67", "dose record"), (STORAGE + "11.1", "how to show other images"),
        (STORAGE + "481.2", "computed dose"), (STORAGE + "481.3", "radiotherapy structures"),
        (STORAGE + "481.5", "radiotherapy structures"), (STORAGE + "66", "not reconstructed"),
        (STORAGE + "66.1", "frames of reference"), (STORAGE + "66.4", "mask of another series"),
        (STORAGE + "67", "units for other images"), (STORAGE + "9.1.1", "recorded signal"),
        (STORAGE + "104.1", "PDF document"), (STORAGE + "104.2", "CDA document"),
        (STORAGE + "104.3", "encapsulated object"), ("1.3.12.2.1107.5.9.1", "private SOP class"),
    ],
)  # fmt: skip
def test_object_that_is_no_picture_says_what_it_is(tmp_path: Path, sop_class: str, word: str):
    private = not sop_class.startswith(STORAGE)
    pixels = {"PixelData": None, "Rows": None, "Columns": None} if private else {}
    study = scan(write_slice(tmp_path / "it", 1, SOPClassUID=sop_class, **pixels))
    (problem,) = study.problems
    assert problem.code == "NOT_AN_IMAGE"
    assert word in problem.message
    assert study.series == ()


def test_documents_are_kept_to_be_read_as_the_report(tmp_path: Path):
    for number, kind in enumerate(("88.33", "104.1", "104.2", "88.59"), 1):
        write_slice(tmp_path / kind, number, SOPClassUID=STORAGE + kind)
    study = scan(tmp_path)
    assert {d.kind for d in study.documents} == {"SR", "PDF", "CDA"}
    assert all(d.study_uid == ROOT + "1" and d.open() == d.source for d in study.documents)


def test_modality_ct_makes_no_ct_of_a_captured_screen(tmp_path: Path):
    for number in range(1, 5):
        write_slice(tmp_path / f"{number}", number, SOPClassUID=SECONDARY)
    (series,) = scan(tmp_path).series
    assert not series.is_volume
    assert series.kind == "screen"


def test_absent_class_is_taken_from_the_meta_header(tmp_path: Path):
    file = write_slice(tmp_path / "it", 1, SOPClassUID=None)
    (series,) = scan(file).series
    assert series.files[0].sop_class == STORAGE + "2"


def test_private_class_with_pixels_is_a_plain_picture_and_never_hounsfield(tmp_path: Path):
    file = write_slice(tmp_path / "it", 1, SOPClassUID="1.3.46.670589.5.0.1")
    study = scan(file)
    assert [p.code for p in study.problems] == ["PRIVATE_SOP_CLASS"]
    assert not load_volume(study.default()).calibrated


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        ("ORIGINAL PRIMARY AXIAL", "image"), ("ORIGINAL PRIMARY LOCALIZER", "localizer"),
        ("DERIVED SECONDARY REF_SURVIEW", "localizer"), ("ORIGINAL PRIMARY SCOUT", "localizer"),
        ("DERIVED SECONDARY SCREEN_SAVE", "screen"), ("DERIVED SECONDARY DOSE_INFO", "dose page"),
        ("ORIGINAL PRIMARY MON", "bolus tracking"), ("DERIVED SECONDARY MIP", "reformat"),
        ("DERIVED SECONDARY AXIAL CT_SOM5_MPR", "reformat"), ("DERIVED PRIMARY MIN_IP", "reformat"),
        ("ORIGINAL PRIMARY AXIAL ADD", "image"), ("DERIVED PRIMARY COMPRESSED", "image"),
        ("ORIGINAL PRIMARY OTHER", "image"), ("ORIGINAL PRIMARY M ND MOSAIC", "image"), ("", "image"),
    ],
)  # fmt: skip
def test_image_type_tells_what_a_picture_shows(image_type: str, kind: str):
    assert kind_of(STORAGE + "2", tuple(image_type.split())) == kind


def test_screen_save_of_two_words_is_a_screen():
    assert kind_of(STORAGE + "2", ("DERIVED", "SECONDARY", "SCREEN SAVE")) == "screen"


# --- Enhanced objects (29)


def test_frames_in_any_order_form_one_sorted_volume(tmp_path: Path):
    heights = [6.0, 0.0, 4.0, 2.0, 8.0]
    (series,) = scan(write_enhanced(tmp_path / "it", heights)).series
    assert [f.position[2] for f in series.files] == sorted(heights)
    assert [f.frame for f in series.files] == [1, 3, 2, 0, 4]
    assert [f.rescale[1] for f in series.files] == [-1001.0, -1003.0, -1002.0, -1000.0, -1004.0]
    assert series.is_volume
    assert series.info.spacing_mm == (0.5, 0.5)
    assert series.info.slice_thickness_mm == 2.0


def test_concatenation_is_one_volume_however_it_is_cut(tmp_path: Path):
    for part, heights in enumerate(([4.0, 6.0], [0.0, 2.0], [8.0, 10.0]), 1):
        write_enhanced(
            tmp_path / f"{part}", heights, SOPInstanceUID=f"{ROOT}7.{part}", ConcatenationUID=ROOT + "8",
            InConcatenationNumber=part, InConcatenationTotalNumber=3,
        )  # fmt: skip
    (series,) = scan(tmp_path).series
    assert [f.position[2] for f in series.files] == [0, 2, 4, 6, 8, 10]
    assert series.problems == ()
    (tmp_path / "2").unlink()
    (partial,) = scan(tmp_path).series
    assert [p.code for p in partial.problems] == ["INCOMPLETE_CONCATENATION"]


def test_more_frames_than_described_are_told(tmp_path: Path):
    study = scan(write_enhanced(tmp_path / "it", [0.0, 2.0], NumberOfFrames=5))
    assert [p.code for p in study.problems] == ["FRAME_COUNT"]
    assert len(study.default().files) == 2


def test_recorded_enhanced_object_equals_its_single_frames_in_place(shared_data: Path):
    single = scan(shared_data / "chest_full_lowres").default()
    frames = scan(shared_data / "derived/chest_lowres_legacy_enhanced.dcm").default()
    assert np.allclose(
        [f.position for f in frames.files], [f.position for f in single.files], atol=1e-4
    )
    assert {f.sop_class for f in frames.files} == {ENHANCED_CT[:-1] + "2"}


# --- values that cannot be


@pytest.mark.parametrize(
    "attributes",
    [{"Rows": [4, 0]}, {"Rows": 0}, {"Columns": None}, {"PixelData": None}, {"NumberOfFrames": "9999999"}],
    ids=str,
)  # fmt: skip
def test_image_without_size_or_pixels_is_refused(tmp_path: Path, attributes: dict):
    with quiet_pydicom():
        file = write_slice(tmp_path / "it", 1, **attributes)
    (problem,) = scan(file).problems
    assert problem.code == "UNREADABLE_FILE"


@pytest.mark.parametrize(
    ("keyword", "value", "field"),
    [
        (0x00200032, b"nan\\0\\0 ", "position"), (0x00200032, b"1e400\\0\\0 ", "position"),
        (0x00200032, b"0\\0 ", "position"), (0x00200037, b"1\\0\\0\\1\\0\\0 ", "orientation"),
        (0x00200037, b"0\\0\\0\\0\\0\\0 ", "orientation"), (0x00280030, b"0\\1 ", "spacing"),
        (0x00280030, b"-1\\1", "spacing"), (0x00281053, b"0 ", "rescale"), (0x00281053, b"inf ", "rescale"),
    ],
)  # fmt: skip
def test_geometry_that_is_none_counts_as_absent(
    keyword: int, value: bytes, field: str, tmp_path: Path
):
    data = pydicom.dcmread(write_slice(tmp_path / "it"))
    raw = RawDataElement(pydicom.tag.Tag(keyword), "DS", len(value), value, 0, False, True)
    data[keyword] = raw
    data.save_as(tmp_path / "it")
    (series,) = scan(tmp_path / "it").series
    assert getattr(series.files[0], field) is None


def test_free_text_in_a_coded_value_is_not_told(tmp_path: Path):
    with quiet_pydicom():
        file = write_slice(
            tmp_path / "it", BodyPartExamined="Doe^Jane 1970!", ConvolutionKernel="for Jane Doe #7?",
            PatientSex="Jane", PatientAge="Jane",
        )  # fmt: skip
    assert "Jane" not in str(scan(file).default().info)
