"""Thousands of broken headers: a scan never crashes or hangs, and tells no geometry that is none."""

from __future__ import annotations

import contextlib
import random
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.dicom import Study, describe, scan, tags
from encoders.dicom.grouping import heights_of
from encoders.dicom.header import Header, read_header
from encoders.dicom.series import series_of
from encoders.errors import NotDicom, UnreadableFile
from encoders.features import Problem
from tests.encoders.dicom.slices import write_stack
from tests.encoders.dicom.test_intake import pack, write_dicomdir

COLLECTION = Path(pydicom.__file__).parent / "data/test_files"
CODES = {"NOT_DICOM", "NOT_AN_IMAGE", "UNREADABLE_FILE", "WRONG_TRANSFER_SYNTAX", "PRIVATE_SOP_CLASS",
         "FRAME_COUNT"}  # fmt: skip
INTERESTING = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"SQ\0\0\xff\xff\xff\xff",
               b"nan", b"1e999", b"-", b"\\", b"UN", b"\xe0\x7f\x10\x00", b"\x00\x80\x00\x00")  # fmt: skip


@cache
def seeds() -> list[bytes]:
    """The first 16 KiB of pydicom's files, small ones first."""
    files = sorted(
        (p for p in COLLECTION.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    return [data for p in files if (data := p.read_bytes()[: 2**14])[128:132] == b"DICM"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, repeated or put in; mostly behind the preamble."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(min(120, len(out)), len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            piece = rng.choice(INTERESTING)
            out[at : at + len(piece)] = piece
        elif kind == 2:
            out[at:at] = rng.choice(INTERESTING)
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((8, 64, 512))]
        elif at > 140:
            del out[at:]
    return bytes(out)


def assert_sound(header: Header, name: str = "fuzzed") -> None:
    """What is told is finite, within sane sizes, and has its reason; nothing else may come out."""
    assert header.slices or header.problems
    for problem in header.problems:
        assert problem.code in CODES
        assert problem.subject == name
    for file in header.slices:
        assert 0 < file.rows < 65536
        assert 0 < file.columns < 65536
        assert file.stored.frames >= 1
        for vector, size in (
            (file.position, 3),
            (file.orientation, 6),
            (file.spacing, 2),
            (file.rescale, 2),
        ):
            assert vector is None or (len(vector) == size and np.isfinite(vector).all())
        if file.orientation:
            assert np.linalg.norm(np.cross(file.orientation[:3], file.orientation[3:])) > 0.09
        assert file.spacing is None or min(file.spacing) > 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_mutated_headers_give_slices_or_a_reason(seed: int):
    """Two hundred mutations an example: twenty thousand a run."""
    rng = random.Random(seed)
    for _ in range(200):
        data = mutated(rng.choice(seeds()), rng)
        assert_sound(read_header("fuzzed", data, lenient=rng.random() < 0.3))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_mutated_files_together_give_sorted_series_and_a_description(seed: int):
    rng = random.Random(seed)
    family = [s for s in seeds() if b"1.2.840.10008.5.1.4.1.1.2\0" in s] or seeds()
    base = rng.choice(family)
    headers = [read_header(f"{i}", mutated(base, rng)) for i in range(20)]
    headers.append(read_header("whole", base))
    series = series_of([f for h in headers for f in h.slices])
    assert sum(len(s.files) for s in series) <= sum(len(h.slices) for h in headers)
    for one in series:
        assert one.reason
        if one.is_volume:
            heights = heights_of(one.files)
            assert np.isfinite(heights).all()
            assert (np.diff(heights) > 0).all()
    told = describe(Study(series, tuple(p for h in headers for p in h.problems)))
    assert len(told["series"]) == len(series)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("archives")
    stack = write_stack(folder / "stack", range(1, 4))
    names = [["STACK", file.name] for file in stack.iterdir()]
    packed = [pack(stack, folder / name) for name in ("a.zip", "stored.zip", "a.tar", "a.tar.gz")]
    return [*packed, write_dicomdir(folder / "DICOMDIR", names)]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_mutated_archives_are_read_or_refused(archives: list[Path], seed: int):
    rng = random.Random(seed)
    target = rng.choice(archives)
    broken = target.with_name("broken" if target.suffix else "DICOMDIR2")
    for _ in range(10):
        data = bytearray(target.read_bytes())
        for _ in range(rng.choice((1, 2, 5))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        broken.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        with contextlib.suppress(UnreadableFile, NotDicom):
            assert scan(broken).default().reason


def test_every_cut_of_a_header_gives_a_reason():
    data = (COLLECTION / "CT_small.dcm").read_bytes()
    for length in range(0, 3000, 7):
        header = read_header("cut", data[:length])
        assert header.slices == ()
        (problem,) = header.problems
        assert problem.code in {"NOT_DICOM", "UNREADABLE_FILE", "WRONG_TRANSFER_SYNTAX"}


@pytest.mark.parametrize("tag", sorted(tags.HEADER - tags.SEQUENCES), ids=lambda t: f"{t:08x}")
def test_any_value_of_any_element_read_gives_slices_or_a_reason(tag: int):
    """Every element in turn, with values that are no numbers, no text, too long, empty or binary."""
    from pydicom.dataelem import RawDataElement
    from pydicom.filebase import DicomBytesIO
    from pydicom.tag import Tag

    data = pydicom.dcmread(COLLECTION / "CT_small.dcm")
    for value in (
        b"",
        b"\0",
        b"nan ",
        b"\xff" * 6,
        b"\\\\\\\\",
        b"9" * 400,
        b"-1",
        b"1e308\\1e308\\1e308 ",
    ):
        where = data.file_meta if tag >> 16 == 2 else data
        where[Tag(tag)] = RawDataElement(Tag(tag), "UN" if tag >> 16 == 2 else "LO", len(value), value,
                                         0, False, True)  # fmt: skip
        buffer = DicomBytesIO()
        try:
            data.save_as(buffer)
        except (ValueError, TypeError, AttributeError, KeyError):  # pydicom will not write it
            continue
        assert_sound(read_header("fuzzed", buffer.getvalue()))


def test_problem_is_what_comes_of_a_reader_that_fails():
    class Gone(bytes):
        def __getitem__(self, key):
            raise OSError("gone")

    header = read_header("gone", Gone(b"x"))
    assert header.problems == (Problem("UNREADABLE_FILE", "cannot be opened (OSError)", "gone"),)
