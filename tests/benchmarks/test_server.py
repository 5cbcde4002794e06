"""What the benchmark of the server counts with; to run it whole takes minutes."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.server import cpu_s, processes, quantile


def test_quantiles_are_values_that_were_measured():
    values = [float(n) for n in range(100, 0, -1)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 51.0, 100.0, 100.0]


def test_a_process_is_found_with_its_whole_command_and_its_time():
    mine = [args for pid, _, args in processes() if int(pid) == os.getpid()]
    told = Path("/proc/self/cmdline").read_text(encoding="utf-8").rstrip("\0")
    assert mine == [told.replace("\0", " ")]
    assert 0 < cpu_s(os.getpid()) <= sum(os.times()[:2]) + 1
