"""Inputs of every kind give the same slices, and nothing an archive says leads outside of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from encoders.dicom import intake, load_volume, scan
from encoders.errors import MissingInput, NotDicom, UnreadableFile
from tests.encoders.dicom.slices import write_slice, write_stack


def codes(study) -> list[str]:
    return [p.code for p in study.problems]


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return write_stack(tmp_path / "stack", range(1, 7))


def pack(files: Path, target: Path) -> Path:
    """Every file of a folder in one archive, of the kind its name says."""
    if target.suffix == ".zip":
        method = zipfile.ZIP_STORED if "stored" in target.name else zipfile.ZIP_DEFLATED
        method = zipfile.ZIP_LZMA if "lzma" in target.name else method
        with zipfile.ZipFile(target, "w", method) as archive:
            for file in files.rglob("*"):
                archive.write(file, f"a/{file.name}")
    else:
        with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as archive:
            archive.add(files, "a")
    return target


@pytest.mark.parametrize("name", ["s.zip", "stored.zip", "s.tar", "s.tar.gz"])
def test_every_archive_gives_the_volume_of_its_folder(stack: Path, tmp_path: Path, name: str):
    wanted = load_volume(stack)
    found = load_volume(pack(stack, tmp_path / name))
    assert np.array_equal(found.voxels, wanted.voxels)
    assert np.array_equal(found.affine, wanted.affine)


def test_members_are_not_unpacked_until_they_are_asked_for(stack: Path, tmp_path: Path):
    for name in ("s.zip", "s.tar", "s.tar.gz"):
        series = scan(pack(stack, tmp_path / name)).default()
        assert all(isinstance(f.source, intake.Packed) for f in series.files)


def test_missing_path_is_named(tmp_path: Path):
    with pytest.raises(MissingInput, match="'nowhere'"):
        scan(tmp_path / "nowhere")


def test_foreign_files_get_one_reason_each_and_cost_the_study_nothing(stack: Path):
    (stack / "empty").touch()
    (stack / "notes.txt").write_text("hello " * 100)
    (stack / "inner.zip").write_bytes(b"PK\3\4" + b"\0" * 200)
    (stack / "cut").write_bytes(sorted(stack.iterdir())[0].read_bytes()[:400])
    study = scan(stack)
    assert len(study.default().files) == 6
    assert {p.subject: p.code for p in study.problems} == {
        "empty": "NOT_DICOM", "notes.txt": "NOT_DICOM", "inner.zip": "NOT_DICOM",
        "cut": "UNREADABLE_FILE",
    }  # fmt: skip


# --- archive limits (requirement 4)


def zip_of(target: Path, names: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return target


def tar_of(target: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as archive:
        for entry, data in entries:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return target


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "/etc/evil.dcm", "a/../../evil.dcm", "C:/evil.dcm"]
)
@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tar.gz"])
def test_member_path_that_leaves_the_archive_is_left_out(
    stack: Path, tmp_path: Path, name: str, kind: str
):
    data = next(stack.iterdir()).read_bytes()
    target = tmp_path / kind
    if target.suffix == ".zip":
        zip_of(target, {name: data, "ok.dcm": data})
    else:
        tar_of(target, [(tarfile.TarInfo(name), data), (tarfile.TarInfo("ok.dcm"), data)])
    study = scan(target)
    assert codes(study) == ["UNSAFE_PATH"]
    assert [f.name for f in study.default().files] == ["ok.dcm"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_links_and_devices_in_a_tar_are_left_out(tmp_path: Path, kind: bytes, name: str):
    entry = tarfile.TarInfo("link.dcm")
    entry.type, entry.linkname = kind, "/etc/passwd"
    study = scan(tar_of(tmp_path / name, [(entry, b"")]))
    assert codes(study) == ["UNSAFE_MEMBER"]


def test_zip_member_of_another_method_is_left_out_by_name(stack: Path, tmp_path: Path):
    """LZMA and bzip2 inflate a few bytes to any size before zipfile looks at the limit."""
    study = scan(pack(stack, tmp_path / "lzma.zip"))
    assert {(p.code, "than deflate" in p.message) for p in study.problems} == {
        ("UNSAFE_MEMBER", True)
    }


def test_link_in_a_zip_is_left_out(tmp_path: Path):
    study = scan(zip_of(tmp_path / "x.zip", {"link.dcm": b"/etc/passwd"}, mode=0o120777))
    assert codes(study) == ["UNSAFE_MEMBER"]


@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tar.gz"])
def test_too_many_members_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "MAX_MEMBERS", 5)
    files = tmp_path / "files"
    write_stack(files, range(1, 9))
    with pytest.raises(UnreadableFile, match="refused as unsafe"):
        scan(pack(files, tmp_path / kind))


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_bomb_is_refused_by_its_ratio_before_it_is_unpacked(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake, "SMALL", 2**20)
    zeros = b"\0" * (2 * 2**20)
    target = tmp_path / kind
    if target.suffix == ".zip":
        zip_of(target, {"zeros.dcm": zeros})
    else:
        tar_of(target, [(tarfile.TarInfo("zeros.dcm"), zeros)])
    with pytest.raises(
        UnreadableFile, match=r"[12] MiB or more, \d+ times its size: refused as unsafe"
    ):
        scan(target)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_tar_header_that_unpacks_without_end_is_refused(tmp_path: Path, name: str):
    """A PAX header may claim any length, and tarfile reads it into memory."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**31
    target = tmp_path / name
    data = header.tobuf() + b"\0" * (4 * 2**20)
    target.write_bytes(gzip.compress(data, 1) if target.suffix == ".gz" else data)
    with pytest.raises(UnreadableFile, match="broken tar"):
        scan(target)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody whom permissions bind, even if root runs the tests, as in a container."""
    who = os.geteuid()
    try:
        if who == 0:
            os.seteuid(65534)  # nobody
        yield
    finally:
        os.seteuid(who)


def test_file_that_may_not_be_opened_is_named():
    with TemporaryDirectory() as folder:  # pytest's own is closed to all but root
        Path(folder).chmod(0o755)
        file = write_slice(Path(folder) / "it.dcm")
        assert scan(file).series  # and what is imported when needed is
        file.chmod(0)
        with unprivileged(), pytest.raises(UnreadableFile, match="check its permissions"):
            scan(file)


def test_members_of_a_tar_gz_can_be_read_long_after_and_in_any_order(stack: Path, tmp_path: Path):
    series = scan(pack(stack, tmp_path / "s.tar.gz")).default()
    (tmp_path / "s.tar.gz").unlink()
    wanted = {f.name: f.read_bytes() for f in stack.iterdir()}
    found = [f.open().read() for f in reversed(series.files)]
    assert sorted(found) == sorted(wanted.values())


def test_broken_archives_are_named_and_what_came_before_is_read(stack: Path, tmp_path: Path):
    big = {"Rows": 64, "Columns": 64, "PixelData": [os.urandom(8192) for _ in range(6)]}
    whole = pack(write_stack(tmp_path / "big", range(1, 7), **big), tmp_path / "s.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:40_000])
    study = scan(tmp_path / "cut.tar.gz")
    assert codes(study) == ["TRUNCATED_ARCHIVE"]
    assert 0 < len(study.default().files) < 6
    with tarfile.open(pack(tmp_path / "big", tmp_path / "plain.tar")) as archive:
        third = archive.getmembers()[3].offset  # the folder is a member too
    (tmp_path / "cut.tar").write_bytes((tmp_path / "plain.tar").read_bytes()[:third])
    study = scan(tmp_path / "cut.tar")
    assert (codes(study), len(study.default().files)) == (["TRUNCATED_ARCHIVE"], 2)
    (tmp_path / "cut.zip").write_bytes(pack(stack, tmp_path / "s.zip").read_bytes()[:300])
    with pytest.raises(NotDicom, match="an archive"):
        scan(tmp_path / "cut.zip").default()
    (tmp_path / "noise.gz").write_bytes(b"\x1f\x8b" + os.urandom(64))
    with pytest.raises(UnreadableFile, match=r"file-\w+\.gz. is a broken tar"):
        scan(tmp_path / "noise.gz")


@pytest.mark.parametrize("name", ["s.zip", "stored.zip"])
def test_changed_bit_in_a_zip_costs_its_slice_and_is_never_shown(
    stack: Path, tmp_path: Path, name: str
):
    """Pixels carry no checksum of their own; the archive's tells."""
    target = pack(stack, tmp_path / name)
    with zipfile.ZipFile(target) as archive:
        entry = archive.infolist()[2]
    data = bytearray(target.read_bytes())
    data[entry.header_offset + 30 + len(entry.filename) + entry.compress_size - 6] ^= 4
    target.write_bytes(data)
    volume = load_volume(target)
    assert len(volume.voxels) == 5
    assert "CORRUPT_SLICE" in {p.code for p in volume.problems}


