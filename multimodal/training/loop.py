"""The one training loop: steps from a seed, warm-up and decay, state on disk, resumable after a kill.

Every stage gives it batches, a loss and a held-out check; it knows no data and no model. Step `n`
draws from `default_rng((seed, n))`, whichever thread draws it, so a run that was cut off goes on as
if it had not been. Of several processes each draws its own batch and the first writes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from multimodal.loading import multiplies_bfloat16
from multimodal.training import ranks
from multimodal.training.muon import Muon

logger = logging.getLogger(__name__)
Batch = TypeVar("Batch")

FINAL_SHARE = 0.03  # of the learning rate, left at the last step
_TABLES = ("embed", "words", "places", "name.weight")  # rows of them are looked up, not multiplied
_LEAST_SIDE = 64  # of a matrix that maps between hidden states; smaller ones are heads


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and how many at a time: `warmup` steps up to `lr`, then down to 3 % of it."""

    steps: int
    lr: float
    batch_size: int = 48
    warmup: int = 100
    save_every: int = 200
    weight_decay: float = 0.02
    num_workers: int = 1

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        decay = 1.0 - (1.0 - FINAL_SHARE) * step / self.steps
        return self.lr * min(1.0, (step + 1) / self.warmup) * decay


@dataclass(frozen=True)
class Stage(Generic[Batch]):
    """One stage: what is trained, its batches and their loss, what is kept.

    Attributes:
        name: for the log and the state file, `<name>_state.pt`.
        model: its parameters that require gradients are trained.
        draw: (step, generator) -> a batch, on the CPU; called ahead of time in other threads.
        loss: a batch -> the kind it is of, its loss.
        check: what the log shows of held-out data.
        kept: whether a named weight belongs in the state; frozen ones need not.
    """

    name: str
    model: nn.Module
    draw: Callable[[int, np.random.Generator], Batch]
    loss: Callable[[Batch], tuple[str, torch.Tensor]]
    check: Callable[[], str]
    kept: Callable[[str], bool] = lambda name: True


def mixed_precision(device: torch.device | str = "cpu") -> torch.autocast:
    """bfloat16 where the processor multiplies in it; elsewhere it is emulated, many times slower."""
    kind = torch.device(device).type
    if kind != "cpu":
        return torch.autocast(kind, torch.bfloat16)
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16())


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To a device; to a GPU through pinned memory, without waiting."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def train(stage: Stage[Batch], schedule: Schedule, work_dir: Path, *, seed: int = 0) -> None:
    """Run a stage to its last step, from its saved state where there is one."""
    wanted = [p for p in stage.model.parameters() if p.requires_grad]
    optimisers = optimisers_of(stage.model, schedule)
    state_file = work_dir / f"{stage.name}_state.pt"
    first = _resume(stage, optimisers, state_file)
    means: dict[str, torch.Tensor] = {}
    started = time.monotonic()
    stage.model.train()
    for step, batch in _batches(stage, schedule, first, seed):
        kind, loss = stage.loss(batch)
        stage.model.zero_grad()
        loss.backward()
        ranks.average_gradients(wanted)
        nn.utils.clip_grad_norm_(wanted, 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step)
            optimiser.step()
        value = loss.detach()  # read only when it is shown: reading waits for a GPU
        means[kind] = 0.98 * means[kind] + 0.02 * value if kind in means else value
        count = step + 1
        due = count % schedule.save_every == 0 or count == schedule.steps
        if due and ranks.rank() == 0:
            seconds = (time.monotonic() - started) / (count - first)
            losses = " ".join(f"{kind} {mean:.4f}" for kind, mean in means.items())
            _save(stage, optimisers, count, state_file)
            logger.info("%s step %d of %d, %.2f s a step, loss %s, held-out %s",
                        stage.name, count, schedule.steps, seconds, losses, stage.check())  # fmt: skip
    stage.model.eval()


def optimisers_of(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the networks, AdamW for all else; one rate serves both."""
    inside: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_table = any(part in name for part in _TABLES)
            large = parameter.ndim == 2 and min(parameter.shape) >= _LEAST_SIDE
            (inside if large and not is_table else rest).append(parameter)
    decay = schedule.weight_decay
    adamw = torch.optim.AdamW(rest, schedule.lr, weight_decay=decay, betas=(0.9, 0.98))
    if not inside:
        return [adamw]
    return [adamw, Muon(inside, schedule.lr, decay)]


def _batches(
    stage: Stage[Batch], schedule: Schedule, first: int, seed: int
) -> Iterator[tuple[int, Batch]]:
    """Step and batch in order, some drawn ahead."""
    ahead: deque[Future[Batch]] = deque()
    apart = (ranks.rank(),) if ranks.rank() else ()
    with ThreadPoolExecutor(schedule.num_workers) as pool:
        for step in range(first, schedule.steps + schedule.num_workers):
            if step < schedule.steps:
                rng = np.random.default_rng((seed, step, *apart))
                ahead.append(pool.submit(stage.draw, step, rng))
            if step >= first + schedule.num_workers:
                yield step - schedule.num_workers, ahead.popleft().result()


def _resume(stage: Stage[Batch], optimisers: list[torch.optim.Optimizer], state_file: Path) -> int:
    if not state_file.is_file():
        return 0
    state = torch.load(state_file, weights_only=True, map_location="cpu")
    stage.model.load_state_dict(state["model"], strict=False)
    for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(kept)
    return state["step"]


def _save(
    stage: Stage[Batch], optimisers: list[torch.optim.Optimizer], step: int, state_file: Path
) -> None:
    """Written beside and moved, so that a kill never leaves half a state."""
    weights = {k: v for k, v in stage.model.state_dict().items() if stage.kept(k)}
    beside = state_file.with_suffix(".new")
    states = [optimiser.state_dict() for optimiser in optimisers]
    torch.save({"model": weights, "optimisers": states, "step": step}, beside)
    beside.replace(state_file)
