"""How fast series become volumes, how much memory that takes, and what readers make of real quirks.

    python -m benchmarks.dicom_volumes > docs/dicom_benchmarks.md

Every reader that is installed (`pip install .[bench]`) reads the same files in the same run; times
are CPU seconds of the process and of those it starts, the best of several rounds taken in turns.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dicom_readers import Found, readers, versions
from benchmarks.dicom_studies import SYNTAXES, head, write_quirks, write_series

ROUNDS = 2
SLOW = ("MONAI", "highdicom", "dicom2nifti")  # of these, uncompressed files only


def cpu_now() -> float:
    """CPU seconds of this process and its children, running ones included (Linux)."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in children():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def children() -> list[str]:
    """Processes started by this one that still run."""
    return [
        pid for f in Path("/proc/self/task").glob("*/children") for pid in f.read_text().split()
    ]


def decoding() -> dict[str, Any]:
    """Slices a second of CPU time, by transfer syntax and reader; and as multiples of pydicom."""
    slices, out = head(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SYNTAXES:
            copies = 5 if name in ("uncompressed", "RLE") else 2
            path = write_series(Path(folder) / name, slices, copies, name)
            chosen = {n: r for n, r in readers().items() if name == "uncompressed" or n not in SLOW}
            out[name] = _race(path, chosen, len(slices) * copies)
            print(name, out[name], file=sys.stderr)
    return out


def _race(
    path: Path, chosen: dict[str, Callable[[Path], Found]], count: int
) -> dict[str, Any]:  # fmt: skip
    best: dict[str, float] = {}
    for turn in range(ROUNDS + 1):  # the first warms caches up and starts processes
        for name, read in chosen.items():
            started = cpu_now()
            try:
                found = read(path).slices
            except Exception as error:  # a peer that fails is a result of the benchmark
                best[name] = float("nan")
                print(name, type(error).__name__, file=sys.stderr)
                continue
            assert found == count, (name, found)
            if turn:
                best[name] = min(best.get(name, float("inf")), cpu_now() - started)
    return {name: round(count / seconds, 1) for name, seconds in best.items() if seconds == seconds}


def two_processes() -> dict[str, float]:
    """JPEG 2000 with one decoding process and with two, by the clock."""
    from encoders.dicom import decoder, load_volume, pixels, scan

    seconds = {}
    before = decoder.NUM_PROCESSES
    with tempfile.TemporaryDirectory() as folder:
        series = scan(write_series(Path(folder), head(), 2, "JPEG 2000")).default()
        spare = []
        for _ in range(2):
            spare.append(_spare())
            for number in (1, 2):
                decoder.NUM_PROCESSES = pixels.NUM_PROCESSES = number
                decoder._pool.cache_clear()
                load_volume(series)  # starts the processes
                started = time.perf_counter()
                load_volume(series)
                took = time.perf_counter() - started
                seconds[number] = min(seconds.get(number, took), took)
    decoder.NUM_PROCESSES = pixels.NUM_PROCESSES = before
    decoder._pool.cache_clear()
    count = 2 * len(head())
    return {
        "slices_per_s_1": round(count / seconds[1], 1),
        "slices_per_s_2": round(count / seconds[2], 1),
        "ratio": round(seconds[1] / seconds[2], 2),
        "machine_ratio": round(max(spare), 2),
    }


def _spare() -> float:
    """How much faster two loops run side by side than in turns: 2 on two cores that are idle."""
    loop = [sys.executable, "-S", "-c", "for _ in range(2 * 10**7): pass"]
    took = []
    for number in (1, 2):
        started = time.perf_counter()
        running = [subprocess.Popen(loop) for _ in range(number)]
        for process in running:
            process.wait()
        took.append(time.perf_counter() - started)
    return 2 * took[0] / took[1]


_PEAK = """
import re, sys
from benchmarks.dicom_volumes import children
from encoders.dicom import load_volume
volume = load_volume(sys.argv[1])
own = 0
for pid in children():
    text = open(f"/proc/{pid}/smaps_rollup").read()
    own += sum(1024 * int(n) for n in re.findall(r"Private_\\w+: +(\\d+)", text))
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(volume.voxels.nbytes, peak, own)
"""


def memory() -> dict[str, Any]:
    """Peak resident MiB of a fresh process that reads 140 slices, libraries and all."""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("uncompressed", "RLE", "JPEG-LS"):
            path = write_series(Path(folder) / name, head(), 5, name)
            done = subprocess.run(
                [sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True
            )
            volume, peak, workers = (int(v) / 2**20 for v in done.stdout.split())
            out[name] = {"volume": round(volume), "process": round(peak), "decoders": round(workers),
                         "allowed": round(2 * volume + 100)}  # fmt: skip
    return out


def preview() -> dict[str, float]:
    """CPU seconds to the first picture of 140 slices, the scan included, and without it."""
    from encoders.dicom import load_preview, scan

    with tempfile.TemporaryDirectory() as folder:
        path = write_series(Path(folder), head(), 5)
        rounds = []
        for _ in range(ROUNDS + 1):
            started = time.process_time()
            series = scan(path).default()
            scanned = time.process_time()
            load_preview(series)
            rounds.append((time.process_time() - started, time.process_time() - scanned))
    whole, decode = np.min(rounds, axis=0)
    return {"with_scan_s": round(float(whole), 4), "preview_s": round(float(decode), 4)}


# what is true of each case: slices at places of their own, LPS mm of the first and the last
_TRUTH: dict[str, tuple[int, tuple[float, float]] | None] = {
    "gantry tilt and gaps": (28, (5.836, 157.776)),
    "one slice missing": (15, (-132.5, -95.0)),
    "one duplicate position": (16, (-132.5, -95.0)),
    "mixed study folder": (28, (696.21, 831.21)),
    "no SOPClassUID": (20, (-804.5, -766.5)),
    "4 images at one place": None,  # no volume at all
    "Enhanced CT, 2 frames": (2, (-159.0, -149.0)),
    "J2K with wrong Psot": (20, (-804.5, -766.5)),
}
_UNEVEN = ("gantry tilt and gaps", "one slice missing")  # one spacing cannot tell where slices lie


def quirks() -> dict[str, dict[str, str]]:
    """What each reader makes of real quirks: right, refused, or wrong without an error."""
    out: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, path in write_quirks(Path(folder)).items():
            out[case] = {name: _verdict(case, name, read, path) for name, read in readers().items()
                         if name != "pydicom loop"}  # fmt: skip
            print(case, out[case], file=sys.stderr)
    return out


def _verdict(case: str, name: str, read: Callable[[Path], Found], path: Path) -> str:
    try:
        found = read(path)
    except Exception as error:  # a refusal is a result of the benchmark
        return f"refuses ({type(error).__name__})"
    words = f"{found.slices} slices" + (f", {found.note}" if found.note else "")
    truth = _TRUTH[case]
    if truth is None:
        right = found.slices == 1
    else:
        ends = np.sort(found.ends_mm[:, 2])
        right = found.slices == truth[0] and bool(np.abs(ends - truth[1]).max() < 0.1)
        if case.startswith("Enhanced"):
            right = right and (found.low, found.high) == (-1024, 172)
    if name == "CrossRead":
        if case.startswith("J2K"):  # one slice is broken: the other 19 stay, the gap is told
            right = found.slices == 19 and {"CORRUPT_SLICE", "MISSING_SLICE"} <= set(
                found.note.split(", ")
            )
        if case in _UNEVEN:
            right = right and ("IRREGULAR_SPACING" in found.note or "MISSING_SLICE" in found.note)
    elif case in _UNEVEN:
        right = False  # an affine without a word of the gaps, or only a warning
    if right:
        return f"right: {words}"
    return f"{'warns, not right' if 'warns' in found.note else 'WRONG'}: {words}"


def page(found: dict[str, Any]) -> str:
    """The figures as a page of the documentation."""
    speed, names = found["decoding"], list(readers())
    lines = [
        "# DICOM benchmarks", "",
        "Made by `python -m benchmarks.dicom_volumes > docs/dicom_benchmarks.md`"
        f" on {found['machine']}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.",
        "Peers: " + ", ".join(f"{k} {v}" for k, v in found["versions"].items()) + ".", "",
        "## Slices a second of CPU time", "",
        "512 x 512 slices to Hounsfield units, one core's worth: CPU seconds of the reader and of the"
        " processes it starts. In brackets: times as fast as a plain pydicom loop.", "",
        "| transfer syntax | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|",
    ]  # fmt: skip
    for syntax, rates in speed.items():
        cells = [
            f"{rates[n]:.0f} ({rates[n] / rates['pydicom loop']:.2f})" if n in rates else "-"
            for n in names
        ]
        lines.append(f"| {syntax} | " + " | ".join(cells) + " |")
    two, study, first = found["two_processes"], found["triage"], found["preview"]
    lines += [
        "", f"JPEG 2000 by the clock: {two['slices_per_s_1']} slices/s with one decoding process,"
        f" {two['slices_per_s_2']} with two: {two['ratio']} times as fast, when this machine had"
        f" {two['machine_ratio']} cores to spare for two plain loops.", "",
        "## A whole study", "",
        f"{study['files']} files, three volumes, localizers and captured screens: scanned in"
        f" {study['scan_s']:.3f} s of CPU time, with the default volume in"
        f" {study['scan_and_volume_s']:.3f} s; a plain pydicom script takes"
        f" {study['plain_pydicom_s']:.3f} s. The first picture of 140 slices takes"
        f" {first['preview_s'] * 1000:.1f} ms after their scan.", "",
        "## Memory", "", "Peak resident MiB of a fresh process, and what its decoding processes"
        " hold alone.", "", "| transfer syntax | int16 volume | process | decoders | twice the volume + 100 |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for syntax, mb in found["memory"].items():
        lines.append(
            f"| {syntax} | {mb['volume']} | {mb['process']} | {mb['decoders']} | {mb['allowed']} |"
        )
    if found["quirks"]:
        names = list(next(iter(found["quirks"].values())))
        lines += ["", "## Real quirks", "",
                  "`right`: every slice counted once and where it is, or that there is no volume."
                  " Irregular spacing is right only where the true places are told.", "",
                  "| case | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]  # fmt: skip
        for case, row in found["quirks"].items():
            lines.append(f"| {case} | " + " | ".join(row[n] for n in names) + " |")
    return "\n".join(lines) + "\n"


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "preview": preview, "memory": memory, "two_processes": two_processes,
    "decoding": decoding, "quirks": quirks,
}  # fmt: skip


def main() -> None:
    """Run all and print the page; the figures as JSON go to standard error."""
    from benchmarks.dicom import machine, triage

    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"machine": machine(), "versions": versions(), "triage": triage()}
    for name, run in BENCHMARKS.items():
        found[name] = run()
    print(page(found), end="")
    print(json.dumps(found), file=sys.stderr)


if __name__ == "__main__":
    main()
