"""Compressed frames are decoded in processes that may be killed, so that no codestream can hang or
crash the reader.

A frame and its attributes in, an array out, through pydicom's decoders; never its GPL plugin. The
processes are started when first needed, reused, and end with their parent.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from encoders.dicom.codestream import Malformed

# transfer syntax -> the decoder plugin of pydicom that reads it; what is not here is refused
_JPEG, _JPEG_LS, _J2K = "1.2.840.10008.1.2.4.", ("80", "81"), ("90", "91", "201", "202", "203")
RLE = "1.2.840.10008.1.2.5"
PLUGINS = {
    RLE: "pylibjpeg",
    _JPEG + "50": "pillow",
    _JPEG + "51": "pillow",  # 8 bits only; nothing with a permissive licence reads 12
    _JPEG + "57": "gdcm",
    _JPEG + "70": "gdcm",
    **{_JPEG + last: "pyjpegls" for last in _JPEG_LS},
    **{_JPEG + last: "pylibjpeg" for last in _J2K},
}
MAY_LOSE = frozenset(_JPEG + last for last in ("50", "51", "81", "91", "203"))
IS_J2K = frozenset(_JPEG + last for last in _J2K)
Decoded = tuple[np.ndarray, str]  # a frame and its photometric meaning
NUM_PROCESSES = max(min(os.cpu_count() or 1, 4), 1)
_START_SECONDS = 120  # by the clock, to load a process's libraries
_PATIENCE = 30  # seconds by the clock for one of CPU time, for systems that cannot limit that
_LOOK_S = 1.0  # between two looks at who is late
_TIME_IS_UP = int(getattr(signal, "SIGPROF", 0))
# glibc gives a frame's memory back after each and faults it in anew: nearly half the time of a
# JPEG lossless frame. Other C libraries do not know these names.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
# pydicom loads a download client where there is one: a tenth of a process's memory, a fifth of its start
_CHILD = """
import sys
sys.modules["requests"] = None
from encoders.dicom.decoder import serve
serve()
"""
_SPARE_BYTES = 384 * 2**20  # what a decoder may need beside 16 times the frame


class Hung(Malformed):
    """A codestream that used up its time."""


@dataclass(frozen=True)
class Job:
    """The attributes a decoder needs beside the codestream (PS3.3 C.7.6.3)."""

    syntax: str
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    planar: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of the decoded frame."""
        return self.rows * self.columns * self.samples * ((self.bits_allocated + 7) // 8)


def decode_frame(job: Job, codestream: bytes) -> Decoded:
    """One frame, `[rows, columns]` or `[rows, columns, samples]`, and its photometric meaning.

    In this process, which a broken codestream may hang or end; raises whatever the decoder does.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    options: dict[str, Any] = {
        "rows": job.rows,
        "columns": job.columns,
        "samples_per_pixel": job.samples,
        "number_of_frames": 1,
        "bits_allocated": job.bits_allocated,
        "bits_stored": job.bits_stored,
        "pixel_representation": int(job.signed),
        "photometric_interpretation": job.photometric,
        "planar_configuration": job.planar,
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,  # done by the caller, for native pixels too
    }
    source, plugin = encapsulate([codestream], has_bot=False), PLUGINS[job.syntax]
    array, meta = get_decoder(job.syntax).as_array(
        source, index=0, raw=True, decoding_plugin=plugin, **options
    )
    return array, str(meta.get("photometric_interpretation", job.photometric))


def submit(job: Job, codestream: bytes) -> Future[Decoded]:
    """`decode_frame` in another process; the future raises `Malformed` where it failed there.

    The limit is one of CPU time, so that a busy machine refuses nothing: 1 s and 0.5 s for each
    MiB of the frame, some fifty times what is usual.
    """
    limit_s = 1 + 0.5 * job.num_bytes / 2**20
    return _pool().threads.submit(_pool().decode, job, codestream, limit_s)


class _Process:
    """One decoding process and its two pipes."""

    def __init__(self) -> None:
        path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs print there; never shown, it may quote the file
            env={**os.environ, "PYTHONPATH": path, **_ENVIRONMENT},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        self._late = False
        self._exchange(lambda: _receive(self._out), _START_SECONDS)  # until it has its libraries

    def ask(self, job: Job, codestream: bytes, limit_s: float) -> Decoded:
        def exchange() -> tuple[dict[str, Any], bytes]:
            _send(self._in, {"limit_s": limit_s, **asdict(job)}, codestream)
            return _receive(self._out)

        reply, data = self._exchange(exchange, _PATIENCE * limit_s)
        if "error" in reply:
            raise Malformed(f"cannot be decoded ({reply['error']})")
        array = np.frombuffer(data, reply["dtype"]).reshape(reply["shape"])
        return array, str(reply["photometric"])

    def _exchange(
        self, exchange: Callable[[], tuple[dict[str, Any], bytes]], limit_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """What comes back; a process that does not answer in time, by the clock, is ended."""
        watch = _watch()
        watch.expect(self, limit_s)
        try:
            return exchange()
        except (OSError, EOFError) as error:
            self.close()
            if self._late or self._process.returncode == -_TIME_IS_UP:
                raise Hung("cannot be decoded: it took too long") from error
            raise Malformed("cannot be decoded: its decoder crashed") from error
        finally:
            watch.forget(self)

    def overdue(self) -> None:
        """It did not answer in time: end it."""
        self._late = True
        self._process.kill()

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):  # what was still to be written to a dead process
                pipe.close()
        self._process.wait()


class _Watch:
    """Ends the processes that do not answer in time: a thread for all, a timer each cost too much."""

    def __init__(self) -> None:
        self._due: dict[_Process, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._look, name="dicom-watch", daemon=True).start()

    def expect(self, process: _Process, limit_s: float) -> None:
        with self._lock:
            self._due[process] = time.monotonic() + limit_s

    def forget(self, process: _Process) -> None:
        with self._lock:
            self._due.pop(process, None)

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            with self._lock:
                for process, due in self._due.items():
                    if time.monotonic() > due:
                        process.overdue()


@cache
def _watch() -> _Watch:
    return _Watch()


class _Pool:
    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(NUM_PROCESSES, "dicom-decoder")
        self._idle: list[_Process] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def decode(self, job: Job, codestream: bytes, limit_s: float) -> Decoded:
        with self._lock:
            process = self._idle.pop() if self._idle else None
        process = process or _Process()
        try:
            return process.ask(job, codestream, limit_s)
        finally:
            if process.alive():
                with self._lock:
                    self._idle.append(process)

    def close(self) -> None:
        if os.getpid() != self._owner:  # a forked child must not end its parent's processes
            return
        self.threads.shutdown(cancel_futures=True)
        for process in self._idle:
            process.close()


@cache
def _pool() -> _Pool:
    pool = _Pool()
    atexit.register(pool.close)
    return pool


if hasattr(os, "register_at_fork"):  # nor write into its pipes
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=_watch.cache_clear)


def serve() -> None:
    """The decoding process: frames from standard input to standard output until it closes."""
    from pydicom.pixels.decoders.base import get_decoder

    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a codec that prints must not garble replies
    for syntax in PLUGINS:
        get_decoder(syntax)
    _send(sink, {}, b"")
    while True:
        try:
            request, codestream = _receive(source)
        except EOFError:
            return
        limit_s, job = request.pop("limit_s"), Job(**request)
        _limit_memory(_SPARE_BYTES + 16 * job.num_bytes)
        _limit_time(limit_s)
        try:
            array, photometric = decode_frame(job, codestream)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # all a codec raises, a panic of Rust code too: by its kind
            _limit_time(0)
            _send(sink, {"error": type(error).__name__}, b"")
            continue
        _limit_time(0)
        array = np.ascontiguousarray(array)
        reply = {"shape": array.shape, "dtype": array.dtype.str, "photometric": photometric}
        _send(sink, reply, array.data.cast("B"))


def _limit_time(cpu_s: float) -> None:
    """After so much CPU time the process ends, whatever C code it is in; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _limit_memory(num_bytes: int) -> None:
    """From now on this process may grow by so much; where there is no such limit, it has none."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + num_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        return


def _send(pipe: IO[bytes], head: dict[str, Any], body: bytes | memoryview) -> None:
    text = json.dumps(head).encode()
    pipe.write(len(text).to_bytes(4, "little") + len(body).to_bytes(8, "little") + text)
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Raises EOFError where the other side is gone."""
    sizes = _exactly(pipe, 12)
    head, body = int.from_bytes(sizes[:4], "little"), int.from_bytes(sizes[4:], "little")
    return json.loads(_exactly(pipe, head)), _exactly(pipe, body)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError("the other process is gone")
    return data
