"""Hostile and broken files: refused or partly read in little time and memory, neighbours unharmed."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from encoders.dicom import load_volume, scan
from encoders.dicom.header import read_header
from encoders.dicom.pixels import Pixels, iter_pixels, read_pixels
from encoders.dicom.silence import quiet_pydicom
from encoders.errors import InputError
from tests.encoders.dicom.slices import SECONDARY, write_enhanced, write_slice
from tests.encoders.dicom.test_pixels import VALUES, encoded, write

# what must be in the reason, or None where a part of it may be read
REASONS = {
    "deflate_bomb.dcm": "unpack to more than",
    "degenerate_geometry.dcm": None,
    "empty.dcm": "empty",
    "frames_lie.dcm": "1000000 frames",
    "j2k_siz_mismatch.dcm": "60000x60000x1 codestream but the attributes declare 64x64x1",
    "nested_sequences.dcm": "nested",
    "not_dicom.dcm": "no DICM prefix",
    "rle_claims_8GB.dcm": "8.0 GiB",
    "short_pixels.dcm": "524288 bytes of pixels but holds 307200",
    "tar_symlink.tar": "link",
    "truncated.dcm": "without pixel data",
    "zip_bomb.zip": "256 MiB",
    "zip_slip.zip": "524288 bytes of pixels but holds 307200",
}
_SCRIPT = """
import json, os, sys
from tests.makers import peak_mib
from encoders.dicom import load_volume
from encoders.errors import InputError
import pydicom.pixels
for name in sys.argv[1:]:
    if child := os.fork():
        _, status, used = os.wait4(child, 0)
        print(json.dumps([status, used.ru_utime + used.ru_stime]), flush=True)
        continue
    try:
        told = [p.code for p in load_volume(name).problems]
    except InputError as error:
        told = str(error)
    print(json.dumps([told, peak_mib()]), flush=True)
    sys.exit()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Small files that claim much, and what must be said of them."""
    from pydicom.encaps import encapsulate, generate_frames

    folder = tmp_path_factory.mktemp("made")
    blank = {}
    for side in (16384, 8192):
        path = write_slice(folder / f"blank{side}", PixelRepresentation=0, Rows=side, Columns=side)
        header = pydicom.dcmread(path)
        header.PixelData = bytes(2 * side * side)
        header.compress(JPEGLSLossless, encoding_plugin="pyjpegls")
        header.save_as(path)
        blank[side] = path
    frames = pydicom.dcmread(write_enhanced(folder / "many", range(100)))
    frames.NumberOfFrames = 40_000
    frames.PerFrameFunctionalGroupsSequence = list(frames.PerFrameFunctionalGroupsSequence) * 400
    frames.save_as(folder / "many")
    one = pydicom.dcmread(blank[8192])
    stream = next(generate_frames(one.PixelData, number_of_frames=1))
    for k in range(8):
        one.ImagePositionPatient, one.SOPInstanceUID = [0, 0, k], f"1.2.{k}"
        one.PixelData = encapsulate([stream])
        (folder / "stack").mkdir(exist_ok=True)
        one.save_as(folder / f"stack/{k}")
    colour = write_slice(
        folder / "trailing", SOPClassUID=SECONDARY, PhotometricInterpretation="RGB", BitsAllocated=8,
        SamplesPerPixel=3, PlanarConfiguration=0, BitsStored=8, HighBit=7, PixelRepresentation=0,
        PixelData=bytes(48),
    )  # fmt: skip
    with colour.open("ab") as file:  # three million elements behind the pixels
        file.write(b"\xe1\x7f\x10\x00LO\x02\x00AA" + b"\xe1\x7f\x01\x10LO\x00\x00" * 3_000_000)
    return {
        colour: "UNCALIBRATED",  # read without them
        blank[16384]: "declare 512 MiB of pixels; refused",
        folder / "many": "describes 40000 frames",
        folder / "stack": "declare 1024 MiB of pixels; refused",
    }


def test_hostile_files_are_refused_in_two_seconds_and_500_mb(
    shared_data: Path, made: dict[Path, str]
) -> None:
    """Each in a process of its own: its CPU time after the imports, decoders included, and its
    peak memory, imports included."""
    folder = shared_data / "derived/hostile"
    assert {f.name for f in folder.iterdir()} == set(REASONS)
    cases = {folder / name: reason for name, reason in REASONS.items()} | made
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT, *map(str, cases)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for (path, reason), (told, peak_mb), (status, seconds) in zip(
        cases.items(), lines[::2], lines[1::2], strict=True
    ):
        if reason is None:
            assert {"UNCALIBRATED", "NO_GEOMETRY"} <= set(told)
        else:
            assert reason in told, path.name
        assert status == 0, path.name
        assert seconds < 2, path.name
        assert peak_mb < 500, path.name


def test_hostile_files_hurt_no_neighbour(
    shared_data: Path, phantom_series: Path, tmp_path: Path
) -> None:
    wanted = load_volume(phantom_series).digest
    shutil.copytree(phantom_series, tmp_path / "study")
    for name in REASONS:
        if name.endswith(".dcm"):
            shutil.copy(shared_data / "derived/hostile" / name, tmp_path / "study" / f"zz_{name}")
    series = next(s for s in scan(tmp_path / "study").series if len(s.files) == 24)
    assert load_volume(series).digest == wanted


def _collection() -> list[Path]:
    root = Path(pydicom.__file__).parent / "data"
    skipped = {".py", ".pyc", ".json", ".txt", ".md", ".hashes"}
    return sorted(f for f in root.rglob("*") if f.is_file() and f.suffix not in skipped)


def test_pydicoms_own_files_give_pydicoms_values_or_a_reason() -> None:
    """Every image it ships, against its own decoders; the few that differ are refused by name."""
    from pydicom.pixels.utils import pixel_array

    told: Counter[str] = Counter()
    for path in _collection():
        header = read_header(path.name, path)
        if not header.slices:
            assert header.problems or header.document, path.name
            told["no image"] += 1
            continue
        found = next(iter_pixels(header.slices[:1]))
        if isinstance(found, InputError):
            assert len(str(found)) > 20
            told["refused"] += 1
            continue
        with quiet_pydicom():
            theirs = pixel_array(pydicom.dcmread(path, force=True), raw=True, index=0)
        assert np.array_equal(found.stored, theirs), path.name
        told["equal"] += 1
    assert told["equal"] >= 85
    assert told["refused"] <= 5  # 12-bit JPEG (2), broken J2K (1), short and long pixel data (2)


def test_pydicoms_files_give_its_rescaled_values() -> None:
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    compared = 0
    for path in _collection():
        study = read_header(path.name, path)
        if not study.slices or study.slices[0].stored.samples > 1 or study.slices[0].frame:
            continue
        try:
            ours = load_volume(scan(path).series[0]).voxels
        except InputError:
            continue
        with quiet_pydicom(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, force=True)
            if "PerFrameFunctionalGroupsSequence" in header or "RescaleSlope" not in header:
                continue
            theirs = apply_modality_lut(pixel_array(header, raw=True, index=0), header)
        assert np.allclose(ours[0], theirs, rtol=1e-6), path.name
        compared += 1
    assert compared >= 10


@cache
def originals() -> dict[str, bytes]:
    """One small CT slice uncompressed and in three lossless codecs, as files."""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for syntax in ("", RLELossless, JPEGLSLossless, JPEG2000Lossless):
            change = encoded(syntax) if syntax else lambda header: None
            out[syntax] = write(Path(folder) / "a.dcm", change).read_bytes()
    return out


# transfer syntax -> plugins of pydicom to compare with: codecs of their own where there are any,
# and none that a broken codestream crashes (gdcm's JPEG)
OTHERS = {
    RLELossless: ("pydicom",), JPEGLSLossless: ("gdcm",), JPEG2000Lossless: ("pillow", "pylibjpeg"),
    JPEG2000: ("pillow", "pylibjpeg"), JPEGBaseline8Bit: ("pillow",),
    ExplicitVRLittleEndian: ("",), ImplicitVRLittleEndian: ("",),
}  # fmt: skip


@cache
def seeds() -> list[tuple[str, bytes, np.ndarray]]:
    """The slice in each codec eight times, and pydicom's small images in those: name, bytes, pixels."""
    found = 8 * [(name, data, VALUES) for name, data in originals().items()]
    for path in _collection():
        data = path.read_bytes()[:100_001]
        for file in read_header(path.name, data).slices[:1]:
            pixels = next(iter_pixels([file]))
            if len(data) <= 100_000 and isinstance(pixels, Pixels) and pixels.syntax in OTHERS:
                found.append((path.name, data, pixels.stored))
    return found


