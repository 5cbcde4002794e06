"""How fast DICOM is read, beside plain pydicom on the same files in the same run.

    python -m benchmarks.dicom [name ...]

Each benchmark is a function that returns its figures; the last line printed is JSON of them all.
Times are CPU seconds, the best of several runs, so that a busy machine disturbs them little.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("CROSSREAD_SHARED_DATA", ROOT.parent / "shared" / "data"))


def cpu_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """CPU time of the fastest of some runs."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def header_scan(files: int = 1000) -> dict[str, Any]:
    """Headers of a generated CT series and of the recorded files, beside pydicom's own reading."""
    from encoders.dicom import write_ct_series

    with tempfile.TemporaryDirectory() as folder:
        write_ct_series(np.zeros((files, 16, 16), np.int16), np.eye(4), Path(folder))
        found = {"generated": _header_scan(Path(folder))}
    if SHARED.is_dir():
        found["recorded"] = _header_scan(SHARED / "head_phantom_study")
        found["recorded_long"] = _header_scan(SHARED / "head_tilt_irregular")
    return found


def _header_scan(folder: Path) -> dict[str, float]:
    """`scan`, and pydicom reading whole headers or, of the same elements, only those."""
    import pydicom

    from encoders.dicom import scan, tags

    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    wanted = sorted(tags.HEADER)

    def read_all(specific: list[int] | None) -> None:
        for path in paths:
            pydicom.dcmread(path, stop_before_pixels=True, specific_tags=specific)

    ours = cpu_seconds(lambda: scan(folder), 5)
    whole = cpu_seconds(lambda: read_all(None), 5)
    specific = cpu_seconds(lambda: read_all(wanted), 5)
    return {
        "files": len(paths), "scan_s_per_1000": round(1000 * ours / len(paths), 3),
        "pydicom_s_per_1000": round(1000 * whole / len(paths), 3),
        "pydicom_specific_tags_s_per_1000": round(1000 * specific / len(paths), 3),
        "times_as_fast_as_pydicom": round(whole / ours, 2),
        "times_as_fast_as_specific_tags": round(specific / ours, 2),
    }  # fmt: skip


def triage() -> dict[str, Any]:
    """A study of 310 files made of the head phantom: scanned, and its default volume in HU.

    Three volumes of 100 slices (soft, sharp, coronal), localizers and captured screens, beside a
    plain pydicom loop that reads all headers, takes the largest series and stacks it.
    """
    from encoders.dicom import load_volume, scan

    with tempfile.TemporaryDirectory() as folder:
        count = _write_study(Path(folder))
        if not count:
            return {"skipped": "needs ../shared/data"}
        series = scan(folder).default()
        scanned = cpu_seconds(lambda: scan(folder))
        ours = cpu_seconds(lambda: load_volume(scan(folder).default()))
        theirs = cpu_seconds(lambda: _plain_pydicom(Path(folder)))
    return {
        "files": count, "default": series.reason, "kernel": series.info.kernel,
        "scan_s": round(scanned, 3), "scan_and_volume_s": round(ours, 3),
        "plain_pydicom_s": round(theirs, 3), "times_as_fast_as_pydicom": round(theirs / ours, 2),
    }  # fmt: skip


def _write_study(folder: Path) -> int:
    """The files of `triage`; none where the recorded ones are missing."""
    import pydicom

    source = SHARED / "head_phantom_study"
    if not source.is_dir():
        return 0
    slices = [pydicom.dcmread(p) for p in sorted((source / "S2010").glob("I*"))]
    others = [p for f in ("S1000", "S4010") for p in sorted((source / f).iterdir())]
    for path in others:
        (folder / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    for number, (kernel, turn) in enumerate(
        (("UB", [1, 0, 0, 0, 1, 0]), ("YB", [1, 0, 0, 0, 1, 0]), ("UB", [1, 0, 0, 0, 0, -1])), 1
    ):
        for index in range(100):
            data = slices[index % len(slices)]
            data.SeriesInstanceUID, data.SeriesNumber = f"1.2.3.{number}", number
            data.SOPInstanceUID = f"1.2.3.{number}.{index}"
            data.ConvolutionKernel, data.ImageOrientationPatient = kernel, turn
            data.ImagePositionPatient = [0, 1.25 * index, 0] if turn[5] else [0, 0, 1.25 * index]
            data.save_as(folder / f"{number}-{index}")
    return len(list(folder.iterdir()))


def _plain_pydicom(folder: Path) -> np.ndarray:
    """What a script would do: the largest series by UID, sorted by z, in HU."""
    import pydicom

    groups: dict[str, list[Any]] = {}
    for path in folder.iterdir():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "SeriesInstanceUID" in header:
            groups.setdefault(header.SeriesInstanceUID, []).append(header)
    largest = max(groups.values(), key=len)
    largest.sort(key=lambda header: header.ImagePositionPatient[2])
    slices = [pydicom.dcmread(header.filename) for header in largest]
    return np.stack(
        [
            s.pixel_array * np.float32(s.RescaleSlope) + np.float32(s.RescaleIntercept)
            for s in slices
        ]
    )


def volumes() -> dict[str, Any]:
    """Decoding, memory and quirks beside other readers: `benchmarks.dicom_volumes`."""
    from benchmarks.dicom_volumes import BENCHMARKS as PARTS

    return {name: part() for name, part in PARTS.items()}


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "header_scan": header_scan,
    "triage": triage,
    "volumes": volumes,
}


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
