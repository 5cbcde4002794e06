"""How many people one machine serves: our engine against static and continuous batching of transformers.

    python -m benchmarks.serving [--requests 100 --prompt 512 --answer 256 --rounds 3]

One random Llama (27 million parameters) of the same weights for all, float32, one thread, token ids
fixed by a seed; the clock is this process's CPU time, so a busy machine does not count. Burst: all
requests at once. Poisson: at 80 % of what static batches of 8 serve. Closed: each answer is followed
by the next request. The last line is JSON; the ratios in it are what the project's bars ask for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.serving_bars import show_bars
from benchmarks.serving_openvino import openvino_continuous
from benchmarks.sparse import machine
from multimodal.backends import GenerateOptions
from multimodal.engine.engine import Engine
from multimodal.engine.packing import PackedLinear
from multimodal.engine.runner import PackedRunner
from multimodal.engine.scheduler import Limits
from multimodal.engine.sequence import Ended, Outcome, Picked, Sequence
from multimodal.engine.tuning import Tuner

SLOTS, CHUNK = 32, 128
Scheme = Callable[[Any, list["Job"]], None]


@dataclass(eq=False)
class Job:
    """A request and when it came, had its first token and was through, in seconds of the clock."""

    prompt: list[int]
    num_new: int
    came_s: float = 0.0
    first_s: float = 0.0
    done_s: float = 0.0
    tokens: list[int] = field(default_factory=list)


class Clock:
    """CPU seconds of this process, plus what was skipped while nobody had anything to do."""

    def __init__(self) -> None:
        self._start, self._skipped = time.process_time(), 0.0

    def now(self) -> float:
        """Seconds since it was made."""
        return time.process_time() - self._start + self._skipped

    def skip_to(self, at_s: float) -> None:
        """Let time pass until then."""
        self._skipped += max(at_s - self.now(), 0.0)


def workload(num: int, longest_prompt: int, longest_answer: int) -> list[Job]:
    """Prompts of 16 to the longest, answers of 8 to the longest, evenly drawn."""
    chance = np.random.default_rng(0)
    sizes = zip(
        chance.integers(16, longest_prompt + 1, num), chance.integers(8, longest_answer + 1, num),
        strict=True,
    )  # fmt: skip
    return [Job(chance.integers(3, 4096, p).tolist(), int(n)) for p, n in sizes]


def random_llama(layers: int = 8) -> Any:
    """27 million parameters with 8 layers, grouped attention 8 to 4."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1376, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048,
        tie_word_embeddings=True, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


# --- the schemes -----------------------------------------------------------------------------------


def generate_batch(model: Any, jobs: list[Job], clock: Clock) -> None:
    """transformers' `generate` of these together, padded; all are through when the last is."""
    longest = max(len(job.prompt) for job in jobs)
    ids = torch.tensor([[0] * (longest - len(j.prompt)) + j.prompt for j in jobs])
    mask = torch.tensor([[0] * (longest - len(j.prompt)) + [1] * len(j.prompt) for j in jobs])
    most = max(job.num_new for job in jobs)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False
    )[:, longest:]
    now_s = clock.now()
    for job, row in zip(jobs, out.tolist(), strict=True):
        job.tokens, job.first_s, job.done_s = row[: job.num_new], now_s, now_s


def static(model: Any, jobs: list[Job], size: int = 8) -> None:
    """Batches of `size` in the order of arrival, each until its longest answer is through."""
    clock, waiting = Clock(), deque(jobs)
    while waiting:
        clock.skip_to(waiting[0].came_s)
        batch = [waiting.popleft()]
        while waiting and len(batch) < size and waiting[0].came_s <= clock.now():
            batch.append(waiting.popleft())
        generate_batch(model, batch, clock)


class Server:
    """Our engine with a clock."""

    def __init__(self, model: Any, limits: Limits) -> None:
        self.model = model
        self.clock, self.rows = Clock(), list[int]()
        self._coming: deque[Job] = deque()
        self._lock, self._idle = threading.Lock(), threading.Event()
        self._left = 0
        self._limits = limits
        self.then: Callable[[Job], None] = lambda job: None
        with torch.inference_mode():
            runner = PackedRunner(model, limits.slots * 1024, tune=Tuner())
            self.engine = Engine(runner, self._tick, lambda rows, _: self.rows.append(rows))

    def _tick(self) -> Limits:
        while self._coming and self._coming[0].came_s <= self.clock.now():
            self.submit(self._coming.popleft())
        return self._limits

    def submit(self, job: Job) -> None:
        """Let a job begin now."""
        with self._lock:
            self._left += 1

        def tell(outcome: Outcome) -> bool:
            if isinstance(outcome, Picked):
                job.tokens.append(outcome.token)
                job.first_s = job.first_s or self.clock.now()
            else:
                assert isinstance(outcome, Ended), outcome
                job.done_s = self.clock.now()
                self.then(job)
                with self._lock:
                    self._left -= 1
                    if not self._left:
                        self._idle.set()
            return True

        embeds = self.model.get_input_embeddings()(torch.tensor(job.prompt)).detach()
        options = GenerateOptions(max_new_tokens=job.num_new)
        self.engine.submit(Sequence(options, embeds, np.array(job.prompt), tell))

    def run(self, jobs: list[Job]) -> None:
        """Jobs as they come; time is skipped while there are none."""
        self.clock = Clock()
        self._coming = deque(jobs)
        while self._coming:
            self.clock.skip_to(self._coming[0].came_s)
            self._idle.clear()
            now = [self._coming.popleft()]
            while self._coming and self._coming[0].came_s <= self.clock.now():
                now.append(self._coming.popleft())
            for job in now:
                self.submit(job)
            self._idle.wait()


