"""A de-identified copy of a study: same voxels, other names, readable by others, steady under a key."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest

from encoders.dicom import deidentify, load_volume, scan
from encoders.errors import InvalidOption, MissingInput, UnsafeOutput
from tests.encoders.dicom.planting import NEEDLES, WORD, plant_study
from tests.makers import write_blocks

KEY = b"a key of tests only, 32 bytes long"


def files_of(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def uids_of(folder: Path) -> set[str]:
    return {pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files_of(folder)}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A small volume whose files are full of identifiers, under a patient's name."""
    return plant_study(tmp_path, num_slices=6)


def test_no_planted_byte_is_in_any_file_or_name(study: Path, tmp_path: Path) -> None:
    done = deidentify(study, tmp_path / "out", key=KEY)
    assert done.num_written == 6
    for file in files_of(tmp_path / "out"):
        data = file.read_bytes()
        assert not [
            n for n in NEEDLES if n.encode() in data or n in str(file.relative_to(tmp_path / "out"))
        ]
        assert data[:128] == b"\0" * 128
    assert WORD not in str(done.to_dict())


def test_voxels_and_geometry_are_those_of_the_original(study: Path, tmp_path: Path) -> None:
    deidentify(study, tmp_path / "out", key=KEY)
    before, after = load_volume(study), load_volume(tmp_path / "out")
    assert np.array_equal(before.voxels, after.voxels)
    assert np.array_equal(before.affine, after.affine)
    assert before.digest == after.digest