def _by_other_decoders(data: bytes) -> list[np.ndarray]:
    """What pydicom makes of a file up to its pixels, with each plugin that does not refuse it."""
    from pydicom.filereader import read_partial
    from pydicom.pixels.utils import pixel_array

    found = []
    with quiet_pydicom():
        header = read_partial(BytesIO(data), lambda tag, *_: tag > 0x7FE00010, force=True)
        header.setdefault("SamplesPerPixel", 1)  # as we do; the next says nothing of values
        if header.SamplesPerPixel == 1:
            header.PhotometricInterpretation = "MONOCHROME2"
        for plugin in OTHERS[header.file_meta.TransferSyntaxUID]:
            with contextlib.suppress(Exception):  # it raises anything on broken data
                found.append(pixel_array(header, raw=True, index=0, decoding_plugin=plugin))
    return found


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed in, cut from or put into the pixel data; now and then into the header too.

    Not into the offset table: pydicom believes it even where there is one frame; we need it not.
    """
    start = max(data.rfind(b"\xe0\x7f\x10\x00"), data.rfind(b"\x7f\xe0\x00\x10"))
    length = int.from_bytes(data[start + 16 : start + 20], "little")
    is_compressed = data[start + 8 : start + 12] == b"\xff" * 4
    table = range(start + 20, start + 20 + length) if is_compressed else ()
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(start if rng.random() < 0.8 else 132, len(out))
        if at in table:
            continue
        kind = rng.randrange(8)
        if kind < 5:
            out[at] = rng.randrange(256)
        elif kind == 5:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 6:
            del out[at : at + rng.choice((1, 2, 50))]
        else:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 50)))
    return bytes(out[: rng.randrange(start, len(out))] if rng.random() < 0.1 else out)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_mutated_pixels_are_right_or_as_another_decoder_has_them_or_refused(seed: int) -> None:
    """Twenty mutations an example, three thousand a run: no crash, no hang, no silent wrong pixel.

    No codec here has a checksum over its values. So a changed value may pass for one, but what
    comes out is what the bytes say: another implementation of the codec finds the same.
    """
    rng = random.Random(seed)
    for number in range(20):
        name, whole, right = rng.choice(seeds())
        data = _mutated(whole, rng)
        for file in read_header("fuzzed", data).slices[:1]:
            found = next(iter_pixels([file]))
            assert isinstance(found, Pixels | InputError)
            if isinstance(found, Pixels) and not np.array_equal(found.stored, right):
                others = _by_other_decoders(data)
                same = any(np.array_equal(found.stored, other) for other in others)
                assert same, (seed, number, name)


def test_no_cut_of_a_codestream_passes_for_the_whole(tmp_path: Path) -> None:
    """Cut at 25 places each, with its length put right, no lossless codec gives pixels."""
    from pydicom.encaps import encapsulate, generate_frames

    for name in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        path = tmp_path / "a.dcm"
        path.write_bytes(originals()[name])
        header = pydicom.dcmread(path)
        stream = next(generate_frames(header.PixelData, number_of_frames=1))
        for count in np.linspace(1, len(stream) - 12, 25).astype(int):
            header.PixelData = encapsulate([stream[:count]])
            header.save_as(path)
            with pytest.raises(InputError, match=r"broken pixel data|data .*; export it again"):
                read_pixels(scan(path).series[0].files[0])