@contextmanager
def serving(model: Any, limits: Limits) -> Iterator[Server]:
    """A server, closed at the end."""
    server = Server(model, limits)
    try:
        yield server
    finally:
        server.engine.close()


def continuous(model: Any, jobs: list[Job], limits: Limits | None = None) -> None:
    """Our engine."""
    with serving(model, limits or Limits(SLOTS, CHUNK)) as server:
        server.run(jobs)


def gang(model: Any, jobs: list[Job], size: int = 8) -> None:
    """Static batches on our engine's kernels: nobody joins before all of a batch are through."""
    with serving(model, Limits(size, CHUNK)) as server:
        clock = server.clock = Clock()
        for at in range(0, len(jobs), size):
            batch = jobs[at : at + size]
            server._coming, server._idle = deque(), threading.Event()
            for job in batch:
                server.submit(job)
            server._idle.wait()
            now_s = clock.now()
            for job in batch:
                job.done_s = now_s


def transformers_continuous(model: Any, jobs: list[Job], size: int = 8) -> None:
    """transformers' own continuous batching, its cache bounded to what this load needs."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    clock = Clock()
    config = ContinuousBatchingConfig(
        page_size=32, num_blocks=size * 1024 // 32, max_batch_tokens=CHUNK + size
    )
    manager = model.init_continuous_batching(
        GenerationConfig(do_sample=False, max_new_tokens=256, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=config,
    )
    manager.start()
    try:
        byname = {
            manager.add_request(job.prompt, max_new_tokens=job.num_new, streaming=True): job
            for job in jobs
        }
        left = len(jobs)
        while left:
            result = manager.get_result(timeout=60)
            assert result is not None, "transformers' continuous batching stopped"
            job = byname[result.request_id]
            job.first_s = job.first_s or clock.now()
            if result.is_finished():
                job.tokens, job.done_s = list(result.generated_tokens), clock.now()
                left -= 1
    finally:
        manager.stop(block=True)


# --- what is told ------------------------------------------------------------------------------------


def figures(jobs: list[Job]) -> dict[str, float]:
    """Mean, spread and tail of latency, first token and throughput."""
    latency = np.array([job.done_s - job.came_s for job in jobs])
    first = np.array([job.first_s - job.came_s for job in jobs])
    span = max(j.done_s for j in jobs) - min(j.came_s for j in jobs)
    return {
        "mean_s": float(latency.mean()), "std_s": float(latency.std()),
        "p50_s": float(np.percentile(latency, 50)), "p99_s": float(np.percentile(latency, 99)),
        "tokens_per_s": sum(job.num_new for job in jobs) / span, "first_mean_s": float(first.mean()),
        "requests_per_s": len(jobs) / span,
    }  # fmt: skip


def ratios(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Ours as a multiple of theirs."""
    return {
        name: ours[name] / theirs[name] for name in ("mean_s", "std_s", "p99_s", "tokens_per_s")
    }


def measured(scheme: Callable[..., None], model: Any, jobs: list[Job], **more: Any) -> list[Job]:
    """Run a scheme on fresh copies of the jobs."""
    mine = [Job(job.prompt, job.num_new, job.came_s) for job in jobs]
    scheme(model, mine, **more)
    return mine


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def burst(model: Any, jobs: list[Job], rounds: int) -> dict[str, Any]:
    """All at once: static, gang, ours and transformers' in turns, the median of each."""
    schemes: dict[str, Scheme] = {
        "static_8": static, "gang_8": gang, "ours": continuous,
        "transformers_continuous": transformers_continuous,
    }  # fmt: skip
    if importlib.util.find_spec("openvino_genai"):
        schemes["openvino"] = openvino_continuous
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in schemes}
    exact = True
    for _ in range(rounds):
        answers = {}
        for name, scheme in schemes.items():
            done = measured(scheme, model, jobs)
            runs[name].append(figures(done))
            answers[name] = [job.tokens for job in done]
            print(f"burst {name}: {_short(runs[name][-1])}", flush=True)
        same = ("gang_8", "static_8", "openvino")
        exact = exact and all(answers[n] == answers["ours"] for n in same if n in answers)
    result: dict[str, Any] = {name: median(found) for name, found in runs.items()}
    for peer in schemes.keys() - {"ours"}:
        result[f"against_{peer}"] = ratios(result["ours"], result[peer])
    return {**result, "same_tokens": exact}


