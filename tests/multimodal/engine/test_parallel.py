"""A model whose layers are split over two processes gives the tokens of the whole one."""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as processes

from tests import makers
from tests.served import free_port

pytest.importorskip("accelerate")
PROMPTS = [np.random.default_rng(i).integers(3, 96, 4 + 6 * i).tolist() for i in range(6)]
NUM_NEW = 5


def _rank(rank: int, folder: str, port: int, told: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    torch.set_num_threads(1)
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    from multimodal.engine.parallel import LeadingRunner, follow
    from multimodal.engine.runner import PackedRunner

    dist.init_process_group("gloo")
    split = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=split).eval()
    with torch.inference_mode():
        runner = PackedRunner(model, 200)
    if rank:
        follow(runner)
    else:
        leader = LeadingRunner(runner)
        told.put(_answers(model, leader))
        leader.stop()
    dist.barrier()
    dist.destroy_process_group()


def _answers(model: Any, runner: Any) -> tuple[list[list[int]], int, str]:
    """Of all prompts at once, then of the last one with a longer end; and how the weights lie."""
    from multimodal.backends import GenerateOptions
    from multimodal.engine.engine import Engine
    from multimodal.engine.scheduler import Limits
    from multimodal.engine.sequence import Ended, Outcome, Picked, Sequence

    engine = Engine(runner, lambda: Limits(3, 9))
    ends: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def ask(prompt: list[int]) -> tuple[Sequence, list[int]]:
        tokens: list[int] = []

        def tell(outcome: Outcome) -> bool:
            if isinstance(outcome, Picked):
                tokens.append(outcome.token)
            else:
                ends.put(outcome)
            return True

        options = GenerateOptions(max_new_tokens=NUM_NEW)
        sequence = Sequence(options, runner.embed(prompt), np.array(prompt), tell)
        engine.submit(sequence)
        return sequence, tokens

    asked = [ask(prompt) for prompt in PROMPTS]
    assert [ends.get(timeout=60) for _ in PROMPTS] == [Ended("length")] * len(PROMPTS)
    follower, tokens = ask([*PROMPTS[-1], 7, 8])
    assert ends.get(timeout=60) == Ended("length")
    engine.close()
    kind = type(model.model.layers[0].self_attn.q_proj.weight).__name__
    return [*(tokens for _, tokens in asked), tokens], follower.reused, kind


@pytest.mark.slow
def test_two_ranks_over_gloo_answer_as_one_process(tmp_path: Path) -> None:
    makers.save_backbone("llama", tmp_path)
    port = free_port()
    told = processes.get_context("spawn").SimpleQueue()
    processes.spawn(_rank, args=(str(tmp_path), port, told), nprocs=2)
    answers, reused, kind = told.get()
    model = makers.backbone("llama")
    for prompt, answer in zip([*PROMPTS, [*PROMPTS[-1], 7, 8]], answers, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW,
                               do_sample=False, eos_token_id=None)  # fmt: skip
        assert answer == whole[0, len(prompt) :].tolist()
    assert reused >= len(PROMPTS[-1])
    assert kind == "DTensor"
