"""`crossread serve` beside `transformers serve`: the same folder, the same requests, all at once.

    python -m benchmarks.serving_http [--text 24 --pictures 12 --tokens 64 --rounds 3]

Words for a Llama of 27 million parameters, and pictures for a LLaVA-OneVision around one like it, both
drawn at random. Counted is the CPU time of each server's processes from the first request to the last
answer, one thread each; of each figure the median round. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.server import wait_for
from benchmarks.serving import median
from benchmarks.serving_bars import show_bars
from benchmarks.sparse import machine
from tests.multimodal import native_zoo

SIZES = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "initializer_range": 0.05,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}<|assistant|>"
)


def save_text(folder: Path) -> Path:
    """A random Llama and a tokenizer, as on the Hub."""
    words = native_zoo.tokenizer(["<|user|>", "<|assistant|>"], TEMPLATE, pad_token="<pad>")
    config = LlamaConfig(**SIZES, vocab_size=len(words), max_position_embeddings=4096,
                         tie_word_embeddings=True, eos_token_id=None, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_pictures(folder: Path) -> Path:
    """The zoo's LLaVA-OneVision around a language model of the same size."""
    native_zoo.TEXT.update(SIZES)
    return native_zoo.save_llava_onevision(folder)


def requests(kind: str, count: int, tokens: int) -> list[dict[str, Any]]:
    """Chat requests, each with words (and a picture) of its own."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        words = " ".join(f"finding {n}" for n in rng.integers(0, 999, rng.integers(8, 60)))
        content: Any = f"Study {number}: {words}"
        if kind == "pictures":
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(buffer, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}},
                       {"type": "text", "text": content}]  # fmt: skip
        made.append({"messages": [{"role": "user", "content": content}], "max_tokens": tokens,
                     "temperature": 0, "stream": False})  # fmt: skip
    return made


@contextmanager
def serving(command: list[str], port: int, ready: str) -> Iterator[psutil.Process]:
    """A server on a port until the block ends."""
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=threads, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            wait_for(lambda: _answers(f"http://127.0.0.1:{port}{ready}"), 300.0)
            yield psutil.Process(child.pid)
        finally:
            child.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all below it."""
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


async def burst(port: int, model: str, asked: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """All at once: tokens answered in all, and the answers' texts."""
    async with httpx.AsyncClient(timeout=1200.0, limits=httpx.Limits(max_connections=None)) as http:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        replies = await asyncio.gather(*(http.post(url, json={**r, "model": model}) for r in asked))
    told = [reply.raise_for_status().json() for reply in replies]
    texts = [t["choices"][0]["message"]["content"] for t in told]
    return sum(t["usage"]["completion_tokens"] for t in told), texts


def measured(command: list[str], model: str, ready: str, asked: list[dict[str, Any]]) -> Any:
    """CPU seconds, tokens and texts of a burst; one request before it warms the server up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving([*command, "--port", str(port)], port, ready) as server:
        asyncio.run(burst(port, model, asked[:1]))
        before = cpu_seconds(server)
        tokens, texts = asyncio.run(burst(port, model, asked))
        return {"cpu_s": cpu_seconds(server) - before, "tokens": tokens, "texts": texts}


def compare(kind: str, folder: Path, asked: list[dict[str, Any]]) -> dict[str, float]:
    """One round of ours against theirs on one folder."""
    theirs = measured(
        [str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--device", "cpu",
         "--dtype", "float32", "--continuous-batching"],
        str(folder), "/health", asked,
    )  # fmt: skip
    ours = measured(
        [sys.executable, "-m", "pipelines.cli", "serve", "--model", str(folder), "--device", "cpu",
         "--max-running", "32", "--max-waiting", str(len(asked))],
        folder.name, "/readyz", asked,
    )  # fmt: skip
    rates = {who: t["tokens"] / t["cpu_s"] for who, t in (("ours", ours), ("theirs", theirs))}
    same = sum(a.strip() == b.strip() for a, b in zip(ours["texts"], theirs["texts"], strict=True))
    print(f"{kind}: {rates['ours']:.0f} against {rates['theirs']:.0f} tokens per CPU second,"
          f" {rates['ours'] / rates['theirs']:.2f} times; same answer {same} of {len(asked)}",
          flush=True)  # fmt: skip
    return {**rates, "ratio": rates["ours"] / rates["theirs"], "same_answers": same}


def main() -> None:
    """Print each comparison as it comes and, last, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("text", 24), ("pictures", 12), ("tokens", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    told: dict[str, Any] = {"benchmark": "serving_http", "machine": machine(), **vars(options)}
    with tempfile.TemporaryDirectory(prefix="crossread-") as place:
        for kind, save in (("text", save_text), ("pictures", save_pictures)):
            asked = requests(kind, getattr(options, kind), options.tokens)
            if asked:
                folder = save(Path(place) / kind)
                rounds = [compare(kind, folder, asked) for _ in range(options.rounds)]
                told[f"{kind}_against_transformers_serve"] = median(rounds)
    told["bars"] = show_bars(told)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
