"""What dynamic sparsity saves while decoding: tokens per second against the dense model.

    python -m benchmarks.sparse [--hidden 1536 --neurons 8960 --layers 2 --rounds 9]

A random Llama of the width of DeepSeek-R1-Distill-Qwen-1.5B with few layers, float32, one thread.
Dense and sparse models hold the same weights and decode in turns in this process; the ratio is
the median over rounds of CPU time (the machine may be busy). Random weights say nothing of quality:
that is measured on the demo checkpoint by `make eval-demo`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from multimodal.sparse import (
    SparsityConfig,
    counting_flops,
    set_sparsity,
    sparse_mlps,
    sparsify,
)

BATCHES = (1, 4, 16)
LEVELS = (0.0, 0.5, 0.7, 0.9)
PROMPT, STEPS = 16, 4


def machine() -> str:
    """The processor as the kernel names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def models(hidden: int, neurons: int, layers: int) -> tuple[Any, Any]:
    """A dense model and its sparse twin."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=hidden, intermediate_size=neurons, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(hidden // 512, 1),
        max_position_embeddings=512,
    )  # fmt: skip
    dense = LlamaForCausalLM(config).eval()
    sparse = copy.deepcopy(dense)
    sparsify(sparse, SparsityConfig())
    return dense, sparse


def decode_seconds(model: Any, batch: int) -> float:
    """CPU seconds of one decoding step, the mean over a few after a short prompt."""
    ids = torch.arange(batch * PROMPT).view(batch, PROMPT) % 512
    cache = model(input_ids=ids, use_cache=True).past_key_values
    token = ids[:, -1:]
    model(input_ids=token, past_key_values=cache, use_cache=True)
    start = time.process_time()
    for _ in range(STEPS):
        logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
        token = logits[:, -1:].argmax(-1)
    return (time.process_time() - start) / STEPS


def compare(dense: Any, sparse: Any, batch: int, level: float, rounds: int) -> dict[str, float]:
    """One line of the table: dense and sparse in turns, so that a busy moment meets both."""
    set_sparsity(sparse, level)
    for mlp in sparse_mlps(sparse):  # sparse at every batch: where it stops paying is what is asked
        mlp.dense_above = max(BATCHES)
    with counting_flops(sparse) as flops:
        decode_seconds(sparse, batch)
    times = [(decode_seconds(dense, batch), decode_seconds(sparse, batch)) for _ in range(rounds)]
    return {
        "batch": batch,
        "sparsity": level,
        "dense_tokens_per_s": batch / statistics.median(d for d, _ in times),
        "sparse_tokens_per_s": batch / statistics.median(s for _, s in times),
        "ratio": statistics.median(d / s for d, s in times),
        "mlp_multiply_adds_skipped": flops.skipped_in_decode,
    }


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    """Print the table and, last, its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("hidden", 1536), ("neurons", 8960), ("layers", 2), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dense, sparse = models(options.hidden, options.neurons, options.layers)
    print(f"{machine()}, 1 thread, torch {torch.__version__}, float32; hidden {options.hidden},"
          f" {options.neurons} neurons, {options.layers} layers")  # fmt: skip
    print("batch  sparsity  dense tok/s  sparse tok/s  sparse : dense  MLP multiply-adds skipped")
    lines = []
    for batch in BATCHES:
        for level in LEVELS:
            line = compare(dense, sparse, batch, level, options.rounds)
            lines.append(line)
            print(f"{batch:5d}  {level:8.1f}  {line['dense_tokens_per_s']:11.1f}"
                  f"  {line['sparse_tokens_per_s']:12.1f}  {line['ratio']:13.2f}x"
                  f"  {line['mlp_multiply_adds_skipped']:24.0%}")  # fmt: skip
    about = {"machine": machine(), "torch": torch.__version__, **vars(options)}
    print(json.dumps({"benchmark": "sparse", **about, "lines": lines}))


if __name__ == "__main__":
    main()
