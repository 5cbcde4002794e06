"""The processes that decode: killed when they hang, limited, started lean, spoken to in two ways."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from encoders.dicom import decoder, decoding, pixels
from encoders.dicom.decoding import Job
from encoders.dicom.pixels import read_pixels
from encoders.errors import UnreadableFile
from tests.encoders.dicom.test_pixels import RNG, VALUES, encoded, slices, write
from tests.waiting import wait_until


def test_decoder_that_does_not_answer_is_killed_and_the_next_frame_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped answers no frame; the clock ends it, a new one takes over."""
    monkeypatch.setattr(decoder, "_PATIENCE", 1)
    file = slices(write(tmp_path / "a.dcm", encoded(JPEG2000Lossless)))[0]
    process = decoder._Process()
    os.kill(process._process.pid, signal.SIGSTOP)
    job = Job(JPEG2000Lossless, 48, 40, 1, 16, 16, False, "MONOCHROME2")
    codestream = next(
        generate_frames(pydicom.dcmread(tmp_path / "a.dcm").PixelData, number_of_frames=1)
    )
    with pytest.raises(decoder.Hung, match="took too long"):
        process.ask(job, codestream, 0.5)
    assert not process.alive()
    assert np.array_equal(read_pixels(file).stored, VALUES)


def test_no_thread_stays_to_look_for_late_processes_when_none_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that looked for ever woke each second and met what other tests had put in place of time."""
    monkeypatch.setattr(decoder, "_LOOK_S", 0.01)
    file = slices(write(tmp_path / "a.dcm", encoded(JPEG2000Lossless)))[0]
    for _ in range(2):  # and the next frame is watched again
        assert np.array_equal(read_pixels(file).stored, VALUES)
        wait_until(
            lambda: all(thread.name != "dicom-watch" for thread in threading.enumerate()),
            "nobody watches",
        )


def test_decoding_that_uses_up_its_cpu_time_ends_inside_any_code() -> None:
    """Python cannot interrupt C code; the operating system can end its process."""
    script = "from encoders.dicom.decoding import limit_time; limit_time(0.2)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -decoder._TIME_IS_UP


def test_decoder_that_crashes_costs_only_its_frame(tmp_path: Path) -> None:
    file = slices(write(tmp_path / "a.dcm", encoded(JPEG2000Lossless)))[0]
    read_pixels(file)
    os.kill(decoder._pool()._idle[-1]._process.pid, signal.SIGKILL)
    decoder._pool()._idle[-1]._process.wait()
    with pytest.raises(UnreadableFile, match="its decoder crashed"):
        read_pixels(file)
    assert np.array_equal(read_pixels(file).stored, VALUES)


def test_a_decoders_process_has_no_more_memory_than_its_frame_needs() -> None:
    script = (
        "from encoders.dicom.decoding import limit_memory; limit_memory(2**26);"
        "\ntry:\n    bytes(2**28)\nexcept MemoryError:\n    print('limited')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "limited"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_a_decoders_process_keeps_the_memory_of_a_frame_for_the_next(tmp_path: Path) -> None:
    """Given back after each frame it was faulted in anew: 1,100 page faults, half the time."""
    values = RNG.integers(0, 4096, (512, 512)).astype(np.uint16)
    opened = pixels._open(slices(write(tmp_path / "a.dcm", encoded(JPEGLSLossless), values))[0])
    process = decoder._Process()
    status = Path(f"/proc/{process._process.pid}/stat")
    try:
        faults = []
        for _ in range(12):
            process.ask(opened.job, opened.codestreams[0], 60.0)
            faults.append(int(status.read_text().rpartition(")")[2].split()[7]))
    finally:
        process.close()
    assert (faults[-1] - faults[2]) / 9 < 100


def test_frame_is_the_same_through_memory_and_through_the_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame larger than the memory that both processes see, a smaller one, and no such memory."""
    large = RNG.integers(0, 4096, (2100, 2100)).astype(np.uint16)
    assert large.nbytes > decoding.SHARED_BYTES

    def nowhere(name: str) -> int:
        raise OSError("no such memory")

    for _ in range(2):
        decoder._pool.cache_clear()
        for number, values in enumerate((VALUES, large, VALUES)):
            file = slices(write(tmp_path / f"{number}.dcm", encoded(RLELossless), values))[0]
            first, second = read_pixels(file), read_pixels(file)
            assert np.array_equal(first.stored, values)
            assert np.array_equal(second.stored, values)
        monkeypatch.setattr(os, "memfd_create", nowhere, raising=False)
    decoder._pool.cache_clear()


def test_a_decoders_process_loads_nothing_of_ours() -> None:
    """A third of its start, which the first compressed frame waits for."""
    script = (
        "import runpy, sys\nsys.argv = ['', '-1']\n"
        f"runpy.run_path({decoding.__file__!r}, run_name='__main__')\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert 'pydicom' in loaded\n"
        "assert not loaded & {'encoders', 'multimodal', 'pipelines', 'torch'}\n"
    )
    subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, check=True)
