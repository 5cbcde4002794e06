"""The one training loop: steps from a seed, warm-up and decay, state on disk, resumable after a kill.

Every stage gives it a loss and a held-out check; it knows no data and no model. Step `n` draws
from `default_rng((seed, n))`, so a run that was cut off goes on as if it had not been.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

logger = logging.getLogger(__name__)

FINAL_SHARE = 0.03  # of the learning rate, left at the last step


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `warmup` steps up to `lr`, then linearly down to 3 % of it."""

    steps: int
    lr: float
    warmup: int = 100
    save_every: int = 200
    weight_decay: float = 0.02

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        decay = 1.0 - (1.0 - FINAL_SHARE) * step / self.steps
        return self.lr * min(1.0, (step + 1) / self.warmup) * decay


@dataclass(frozen=True)
class Stage:
    """One stage: what is trained, the loss of a step (with the name of its kind), what is kept.

    Attributes:
        name: for the log and the state file, `<name>_state.pt`.
        model: its parameters that require gradients are trained.
        loss: (step, generator) -> kind of the step's batch, its loss.
        check: what the log shows of held-out data.
        kept: whether a named weight belongs in the state; frozen ones need not.
    """

    name: str
    model: nn.Module
    loss: Callable[[int, np.random.Generator], tuple[str, torch.Tensor]]
    check: Callable[[], str]
    kept: Callable[[str], bool] = lambda name: True


def mixed_precision() -> torch.autocast:
    """bfloat16 where the processor multiplies in it; elsewhere it is emulated, many times slower."""
    able = torch.cpu.get_capabilities()
    native = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def train(stage: Stage, schedule: Schedule, work_dir: Path, *, seed: int = 0) -> None:
    """Run a stage to its last step, from its saved state where there is one."""
    wanted = [p for p in stage.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        wanted, lr=schedule.lr, weight_decay=schedule.weight_decay, betas=(0.9, 0.98)
    )
    state_file = work_dir / f"{stage.name}_state.pt"
    step = _resume(stage, optimiser, state_file)
    means: dict[str, float] = {}
    started, first = time.monotonic(), step
    stage.model.train()
    while step < schedule.steps:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        kind, loss = stage.loss(step, np.random.default_rng((seed, step)))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(wanted, 1.0)
        optimiser.step()
        step += 1
        value = loss.item()
        means[kind] = 0.98 * means[kind] + 0.02 * value if kind in means else value
        if step % schedule.save_every == 0 or step == schedule.steps:
            seconds = (time.monotonic() - started) / (step - first)
            losses = " ".join(f"{kind} {mean:.4f}" for kind, mean in means.items())
            logger.info("%s step %d of %d, %.2f s a step, loss %s, held-out %s",
                        stage.name, step, schedule.steps, seconds, losses, stage.check())  # fmt: skip
            _save(stage, optimiser, step, state_file)
    stage.model.eval()


def _resume(stage: Stage, optimiser: torch.optim.Optimizer, state_file: Path) -> int:
    if not state_file.is_file():
        return 0
    state = torch.load(state_file, weights_only=True)
    stage.model.load_state_dict(state["model"], strict=False)
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


def _save(stage: Stage, optimiser: torch.optim.Optimizer, step: int, state_file: Path) -> None:
    """Written beside and moved, so that a kill never leaves half a state."""
    weights = {k: v for k, v in stage.model.state_dict().items() if stage.kept(k)}
    beside = state_file.with_suffix(".new")
    torch.save({"model": weights, "optimiser": optimiser.state_dict(), "step": step}, beside)
    beside.replace(state_file)