def test_member_that_lies_about_its_size_costs_only_itself(stack: Path, tmp_path: Path):
    """The central directory claims fewer bytes than the member unpacks to."""
    files = sorted(stack.iterdir())
    target = zip_of(tmp_path / "x.zip", {f.name: f.read_bytes() for f in files[:2]})
    data = bytearray(target.read_bytes())
    at = data.rindex(b"PK\1\2") + 24  # uncompressed size of the last entry
    data[at : at + 4] = (300).to_bytes(4, "little")
    target.write_bytes(data)
    study = scan(target)
    assert len(study.default().files) == 1
    assert codes(study) == ["UNREADABLE_FILE"]


# --- media directories (requirements 1 and 9)


def write_dicomdir(target: Path, references: list[list[str]]) -> Path:
    from pydicom.config import disable_value_validation
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.3", ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    records = []
    with disable_value_validation():
        for parts in references:
            record = Dataset()
            record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", parts
            records.append(record)
        data.DirectoryRecordSequence = records
        data.save_as(target, enforce_file_format=True)
    return target


def test_directory_gives_the_files_it_names_and_no_others(tmp_path: Path):
    write_stack(tmp_path / "DICOM/S1", range(1, 5))
    files = sorted((tmp_path / "DICOM/S1").iterdir())
    references = [["DICOM", "S1", f.name] for f in files[:3]] + [["DICOM", "S1", "LOST"]]
    study = scan(write_dicomdir(tmp_path / "DICOMDIR", references))
    assert {f.source.name for f in study.default().files} == {f.name for f in files[:3]}
    assert [(p.code, p.subject) for p in study.problems] == [("MISSING_FILE", "LOST")]


