"""The serving benchmark's bars, and that its peers answer what the model answers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.serving import Clock, Job, generate_batch
from benchmarks.serving_bars import bars


def test_a_bar_is_told_only_if_measured_and_met_only_on_its_own_side() -> None:
    told = {
        "follow_up": {"demo": {"ratio": 0.04}},
        "burst": {"against_openvino": {"tokens_per_s": 0.9}},
    }
    assert [(bar["goal"], bar["met"]) for bar in bars(told)] == [
        (">= 1.0", False),
        ("<= 0.05", True),
    ]


def test_openvino_answers_with_the_tokens_of_the_model() -> None:
    pytest.importorskip("openvino_genai", reason="needs crossread[bench]")
    from benchmarks.serving_openvino import openvino_continuous

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=128, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    jobs = [Job([5, 6, 7, 8 + at], 4 + at) for at in range(3)]
    openvino_continuous(model, jobs)
    for job in jobs:
        alone = Job(job.prompt, job.num_new)
        generate_batch(model, [alone], Clock())
        assert job.tokens == alone.tokens