def poisson(model: Any, jobs: list[Job], static_rate: float, rounds: int) -> dict[str, Any]:
    """Arrivals at 80 % of what static batches serve, and at 1.8 times that, for ours alone."""
    gaps = np.random.default_rng(1).exponential(1.0, len(jobs)).cumsum()
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name, scheme, share in (
            ("ours_at_0.8", continuous, 0.8), ("static_8_at_0.8", static, 0.8),
            ("ours_at_1.8", continuous, 1.8),
        ):  # fmt: skip
            coming = [
                replace(job, came_s=float(gap) / (share * static_rate))
                for job, gap in zip(jobs, gaps, strict=True)
            ]
            runs.setdefault(name, []).append(figures(measured(scheme, model, coming)))
            print(f"poisson {name}: {_short(runs[name][-1])}", flush=True)
    result: dict[str, Any] = {name: median(found) for name, found in runs.items()}
    result["against_static_8"] = ratios(result["ours_at_0.8"], result["static_8_at_0.8"])
    return result


def closed(model: Any, jobs: list[Job], clients: int, rounds: int) -> dict[str, Any]:
    """Clients that ask anew as soon as they are answered; the middle half of all is counted."""

    def run_ours(_: Any, mine: list[Job]) -> None:
        coming = deque(mine[clients:])

        def ask_next(job: Job) -> None:
            if coming:
                follower = coming.popleft()
                follower.came_s = job.done_s
                server.submit(follower)

        with serving(model, Limits(SLOTS, CHUNK)) as server:
            server.then = ask_next
            server.run(mine[:clients])

    def run_static(_: Any, mine: list[Job]) -> None:
        clock, waiting, coming = Clock(), deque(mine[:clients]), deque(mine[clients:])
        while waiting:
            batch = [waiting.popleft() for _ in range(min(8, len(waiting)))]
            generate_batch(model, batch, clock)
            for job in batch:
                if coming:
                    coming[0].came_s = job.done_s
                    waiting.append(coming.popleft())

    runs: dict[str, list[dict[str, float]]] = {"ours": [], "static_8": []}
    for _ in range(rounds):
        for name, scheme in (("ours", run_ours), ("static_8", run_static)):
            runs[name].append(_steady(measured(scheme, model, jobs), clients))
            print(f"closed {name}: {_short(runs[name][-1])}", flush=True)
    result: dict[str, Any] = {name: median(found) for name, found in runs.items()}
    return {**result, "against_static_8": ratios(result["ours"], result["static_8"])}


