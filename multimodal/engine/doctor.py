"""What the engine chose on this machine and why: every choice with the measurement behind it."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from multimodal.backends import GenerateOptions
from multimodal.engine.adaptive import Adaptive
from multimodal.engine.engine import Engine
from multimodal.engine.memory import bytes_per_place
from multimodal.engine.sequence import Outcome, Picked, Scored, Sequence
from multimodal.engine.tuning import Tuned
from multimodal.loading import devices_of, entrance_of

_PROMPTS = (16, 48, 96)  # tokens, of which steps of several sizes are tried
_ROUNDS = 4


@dataclass(frozen=True)
class Choice:
    """One thing that was chosen."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was chosen; `step_seconds` by rows is what it was chosen by."""

    choices: tuple[Choice, ...]
    step_seconds: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def diagnose(engine: Engine, model: Any, adaptive: Adaptive, tuned: Tuned) -> Diagnosis:
    """Let the engine run steps of several sizes, choose, and tell."""
    exercise(engine, model)
    limits, cost = adaptive.choose(), adaptive.cost()
    costs = "no two sizes of steps were measured" if cost is None else (
        f"a step costs {1e3 * cost.fixed_s:.2f} ms and {1e3 * cost.row_s:.3f} ms a row"
    )  # fmt: skip
    room, each = engine.runner.capacity(), bytes_per_place(model)
    choices = [
        Choice("objective", adaptive.objective, "CROSSREAD_OBJECTIVE or --objective"),
        *placed(model, _gain(tuned), tuned.dtype_why),
        Choice("ranks", str(tuned.num_ranks), _why_ranks(tuned)),
        Choice("threads", str(tuned.threads), _why_threads(tuned)),
        Choice("batching", "one by one" if tuned.one_by_one else "continuous",
               tuned.one_by_one or "packed passes were tried and give what the model gives"),
        Choice("slots", str(limits.slots), costs),
        Choice("chunk", f"{limits.chunk} tokens", costs),
        Choice("room", f"{room} tokens", f"{each} bytes of keys and values each"),
        Choice("weights", "packed" if tuned.is_packed else "plain",
               f"packed ones multiply {tuned.packing_gain:.2f} times as fast"),
        Choice("MLPs", _mlps(tuned), _why_mlps(tuned)),
    ]  # fmt: skip
    return Diagnosis(tuple(choices), adaptive.costs())


def placed(model: Any, bfloat16: str = "", dtype_why: str = "") -> tuple[Choice, ...]:
    """Where a model is and in which numbers.

    On a CPU `bfloat16` says what that would gain, `dtype_why` what the dtype was chosen by.
    """
    entrance = entrance_of(model)
    on_cpu = entrance.type == "cpu"
    why = "the checkpoint's"
    if on_cpu:
        why = "exact" if model.dtype == torch.float32 else "asked for (float32 is exact)"
        why += bfloat16
    if dtype_why:
        why = dtype_why
    return (
        Choice("device", str(entrance), "a GPU where there is one"),
        Choice("dtype", str(model.dtype).removeprefix("torch."), why),
    )


def mapped(model: Any) -> tuple[Choice, ...]:
    """Where the modules of a model lie that was mapped to devices; nothing of any other."""
    devices = devices_of(model)
    if not devices:
        return ()
    why = (
        "one holds it all" if len(devices) == 1 else "in the order of its modules, as memory allows"
    )
    lie = ", ".join(f"{name}: {count}" for name, count in sorted(devices.items()))
    return (Choice("device map", f"modules on {lie}", f"--device-map; {why}, or as its file says"),)


def exercise(engine: Engine, model: Any) -> None:
    """Run steps of several sizes, of numbers that mean nothing."""
    for _ in range(_ROUNDS):
        for length in _PROMPTS:
            ended = threading.Event()

            def tell(outcome: Outcome, ended: threading.Event = ended) -> bool:
                if not isinstance(outcome, Picked | Scored):
                    ended.set()
                return True

            embeds = torch.randn(length, model.config.hidden_size).to(model.device, model.dtype)
            # numbers that no token has: nothing is reused
            content = -np.random.default_rng().integers(2**40, 2**62, length)
            engine.submit(Sequence(GenerateOptions(max_new_tokens=4), embeds, content, tell))
            ended.wait()


def _gain(tuned: Tuned) -> str:
    return f"; bfloat16 multiplies {tuned.bfloat16_gain:.2f} times as fast (--dtype bfloat16)"


def _why_ranks(tuned: Tuned) -> str:
    if tuned.num_ranks == 1:
        return "the whole model in one process; --tensor-parallel splits it"
    return "--tensor-parallel; nothing is tuned, so that all ranks do the same"


def _why_threads(tuned: Tuned) -> str:
    tried = ", ".join(f"{n}: {1e3 * s:.2f} ms" for n, s in tuned.thread_seconds)
    return f"the fastest for the largest layer ({tried})" if tried else "as torch has it"


def _mlps(tuned: Tuned) -> str:
    if not tuned.sparse_gain:
        return "dense"
    return (
        f"sparse up to {tuned.dense_above} tokens" if tuned.dense_above else "masked, none skipped"
    )


def _why_mlps(tuned: Tuned) -> str:
    gains = ", ".join(f"{rows}: {gain:.2f}" for rows, gain in tuned.sparse_gain)
    return (
        f"sparse against dense, by tokens at once: {gains}" if gains else "the model has no gates"
    )