@pytest.mark.parametrize(
    "name", ["abdomen_j2k", "chest_full_lowres", "head_tilt_irregular", "oblique",
             "enhanced/legacy_24x38x3/multiframe"]
)  # fmt: skip
def test_recorded_studies_keep_their_hash_and_other_readers_read_them(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    import SimpleITK

    deidentify(shared_data / name, tmp_path / "out", key=KEY, allow_burned_in=True)
    for before, after in zip(
        sorted(scan(shared_data / name).series, key=lambda s: (len(s.files), s.info.rows)),
        sorted(scan(tmp_path / "out").series, key=lambda s: (len(s.files), s.info.rows)),
        strict=True,
    ):
        assert load_volume(before).digest == load_volume(after).digest
    originals = {SimpleITK.Hash(SimpleITK.ReadImage(f)) for f in files_of(shared_data / name)}
    copies = {SimpleITK.Hash(SimpleITK.ReadImage(f)) for f in files_of(tmp_path / "out")}
    assert originals == copies
    assert all(
        pydicom.dcmread(f).PatientIdentityRemoved == "YES" for f in files_of(tmp_path / "out")
    )


def test_the_same_key_gives_the_same_names_and_another_key_others(
    study: Path, tmp_path: Path
) -> None:
    for name, key in (("a", KEY), ("b", KEY), ("c", b"another key, also long"), ("d", None)):
        deidentify(study, tmp_path / name, key=key)
    a, b, c, d = (uids_of(tmp_path / n) for n in "abcd")
    assert a == b
    assert not a & c
    assert not a & d
    assert [f.relative_to(tmp_path / "a") for f in files_of(tmp_path / "a")] == [
        f.relative_to(tmp_path / "b") for f in files_of(tmp_path / "b")
    ]
    first = pydicom.dcmread(files_of(tmp_path / "a")[0])
    assert first.PatientID == first.PatientName
    assert first.PatientID != pydicom.dcmread(files_of(tmp_path / "c")[0]).PatientID


def test_references_between_objects_still_meet(shared_data: Path, tmp_path: Path) -> None:
    """UIDs of plans, structures, segmentations and reports: one to one, and none of the old."""
    sources = files_of(shared_data / "non_images")
    deidentify(shared_data / "non_images", tmp_path / "out", key=KEY, clean=("structured-content",))
    by_class = {pydicom.dcmread(f).SOPClassUID: f for f in files_of(tmp_path / "out")}
    mapping: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        old, new = (
            pydicom.dcmread(source),
            pydicom.dcmread(by_class[pydicom.dcmread(source).SOPClassUID]),
        )
        _compare(old, new, mapping)
    assert len(mapping) > 100
    assert all(len(images) == 1 for images in mapping.values())
    assert len({next(iter(v)) for v in mapping.values()}) == len(mapping)
    assert all(next(iter(v)).startswith("2.25.") for v in mapping.values())
    copies = b"".join(f.read_bytes() for f in by_class.values())
    assert not [
        uid for uid in mapping if uid.encode() + b"\0" in copies or uid.encode() + b" " in copies
    ]


def _compare(old: pydicom.Dataset, new: pydicom.Dataset, mapping: dict[str, set[str]]) -> None:
    for element in old:
        if element.tag not in new:
            continue
        if element.VR == "SQ":
            for before, after in zip(element.value, new[element.tag].value, strict=False):
                _compare(before, after, mapping)
        elif element.VR == "UI" and not re.search("CodingScheme|SOPClass", element.keyword):
            mapping[str(element.value)].add(str(new[element.tag].value))


def test_one_bad_file_costs_only_itself_and_is_listed_by_no_identifying_name(
    study: Path, tmp_path: Path
) -> None:
    good = files_of(study)[0].read_bytes()
    (study / f"{WORD} cut.dcm").write_bytes(good[: len(good) // 3])
    (study / f"{WORD} text.dcm").write_text("no DICOM")
    (study / "again.dcm").write_bytes(good)
    (study / "empty.dcm").touch()
    done = deidentify(study, tmp_path / "out", key=KEY)
    assert done.num_written == 6
    assert sorted(p.code for p in done.skipped) == [
        "DUPLICATE_INSTANCE", "NOT_DICOM", "NOT_DICOM", "UNREADABLE_FILE"
    ]  # fmt: skip
    assert WORD not in str(done)


def test_hostile_files_are_left_out_and_their_neighbours_written(
    shared_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(shared_data / "derived" / "hostile", tmp_path / "in")
    write_blocks(tmp_path / "in" / "good", shape=(3, 8, 8))
    done = deidentify(tmp_path / "in", tmp_path / "out", key=KEY)
    assert done.num_written >= 3
    assert len(load_volume(tmp_path / "out").voxels) == 3
    assert {p.code for p in done.skipped} >= {"NOT_DICOM", "UNREADABLE_FILE"}


def test_output_never_mixes_with_input_or_overwrites(study: Path, tmp_path: Path) -> None:
    for out in (study, study / "deep" / "er", study.parent):
        with pytest.raises(UnsafeOutput, match="within each other"):
            deidentify(study, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UnsafeOutput, match="not empty"):
        deidentify(study, tmp_path / "full")
    (tmp_path / "link").symlink_to(study)
    with pytest.raises(UnsafeOutput, match="within each other"):
        deidentify(study, tmp_path / "link" / "out")
    with pytest.raises(InvalidOption, match="5 bytes"):
        deidentify(study, tmp_path / "out", key=b"short")
    with pytest.raises(MissingInput, match="does not exist"):
        deidentify(tmp_path / f"{WORD} nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_at_risk_stay_out_unless_allowed_and_say_so(
    shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "head_phantom_study" / "S4010"
    done = deidentify(source, tmp_path / "out", key=KEY)
    assert done.num_written == 0
    assert [p.code for p in done.skipped].count("BURNED_IN_RISK") == 6
    done = deidentify(source, tmp_path / "all", key=KEY, allow_burned_in=True)
    assert done.num_written == 6
    assert "BURNED_IN_ALLOWED" in {p.code for p in done.warnings}
    assert {pydicom.dcmread(f).BurnedInAnnotation for f in files_of(tmp_path / "all")} == {"YES"}


def test_a_copy_claims_nothing_of_pixels_that_nobody_looked_at(study: Path, tmp_path: Path) -> None:
    """Burned In Annotation NO would be a promise; the source's own word may stay."""
    said = files_of(study)[0]
    data = pydicom.dcmread(said)
    data.BurnedInAnnotation = "NO"
    data.save_as(said)
    for file in files_of(study)[1:]:
        other = pydicom.dcmread(file)
        other.pop("BurnedInAnnotation", None)
        other.save_as(file)
    deidentify(study, tmp_path / "out", key=KEY)
    words = [pydicom.dcmread(f).get("BurnedInAnnotation") for f in files_of(tmp_path / "out")]
    assert sorted(map(str, words)) == ["NO", *["None"] * 5]


def test_text_of_a_known_device_is_blanked_where_asked(tmp_path: Path) -> None:
    from pydicom.pixels import set_pixel_data

    write_blocks(tmp_path / "in", shape=(1, 8, 8))
    file = files_of(tmp_path / "in")[0]
    data = pydicom.dcmread(file)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "US", "Philips", "iU22"
    pixels = np.full((600, 800, 3), 200, np.uint8)
    set_pixel_data(data, pixels, "RGB", 8)
    data.save_as(file)
    done = deidentify(tmp_path / "in", tmp_path / "out", key=KEY, clean=("pixels",))
    out = pydicom.dcmread(files_of(tmp_path / "out")[0])
    assert "BURNED_IN_MASKED" in {p.code for p in done.warnings}
    assert out.BurnedInAnnotation == "NO"
    assert not out.pixel_array[:59].any()
    assert (out.pixel_array[59:] == 200).all()
    assert "113101" in {c.CodeValue for c in out.DeidentificationMethodCodeSequence}
    refused = deidentify(tmp_path / "in", tmp_path / "none", key=KEY)
    assert [p.code for p in refused.skipped] == ["BURNED_IN_RISK"]


def test_a_head_scan_warns_of_the_face_and_overlays_are_gone(
    shared_data: Path, tmp_path: Path
) -> None:
    done = deidentify(shared_data / "head_tilt_irregular", tmp_path / "out", key=KEY)
    assert [p.code for p in done.warnings] == ["RECOGNISABLE_FACE"]
    done = deidentify(shared_data / "overlay", tmp_path / "o", key=KEY, allow_burned_in=True)
    assert "OVERLAYS_REMOVED" in {p.code for p in done.warnings}
    copy = pydicom.dcmread(files_of(tmp_path / "o")[0])
    assert not [t for t in copy.keys() if t.group & 0xFF00 == 0x6000]  # noqa: SIM118


def test_every_transfer_syntax_is_written_as_it_was(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "transfer_syntaxes_ct"
    for number, file in enumerate(files_of(source)):
        deidentify(file, tmp_path / str(number), key=KEY)
        before, after = pydicom.dcmread(file), pydicom.dcmread(files_of(tmp_path / str(number))[0])
        assert before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID
        assert before.PixelData == after.PixelData, file.name
