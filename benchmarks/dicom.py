"""How fast DICOM is read, beside plain pydicom on the same files in the same run.

    python -m benchmarks.dicom [name ...]

Each benchmark is a function that returns its figures; the last line printed is JSON of them all.
Times are CPU seconds, the best of several runs, so that a busy machine disturbs them little.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def cpu_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """CPU time of the fastest of some runs."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def header_scan(files: int = 1000) -> dict[str, float]:
    """Headers of a generated CT series: `scan`, and pydicom's own reading of whole headers."""
    import pydicom

    from encoders.dicom import scan, write_ct_series

    with tempfile.TemporaryDirectory() as folder:
        write_ct_series(np.zeros((files, 16, 16), np.int16), np.eye(4), Path(folder))
        paths = sorted(Path(folder).iterdir())
        ours = cpu_seconds(lambda: scan(folder))
        theirs = cpu_seconds(lambda: [pydicom.dcmread(p, stop_before_pixels=True) for p in paths])
    return {
        "files": files, "scan_s": round(ours, 3), "pydicom_s": round(theirs, 3),
        "times_as_fast_as_pydicom": round(theirs / ours, 2),
    }  # fmt: skip


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {"header_scan": header_scan}


def machine() -> str:
    """The processor and the Python the figures were measured with."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, Python {platform.python_version()}"


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    found: dict[str, Any] = {"machine": machine()}
    for name in names or BENCHMARKS:
        found[name] = BENCHMARKS[name]()
        print(name, found[name], file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
