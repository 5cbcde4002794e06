"""Processes that train one model together, each on its own share of every batch (`torchrun`).

Two of one thread each share a CPU better than one of two threads, which waits for the slower at
every layer. Alone, nothing here does anything. Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def join() -> None:
    """Meet the other processes, if torchrun started this one."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")


def rank() -> int:
    """This process's number from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all have come here."""
    if count() > 1:
        dist.barrier()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Every process's gradients become the mean of all; each must have them for the same weights."""
    if count() == 1:
        return
    given = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([g.flatten() for g in given])
    dist.all_reduce(together)
    together /= count()
    for gradient, mean in zip(given, together.split([g.numel() for g in given]), strict=True):
        gradient.copy_(mean.view_as(gradient))