def _steady(jobs: list[Job], clients: int) -> dict[str, float]:
    """The figures of the middle half, and how far they are from Little's law (throughput x latency)."""
    done = sorted(jobs, key=lambda job: job.done_s)
    steady = done[len(done) // 4 : 3 * len(done) // 4]
    found = figures(steady)
    rate = (len(steady) - 1) / (steady[-1].done_s - steady[0].done_s)
    return {**found, "requests_per_s": rate, "little": rate * found["mean_s"] / clients}


def alone(model: Any, rounds: int) -> dict[str, float]:
    """One request by itself: CPU time of ours and of bare `generate` of the same weights."""
    job = workload(1, 256, 8)[0]
    job.num_new = 96
    times = []
    with serving(model, Limits(SLOTS, CHUNK)) as server:
        for turn in range(2 * rounds + 1):
            prompt = [3 + turn, *job.prompt[1:]]  # nothing of the last one's to be reused
            bare, ours = Job(prompt, job.num_new), Job(prompt, job.num_new)
            generate_batch(model, [bare], Clock())
            clock = Clock()
            generate_batch(model, [bare], clock)
            bare.done_s = clock.now()
            server.run([ours])
            assert ours.tokens == bare.tokens
            times.append((ours.done_s, bare.done_s))
    ratio = statistics.median(ours / bare for ours, bare in times)
    print(f"alone: {ratio:.2f} times bare generate", flush=True)
    return {"ours_s": times[-1][0], "bare_generate_s": times[-1][1], "ratio": ratio}


def follow_up(rounds: int) -> dict[str, Any]:
    """The first token of a further question about a loaded study, against the first question's.

    Of the demo model, and of one in the larger size of its recipe with weights drawn at random.
    """
    from multimodal.backends import DEMO
    from multimodal.local import LocalBackend
    from multimodal.training.demo_model import build_demo
    from multimodal.training.world.worlds import WORLDS

    def demo() -> LocalBackend:
        return LocalBackend.from_pretrained(DEMO, device="cpu")

    def base() -> LocalBackend:
        model, processor = build_demo(WORLDS["body"], "base")
        return LocalBackend(model.eval(), processor)

    return {make.__name__: _follow_up(make, rounds) for make in (demo, base)}


def _follow_up(make: Callable[[], Any], rounds: int) -> dict[str, float]:
    from encoders.dicom import load_volume, scan
    from multimodal.backends import DEMO
    from multimodal.messages import Study, user

    volume = load_volume(scan(DEMO / "sample" / "study").default())
    firsts, nexts = [], []
    for _ in range(rounds):
        backend = make()
        backend.estimate([user("warm")])
        for at, words in enumerate(
            ("List the findings.", "Is there a nodule?", "How large is it?")
        ):
            clock = Clock()
            next(backend.generate([user(Study(volume), words)], GenerateOptions(max_new_tokens=1)))
            (nexts if at else firsts).append(clock.now())
        backend.close()
    first, later = statistics.median(firsts), statistics.median(nexts)
    name = f"follow-up, {make.__name__} model"
    print(f"{name}: {later / first:.3f} of the first question's {first:.3f} s", flush=True)
    return {"first_s": first, "follow_up_s": later, "ratio": later / first}


def floor(model: Any, jobs: list[Job], rounds: int) -> dict[str, float]:
    """The burst against the time of its matrix products alone, at the row counts it had."""
    runs = [_floor(model, jobs) for _ in range(rounds)]
    return median(runs)


def _floor(model: Any, jobs: list[Job]) -> dict[str, float]:
    with serving(model, Limits(SLOTS, CHUNK)) as server:
        mine = [Job(job.prompt, job.num_new) for job in jobs]
        server.run(mine)
        spent, rows = server.clock.now(), list(server.rows)
        layers = [
            m
            for m in server.engine.runner.model.model.layers.modules()  # type: ignore[attr-defined]
            if isinstance(m, torch.nn.Linear | PackedLinear)
        ]
        known: dict[int, float] = {}
        for count in sorted({-(-r // 32) * 32 for r in rows}):
            known[count] = _products_s(layers, count)
    products = sum(known[-(-r // 32) * 32] for r in rows)
    print(f"floor: burst {spent:.1f} s, products {products:.1f} s", flush=True)
    return {"burst_s": spent, "products_s": products, "ratio": spent / products}


@torch.inference_mode()
def _products_s(layers: list[Any], rows: int) -> float:
    inputs = {m.in_features: torch.randn(rows, m.in_features) for m in layers}
    best = float("inf")
    for _ in range(4):
        start = time.process_time()
        for layer in layers:
            layer(inputs[layer.in_features])
        best = min(best, time.process_time() - start)
    return best


def _short(told: dict[str, float]) -> str:
    names = ("mean_s", "std_s", "p99_s", "tokens_per_s", "first_mean_s")
    return " ".join(f"{name} {told[name]:.2f}" for name in names)


def main(arguments: list[str] | None = None) -> None:
    """Print each figure as it comes and, last, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("requests", 100), ("prompt", 512), ("answer", 256), ("rounds", 3),
                        ("layers", 8)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parts = ("burst", "poisson", "closed", "alone", "follow_up", "floor")
    parser.add_argument("--only", choices=parts, nargs="*", default=parts)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = random_llama(options.layers)
    jobs = workload(options.requests, options.prompt, options.answer)
    told: dict[str, Any] = {}
    if "burst" in options.only:
        told["burst"] = burst(model, jobs, options.rounds)
    if "poisson" in options.only:
        rate = told.get("burst", {}).get("static_8") or figures(measured(static, model, jobs))
        told["poisson"] = poisson(model, jobs, rate["requests_per_s"], options.rounds)
    if "closed" in options.only:
        told["closed"] = closed(model, jobs * 3, options.requests, options.rounds)
    if "alone" in options.only:
        told["alone"] = alone(model, options.rounds)
    if "follow_up" in options.only:
        told["follow_up"] = follow_up(options.rounds)
    if "floor" in options.only:
        told["floor"] = floor(model, jobs, options.rounds)
    listed = show_bars(told)
    about = {"machine": machine(), "torch": torch.__version__, **vars(options)}
    print(json.dumps({"benchmark": "serving", **about, **told, "bars": listed}))


if __name__ == "__main__":
    main()