@pytest.mark.parametrize(
    "parts", [["..", "secret"], ["a", "..", "..", "secret"], ["/etc/secret"], ["C:", "secret"], ["a/../../secret"]]
)  # fmt: skip
def test_directory_reference_that_leaves_its_folder_is_not_followed(
    tmp_path: Path, parts: list[str]
):
    write_slice(tmp_path / "secret")
    (tmp_path / "disc").mkdir()
    study = scan(write_dicomdir(tmp_path / "disc/DICOMDIR", [parts]))
    assert study.series == ()
    assert codes(study) == ["UNSAFE_PATH"]


def test_directory_reference_through_a_link_is_not_followed(tmp_path: Path):
    write_slice(tmp_path / "secret")
    (tmp_path / "disc").mkdir()
    (tmp_path / "disc/IM1").symlink_to(tmp_path / "secret")
    study = scan(write_dicomdir(tmp_path / "disc/DICOMDIR", [["IM1"]]))
    assert study.series == ()
    assert codes(study) == ["UNSAFE_PATH"]


def test_directory_finds_files_a_copy_put_in_lower_case_or_without_top_folder(tmp_path: Path):
    write_slice(tmp_path / "disc/s1/im1", 1)
    write_slice(tmp_path / "disc/s1/im2", 2)
    study = scan(write_dicomdir(tmp_path / "disc/DICOMDIR", [["S1", "IM1"], ["TOP", "S1", "IM2"]]))
    assert len(study.default().files) == 2


def test_recorded_directory_of_directories_gives_the_whole_study(shared_data: Path):
    """A Philips disc: its DIRFILE names one DIRFILE per series, under a folder since renamed."""
    by_directory = scan(shared_data / "head_phantom_study/DIRFILE")
    by_folder = scan(shared_data / "head_phantom_study")
    assert {s.key for s in by_directory.series} == {s.key for s in by_folder.series}
    assert len(by_directory.default().files) == 28


# --- hostile files, all at once

_SCAN_ALL = """
import json, sys
from tests.makers import peak_mib
from pathlib import Path
from encoders.dicom import scan
from encoders.errors import CrossReadError
codes = {}
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        codes[file.name] = [p.code for p in scan(file).problems]
    except CrossReadError as error:
        codes[file.name] = [type(error).__name__]
peak = peak_mib()
print(json.dumps([codes, peak]))
"""


def test_hostile_files_are_scanned_within_500_megabytes(shared_data: Path, tmp_path: Path):
    for file in (shared_data / "derived/hostile").iterdir():
        shutil.copy(file, tmp_path)
    zeros = gzip.compress(b"\0" * (70 * 2**20), 9)
    (tmp_path / "bomb.tar.gz").write_bytes(zeros)
    (tmp_path / "noise.tar").write_bytes(b"x" * 257 + b"ustar" + os.urandom(4096))
    done = subprocess.run(
        [sys.executable, "-c", _SCAN_ALL, str(tmp_path)], capture_output=True, text=True,
        check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    told, peak_mb = json.loads(done.stdout)
    assert peak_mb < 500
    assert set(told) == {p.name for p in tmp_path.iterdir()}
    assert told["nested_sequences.dcm"] == told["truncated.dcm"] == ["UNREADABLE_FILE"]
    assert told["frames_lie.dcm"] == ["UNREADABLE_FILE"]
    assert told["bomb.tar.gz"] == told["zip_bomb.zip"] == told["noise.tar"] == ["UnreadableFile"]
    assert told["zip_slip.zip"] == ["UNSAFE_PATH"]
    assert told["tar_symlink.tar"] == ["UNSAFE_MEMBER"]
