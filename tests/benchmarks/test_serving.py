"""The benchmark runs, all schemes give the same tokens, and its JSON holds the bars' ratios."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.serving import closed, figures, main, measured, random_llama, static, workload

SMALL = (
    "--requests 10 --prompt 24 --answer 12 --rounds 1 --layers 1 --only burst poisson alone floor"
)


def test_the_last_line_is_json_with_the_ratios_that_the_bars_ask_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = torch.get_num_threads()
    try:
        main(SMALL.split())
    finally:
        torch.set_num_threads(threads)
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["burst"]["same_tokens"]
    for peer in ("static_8", "gang_8", "transformers_continuous"):
        assert set(told["burst"][f"against_{peer}"]) == {"mean_s", "std_s", "p99_s", "tokens_per_s"}
    assert told["alone"]["ratio"] > 0
    assert told["floor"]["ratio"] > 0
    assert told["poisson"]["against_static_8"]["mean_s"] > 0
    assert told["machine"]


def test_figures_are_those_of_hand_made_jobs() -> None:
    jobs = workload(4, 20, 10)
    for at, job in enumerate(jobs):
        job.came_s, job.first_s, job.done_s, job.num_new = 1.0, 2.0, 3.0 + at, 5
    told = figures(jobs)
    assert told["mean_s"] == pytest.approx(3.5)
    assert told["std_s"] == pytest.approx(1.25**0.5)
    assert told["tokens_per_s"] == pytest.approx(20 / 5)
    assert told["first_mean_s"] == pytest.approx(1.0)


def test_static_batches_end_together_and_clients_of_a_closed_loop_come_back() -> None:
    model, jobs = random_llama(1), workload(12, 16, 8)
    done = measured(static, model, jobs, size=4)
    assert len({job.done_s for job in done}) == 3
    told = closed(model, jobs, 3, 1)
    assert told["ours"]["requests_per_s"] > 0
