"""The benchmark runs and its table holds what it promises; how fast is for a person to judge."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.sparse import BATCHES, LEVELS, main


def test_the_last_line_is_json_with_a_row_for_each_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = torch.get_num_threads()
    try:
        main(["--hidden", "64", "--neurons", "160", "--layers", "1", "--rounds", "1"])
    finally:
        torch.set_num_threads(threads)
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(line["batch"], line["sparsity"]): line for line in table["lines"]}
    assert set(rows) == {(b, s) for b in BATCHES for s in LEVELS}
    for (_, sparsity), line in rows.items():
        # of three equal products the gate's is always made
        assert line["mlp_multiply_adds_skipped"] == pytest.approx(sparsity * 2 / 3, abs=0.01)
        assert line["ratio"] > 0
    assert table["machine"]
