"""Stored values of one file: limits before decoding, every transfer syntax, bits, frames."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from encoders.dicom import decoder, decoding, pixels, scan
from encoders.dicom.codestream import Malformed, check_rle, j2k_shape, jpeg_shape
from encoders.dicom.decoding import Job
from encoders.dicom.header import SliceFile
from encoders.dicom.pixels import inflate, iter_pixels, read_pixels
from encoders.dicom.write import write_ct_series
from encoders.errors import UnreadableFile, UnsupportedTransferSyntax

RNG = np.random.default_rng(5)
VALUES = RNG.integers(0, 4096, (48, 40)).astype(np.uint16)
ENCODERS = {RLELossless: "pylibjpeg", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}
Change = Callable[[Any], None]


def write(path: Path, change: Change = lambda header: None, values: np.ndarray = VALUES) -> Path:
    """One CT slice holding `values`, changed before it is saved."""
    write_ct_series(np.zeros((1, *values.shape), np.int16), np.eye(4), path.parent / "plain")
    header = pydicom.dcmread(path.parent / "plain/slice_0000.dcm")
    header.PixelData = values.tobytes()
    change(header)
    header.save_as(path)
    return path


def slices(path: Path) -> tuple[SliceFile, ...]:
    return scan(path).series[0].files


def encoded(syntax: str) -> Change:
    return lambda header: header.compress(syntax, encoding_plugin=ENCODERS[syntax])


def sets(**values: Any) -> Change:
    def change(header: Any) -> None:
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


@pytest.mark.parametrize("syntax", ENCODERS)
def test_lossless_frame_comes_back_as_it_was(tmp_path: Path, syntax: str) -> None:
    found = read_pixels(slices(write(tmp_path / "a.dcm", encoded(syntax)))[0])
    assert np.array_equal(found.stored, VALUES)
    assert found.syntax == syntax


def test_every_recorded_frame_has_the_recorded_hash(shared_data: Path) -> None:
    """16 syntaxes, fragments without offset table, RLE, palette, colour: hashes of other decoders."""
    import hashlib

    expected = json.loads((shared_data / "ref/expected_pixels.json").read_text())
    compared = refused = 0
    for name, wanted in expected.items():
        file = shared_data / name
        if not file.is_file() or not scan(file).series:
            continue
        syntax = wanted["ts"]
        files = [replace(slices(file)[0], frame=k) for k in range(wanted.get("frames") or 1)]
        if syntax.endswith((".4.51", ".4.53", ".4.55")):
            with pytest.raises(UnsupportedTransferSyntax, match="no installed decoder"):
                read_pixels(files[0])
            refused += 1
            continue
        found = [p.stored for p in iter_pixels(files) if isinstance(p, pixels.Pixels)]
        assert len(found) == len(files), name
        if not wanted["decoders_agree"] or "sha256_stored_values" not in wanted:
            continue  # JPEG baseline: decoders round differently
        stack = found[0] if len(found) == 1 else np.stack(found)
        dtype = stack.dtype.newbyteorder("<")
        digest = hashlib.sha256(np.ascontiguousarray(stack, dtype).tobytes()).hexdigest()
        if stack.ndim == len(wanted["shape"]) and "bits12" not in name:
            assert digest == wanted["sha256_stored_values"], name
            compared += 1
    assert compared >= 20
    assert refused >= 3


@pytest.mark.parametrize(
    ("count", "words"), [(3800, "3840 bytes of pixels but holds 3800"), (4000, "but holds 4000")]
)
def test_short_and_long_pixel_data_are_refused_with_both_numbers(
    tmp_path: Path, count: int, words: str
) -> None:
    data = VALUES.tobytes()
    file = write(tmp_path / "a.dcm", sets(PixelData=(data + data)[:count]))
    with pytest.raises(UnreadableFile, match=words):
        read_pixels(slices(file)[0])


def test_odd_pixel_data_may_have_its_pad_byte(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (5, 5)).astype(np.uint8)
    change = sets(BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=grey.tobytes() + b"\0")
    change_file = write(tmp_path / "a.dcm", change, grey)
    assert np.array_equal(read_pixels(slices(change_file)[0]).stored, grey)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"Rows": 60000, "Columns": 60000}, r"6\.7 GiB of pixels a frame; refused"),
        ({"BitsStored": 20}, "BitsStored is missing or not within 1..16"),
        ({"BitsStored": None}, "BitsStored is missing"),
        (
            {"PixelRepresentation": None},
            "PixelRepresentation is missing",
        ),  # signed or not: no guess
        ({"HighBit": 3}, "HighBit 3 does not fit 16 bits stored"),
        ({"BitsAllocated": 24, "BitsStored": 16}, "BitsAllocated is 24"),
        ({"NumberOfFrames": "99999"}, "declares 383996160 bytes of pixels but holds 3840"),
    ],
)
def test_impossible_attributes_are_refused_before_decoding(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    file = write(tmp_path / "a.dcm", sets(**values))
    with pytest.raises(UnreadableFile, match=words):
        read_pixels(slices(file)[0])


@pytest.mark.parametrize(
    ("syntax", "rows"),
    [(JPEGLSLossless, 47), (JPEGLSLossless, 49), (JPEG2000Lossless, 47), (RLELossless, 500)],
)
def test_codestream_of_another_size_than_the_attributes_is_refused(
    tmp_path: Path, syntax: str, rows: int
) -> None:
    def change(header: Any) -> None:
        encoded(syntax)(header)
        header.Rows = rows

    file = write(tmp_path / "a.dcm", change)
    with pytest.raises(UnreadableFile, match=r"\.dcm'.*(declare 40x|RLE)"):
        read_pixels(slices(file)[0])


@pytest.mark.parametrize("syntax", ENCODERS)
def test_codestream_that_is_cut_short_is_refused_with_file_and_codec(
    tmp_path: Path, syntax: str
) -> None:
    def change(header: Any) -> None:
        encoded(syntax)(header)
        whole = next(generate_frames(header.PixelData, number_of_frames=1))
        header.PixelData = encapsulate([whole[: len(whole) // 2]])

    file = write(tmp_path / "a.dcm", change)
    codec = pydicom.uid.UID(syntax).name.split(" ")[0]
    with pytest.raises(UnreadableFile, match=rf"\.dcm'.*{codec}"):
        read_pixels(slices(file)[0])


def test_more_frames_than_there_is_data_are_refused(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        encoded(JPEGLSLossless)(header)
        header.NumberOfFrames = "3"

    found = slices(write(tmp_path / "a.dcm", change))[0]
    with pytest.raises(UnreadableFile, match=r"3 frames|broken pixel data"):
        read_pixels(found)


def test_broken_slices_give_errors_in_their_place(tmp_path: Path) -> None:
    write(tmp_path / "0.dcm", encoded(JPEG2000Lossless))
    write(tmp_path / "1.dcm", sets(PixelData=b"short!"))
    write(tmp_path / "2.dcm", encoded(RLELossless))
    files = [slices(tmp_path / f"{k}.dcm")[0] for k in (0, 1, 2)]
    found = list(iter_pixels([files[0], files[1], files[2], files[0]]))
    assert isinstance(found[1], UnreadableFile)
    assert all(np.array_equal(found[k].stored, VALUES) for k in (0, 2, 3))  # type: ignore[union-attr]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 11), (10, 13), (12, 15), (16, 15)])
def test_junk_around_the_stored_bits_is_dropped(
    tmp_path: Path, signed: bool, bits: int, high: int
) -> None:
    low, count = (-(2 ** (bits - 1)) if signed else 0), 2**bits
    wanted = RNG.integers(low, low + count, (8, 8)).astype(np.int32)
    shift = high - bits + 1
    junk = RNG.integers(0, 2**16, (8, 8)) & ~(((1 << bits) - 1) << shift)
    data = (((wanted & (count - 1)) << shift) | junk).astype(np.uint16)
    change = sets(BitsStored=bits, HighBit=high, PixelRepresentation=int(signed))
    found = read_pixels(slices(write(tmp_path / "a.dcm", change, data))[0])
    assert np.array_equal(found.stored, wanted)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("big", [False, True])
def test_every_width_and_byte_order_gives_the_same_numbers(
    tmp_path: Path, bits: int, big: bool
) -> None:
    wanted = RNG.integers(0, 2**bits, (6, 7), dtype=np.uint64)
    data = wanted.astype(f"{'>' if big else '<'}u{bits // 8}")

    path = write(
        tmp_path / "a.dcm", sets(BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1), data
    )
    if big:
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        header["PixelData"].VR = "OB" if bits == 8 else "OW"
        pydicom.dcmwrite(path, header, implicit_vr=False, little_endian=False, force_encoding=True)
    assert np.array_equal(read_pixels(slices(path)[0]).stored, wanted)


@pytest.mark.parametrize(
    ("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")]
)
def test_float_pixels_are_read(tmp_path: Path, keyword: str, dtype: str) -> None:
    wanted = RNG.normal(size=(4, 6)).astype(dtype)

    def change(header: Any) -> None:
        del header.PixelData, header.BitsStored, header.HighBit, header.PixelRepresentation
        header.BitsAllocated = 8 * wanted.dtype.itemsize
        setattr(header, keyword, wanted.tobytes())

    assert np.array_equal(
        read_pixels(slices(write(tmp_path / "a.dcm", change, wanted))[0]).stored, wanted
    )


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_by_pixel_and_by_plane_are_one(tmp_path: Path, planar: int) -> None:
    colour = RNG.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    data = colour.transpose(2, 0, 1) if planar else colour
    change = sets(
        SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar, Rows=5,
        Columns=6, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=data.tobytes(),
    )  # fmt: skip
    assert np.array_equal(read_pixels(slices(write(tmp_path / "a.dcm", change))[0]).stored, colour)


def test_frames_of_one_file_are_told_apart(tmp_path: Path) -> None:
    frames = RNG.integers(0, 4096, (5, 34, 36)).astype(np.uint16)
    for name, change in (("raw", None), ("rle", RLELossless), ("j2k", JPEG2000Lossless)):

        def many(header: Any, syntax: str | None = change) -> None:
            sets(NumberOfFrames="5", Rows=34, Columns=36, PixelData=frames.tobytes())(header)
            if syntax:
                encoded(syntax)(header)

        file = slices(write(tmp_path / f"{name}.dcm", many, frames[0]))[0]
        order = [3, 0, 4, 1, 2]
        found = list(iter_pixels([replace(file, frame=k) for k in order]))
        assert [np.array_equal(p.stored, frames[k]) for p, k in zip(found, order, strict=True)] == [
            True
        ] * 5  # type: ignore[union-attr]
        with pytest.raises(UnreadableFile, match="has 5 frames, not 6"):
            read_pixels(replace(file, frame=5))


def test_file_changed_since_the_scan_is_not_read_from_the_old_place(tmp_path: Path) -> None:
    files = [slices(write(tmp_path / f"{k}.dcm"))[0] for k in (0, 1)]
    write(tmp_path / "1.dcm", sets(ImageComments="something longer than what stood here before"))
    found = list(iter_pixels(files))
    assert np.array_equal(found[1].stored, VALUES)  # type: ignore[union-attr]


def test_deflated_data_is_unpacked_up_to_a_limit() -> None:
    import zlib

    def deflated(data: bytes) -> bytes:
        machine = zlib.compressobj(9, zlib.DEFLATED, -15)
        return machine.compress(data) + machine.flush()

    assert inflate(deflated(b"abc" * 1000)) == b"abc" * 1000
    with pytest.raises(UnreadableFile, match="more than 67108864; refused as unsafe"):
        inflate(deflated(bytes(80 * 2**20)))
    with pytest.raises(UnreadableFile, match="cut short"):
        inflate(deflated(os.urandom(1000))[:500])


def test_offset_table_longer_than_the_file_costs_only_its_slice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", encoded(JPEGLSLossless))
    data = path.read_bytes()
    table = data.rindex(b"\xe0\x7f\x10\x00") + 16
    path.write_bytes(data[:table] + (65540).to_bytes(4, "little") + data[table + 4 :])
    with pytest.raises(UnreadableFile, match=r"broken pixel data .*error"):
        read_pixels(slices(path)[0])


@pytest.mark.parametrize("runs", [b"\x81\x05" * 16, b"\xc1\x05" * 31], ids=["by one", "at the end"])
def test_rle_that_makes_more_than_the_frame_costs_only_its_slice(
    tmp_path: Path, runs: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """The decoder, written in Rust, panics: no `Exception`, and it writes a trace to stderr."""
    starts = [2, 64, 64 + len(runs)]
    stream = b"".join(n.to_bytes(4, "little") for n in starts).ljust(64, b"\0") + 2 * runs

    def change(header: Any) -> None:
        header.compress(RLELossless, encoding_plugin="pylibjpeg")
        header.PixelData = encapsulate([stream])

    with pytest.raises(
        UnreadableFile, match=r"\.dcm'.*RLE Lossless data cannot be decoded \(Panic"
    ):
        read_pixels(slices(write(tmp_path / "a.dcm", change))[0])
    assert capfd.readouterr() == ("", "")


def test_series_whose_codestreams_hang_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = slices(write(tmp_path / "a.dcm", encoded(JPEG2000Lossless)))[0]

    def hang(job: Job, codestream: bytes) -> Any:
        raise decoder.Hung("cannot be decoded: it took too long")

    asked = []
    monkeypatch.setattr(pixels, "submit", lambda *a: asked.append(1) or hang(*a))
    found = list(iter_pixels([file] * 40))
    assert all(isinstance(p, UnreadableFile) for p in found)
    assert "slices before it hung" in str(found[-1])
    assert len(asked) < 20


def test_the_licence_of_no_decoder_is_copyleft() -> None:
    assert set(decoding.PLUGINS.values()) == {
        "gdcm",
        "pillow",
        "pyjpegls",
        "pylibjpeg",
    }
    with_libjpeg = [uid for uid, plugin in decoding.PLUGINS.items() if plugin == "pylibjpeg"]
    assert not [uid for uid in with_libjpeg if uid[-2:] in ("50", "51", "57", "70", "80", "81")]


def test_headers_of_codestreams_are_read_as_their_standards_say() -> None:
    sof = b"\xff\xd8\xff\xe0\0\4ab\xff\xc3\0\x0b\x10" + b"\0\x18\0\x28\1\1\x11\0"
    shape = jpeg_shape(sof + b"\xff\xda" + b"\1\2\xff\0" + b"\xff\xd9\0")
    assert (shape.rows, shape.columns, shape.samples, shape.precision) == (24, 40, 1, 16)
    for broken, words in ((sof, "no EOI"), (b"\xff\xd8\xff\xda" + bytes(20), "no frame header"),
                          (b"ab", "SOI"), (b"\xff\xd8" + bytes(20), "no marker")):  # fmt: skip
        with pytest.raises(Malformed, match=words):
            jpeg_shape(broken)
    with pytest.raises(Malformed, match="SOC and SIZ"):
        j2k_shape(b"\xff\x4f" + bytes(60))
    with pytest.raises(Malformed, match="less than an RLE header"):
        check_rle(b"ab", 4, 4, 2)
    with pytest.raises(Malformed, match="7 RLE segments where the attributes need 2"):
        check_rle((7).to_bytes(4, "little") + bytes(100), 4, 4, 2)


def test_tile_part_of_a_wrong_length_is_told(tmp_path: Path) -> None:
    """Psot that leads astray, as scanners of one maker write it: a reason instead of a guess."""
    file = write(tmp_path / "a.dcm", encoded(JPEG2000Lossless))
    data = bytearray(next(generate_frames(pydicom.dcmread(file).PixelData, number_of_frames=1)))
    at = data.index(b"\xff\x90") + 6
    data[at : at + 4] = (10**6).to_bytes(4, "big")
    with pytest.raises(Malformed, match=r"tile part of 1000000 bytes \(Psot\)"):
        j2k_shape(bytes(data))


def test_value_that_loss_lifts_beyond_the_bits_stored_does_not_wrap(tmp_path: Path) -> None:
    """Found by mutation: 16 bits in the codestream, 12 stored; 4,100 became 4, metal became air."""
    values = np.where(np.indices((64, 64)).sum(0) // 7 % 2, 4095, 0).astype(np.uint16)

    def change(header: Any) -> None:
        header.compress(JPEG2000, encoding_plugin="pylibjpeg", j2k_cr=[20])
        header.BitsStored, header.HighBit = 12, 11

    path = write(tmp_path / "a.dcm", change, values)
    found = read_pixels(slices(path)[0]).stored
    assert found.max() > 4095  # so it does overshoot
    with_pydicom = pydicom.dcmread(path).pixel_array
    assert np.array_equal(found, with_pydicom)


def test_native_colours_without_planar_configuration_are_not_guessed_at(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header.SamplesPerPixel, header.PhotometricInterpretation = 3, "RGB"
        header.BitsAllocated = header.BitsStored = 8
        header.HighBit = 7
        header.Rows, header.Columns, header.PixelData = 4, 4, bytes(48)

    with pytest.raises(UnreadableFile, match="PlanarConfiguration is missing"):
        read_pixels(slices(write(tmp_path / "a.dcm", change))[0])


def test_subsampled_jpeg_2000_is_refused(tmp_path: Path) -> None:
    """Found by mutation: with XRsiz = 50 openjpeg stretched one column over the whole slice."""
    path = write(tmp_path / "a.dcm", encoded(JPEG2000Lossless))
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\x4f\xff\x51") + 43] = 50
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match="fewer samples than pixels"):
        read_pixels(slices(path)[0])
