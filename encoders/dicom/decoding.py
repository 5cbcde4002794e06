"""The program of a decoding process: one frame after another and its attributes in, arrays out.

It is run as a file, not as a part of its package, so that a process loads pydicom's decoders and
nothing of ours. Knows which plugin reads what, never the GPL one; no files, no pool, no errors.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from dataclasses import dataclass
from functools import cache
from typing import IO, Any

import numpy as np

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
Body = bytes | memoryview
SHARED_BYTES = 8 * 2**20  # beyond that a frame's way through the pipe is the least of its cost
_SPARE_BYTES = 384 * 2**20  # what a decoder may need beside 16 times the frame
# pydicom loads a download client and its progress bar where there are such: a fifth of the start
_NOT_NEEDED = ("requests", "tqdm")


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


class Channel:
    """One end of a conversation: heads go through pipes as JSON, a body through memory that both
    ends see, or behind its head where it does not fit or there is none (`memory` is -1)."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], memory: int) -> None:
        self.source, self.sink = source, sink
        self._memory = memoryview(mmap.mmap(memory, SHARED_BYTES) if memory >= 0 else bytearray())

    def send(self, head: dict[str, Any], body: Body = b"") -> None:
        """Write a message; one at a time is under way, in one direction or the other."""
        text, size = json.dumps(head).encode(), len(body)
        shared = size <= len(self._memory)
        if shared:
            self._memory[:size] = body
        self.sink.write(len(text).to_bytes(4, "little") + size.to_bytes(8, "little") + text)
        if not shared:
            self.sink.write(body)
        self.sink.flush()

    def receive(self) -> tuple[dict[str, Any], Body]:
        """The next message; its body is good until one is sent.

        Raises:
            EOFError: the other end is gone.
        """
        sizes = self._read(12)
        head, body = int.from_bytes(sizes[:4], "little"), int.from_bytes(sizes[4:], "little")
        shared = body <= len(self._memory)
        text = json.loads(self._read(head))
        return text, self._memory[:body] if shared else self._read(body)

    def _read(self, size: int) -> bytes:
        data = self.source.read(size)
        if len(data) < size:
            raise EOFError("the other process is gone")
        return data


def decode_frame(job: Job, codestream: Body) -> Decoded:
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
    source, plugin = encapsulate([bytes(codestream)], has_bot=False), PLUGINS[job.syntax]
    array, meta = get_decoder(job.syntax).as_array(
        source, index=0, raw=True, decoding_plugin=plugin, **options
    )
    return array, str(meta.get("photometric_interpretation", job.photometric))


def serve(memory: int) -> None:
    """Frames from standard input to standard output until it closes."""
    sys.modules.update(dict.fromkeys(_NOT_NEEDED))  # type: ignore[arg-type]
    import pydicom.pixels.decoders  # noqa: F401

    channel = Channel(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"), memory)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a codec that prints must not garble replies
    channel.send({})
    while True:
        try:
            request, codestream = channel.receive()
        except EOFError:
            return
        limit_s, job = request.pop("limit_s"), Job(**request)
        limit_memory(_SPARE_BYTES + 16 * job.num_bytes)
        limit_time(limit_s)
        try:
            array, photometric = decode_frame(job, codestream)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # all a codec raises, a panic of Rust code too: by its kind
            limit_time(0)
            channel.send({"error": type(error).__name__})
            continue
        limit_time(0)
        reply = {"shape": array.shape, "dtype": array.dtype.str, "photometric": photometric}
        channel.send(reply, np.ascontiguousarray(array).data.cast("B"))


def limit_time(cpu_s: float) -> None:
    """After so much CPU time the process ends, whatever C code it is in; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_s)


def limit_memory(num_bytes: int) -> None:
    """From now on this process may grow by so much; where there is no such limit, it has none."""
    try:
        import resource

        pages = int(os.pread(_statm(), 64, 0).split()[0])
        limit = pages * resource.getpagesize() + num_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        return


@cache
def _statm() -> int:
    return os.open("/proc/self/statm", os.O_RDONLY)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
