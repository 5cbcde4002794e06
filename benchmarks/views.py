"""How fast a volume becomes the three windows of MedGemma: one table against float32 numpy.

    python -m benchmarks.views

Both run in this process on the same 85 slices of 512 x 512 voxels, in turns; CPU time, best of
several rounds. The last line is JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from encoders.dicom.views import PROFILES, Windows, to_rgb

ROUNDS = 7


def windows_in_float32(hu: np.ndarray, windows: Windows) -> np.ndarray:
    """The peer: clip, subtract, divide, multiply and round per channel, as the notebook does."""
    channels = []
    for window in windows:
        low, high = window.center - window.width / 2, window.center + window.width / 2
        grey = np.clip(hu, int(low), int(high)).astype(np.float32)
        grey -= low
        grey /= high - low
        grey *= 255.0
        channels.append(grey)
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def cpu_seconds(convert: Callable[[np.ndarray, Windows], np.ndarray], hu: np.ndarray) -> float:
    """CPU time of one conversion."""
    start = time.process_time()
    convert(hu, PROFILES["medgemma-ct"].windows)
    return time.process_time() - start


def main() -> None:
    """Print times, their ratio, and whether the bytes are equal."""
    rng = np.random.default_rng(0)
    hu = rng.normal(-300, 500, (85, 512, 512)).clip(-1024, 3071).astype(np.int16)
    windows = PROFILES["medgemma-ct"].windows
    same = bool(np.array_equal(to_rgb(hu, windows), windows_in_float32(hu, windows)))
    rounds = [(cpu_seconds(to_rgb, hu), cpu_seconds(windows_in_float32, hu)) for _ in range(ROUNDS)]
    ours, theirs = (min(times) for times in zip(*rounds, strict=True))
    print(f"one table      {ours:.3f} s   {len(hu) / ours:8.0f} slices/s")
    print(f"float32 numpy  {theirs:.3f} s   {len(hu) / theirs:8.0f} slices/s")
    values = {"table_s": ours, "float32_s": theirs, "ratio": theirs / ours, "equal_bytes": same}
    print(json.dumps({"benchmark": "views", **values}))


if __name__ == "__main__":
    main()
