"""Compressed frames are decoded in processes that may be killed, so that no codestream can hang or
crash the reader.

A frame and its attributes in, an array out; what happens between is `decoding`'s. The processes are
started when first needed, reused, and end with their parent.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from encoders.dicom import decoding
from encoders.dicom.codestream import Malformed
from encoders.dicom.decoding import SHARED_BYTES, Body, Channel, Decoded, Job

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


class Hung(Malformed):
    """A codestream that used up its time."""


def submit(job: Job, codestream: bytes) -> Future[Decoded]:
    """`decode_frame` in another process; the future raises `Malformed` where it failed there.

    The limit is one of CPU time, so that a busy machine refuses nothing: 1 s and 0.5 s for each
    MiB of the frame, some fifty times what is usual.
    """
    limit_s = 1 + 0.5 * job.num_bytes / 2**20
    return _pool().threads.submit(_pool().decode, job, codestream, limit_s)


class _Process:
    """One decoding process and the way to talk to it."""

    def __init__(self) -> None:
        path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        with _shared_memory() as memory:
            self._process = subprocess.Popen(
                [sys.executable, "-P", decoding.__file__, str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codecs print there; never shown, it may quote the file
                pass_fds=[memory] if memory >= 0 else (),
                env={**os.environ, "PYTHONPATH": path, **_ENVIRONMENT},
            )
            assert self._process.stdin
            assert self._process.stdout
            self._channel = Channel(self._process.stdout, self._process.stdin, memory)
        self._late = False
        self._exchange(self._channel.receive, _START_SECONDS)  # until it has its libraries

    def ask(self, job: Job, codestream: bytes, limit_s: float) -> Decoded:
        def exchange() -> tuple[dict[str, Any], Body]:
            self._channel.send({"limit_s": limit_s, **vars(job)}, codestream)
            return self._channel.receive()

        reply, data = self._exchange(exchange, _PATIENCE * limit_s)
        if "error" in reply:
            raise Malformed(f"cannot be decoded ({reply['error']})")
        array = np.frombuffer(data, reply["dtype"]).reshape(reply["shape"])
        return array.copy(), str(reply["photometric"])

    def _exchange(
        self, exchange: Callable[[], tuple[dict[str, Any], Body]], limit_s: float
    ) -> tuple[dict[str, Any], Body]:
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
        for pipe in (self._channel.sink, self._channel.source):
            with contextlib.suppress(OSError):  # what was still to be written to a dead process
                pipe.close()
        self._process.wait()


@contextlib.contextmanager
def _shared_memory() -> Iterator[int]:
    """A descriptor of memory for a process and this one, until both have it; -1 where there is none."""
    memory = -1
    with contextlib.suppress(AttributeError, OSError):  # Linux has it
        memory = os.memfd_create("dicom-frame")
        os.ftruncate(memory, SHARED_BYTES)
    try:
        yield memory
    finally:
        if memory >= 0:
            os.close(memory)


class _Watch:
    """Ends the processes that do not answer in time: a thread for all, a timer each cost too much.

    The thread ends at the first look that finds nothing to wait for.
    """

    def __init__(self) -> None:
        self._due: dict[_Process, float] = {}
        self._lock = threading.Lock()
        self._looking = False

    def expect(self, process: _Process, limit_s: float) -> None:
        with self._lock:
            if not self._looking:
                threading.Thread(target=self._look, name="dicom-watch", daemon=True).start()
                self._looking = True
            self._due[process] = time.monotonic() + limit_s

    def forget(self, process: _Process) -> None:
        with self._lock:
            self._due.pop(process, None)

    def _look(self) -> None:
        looking = True
        while looking:
            time.sleep(_LOOK_S)
            with self._lock:
                for process, due in self._due.items():
                    if time.monotonic() > due:
                        process.overdue()
                looking = self._looking = bool(self._due)


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
