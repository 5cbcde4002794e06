"""Processes that train one model together, each on its own share of every batch (`torchrun`).

Two of one thread each share a CPU better than one of two threads, which waits for the slower at
every layer. Alone, nothing here does anything. Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

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
    for gradient, total in zip(given, _sums(given), strict=True):
        gradient.copy_(total / count())


def share_out(
    work: Callable[[torch.Tensor], torch.Tensor], tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """`work` on each tensor, shapes kept; each process does its share and all get all."""
    if count() == 1 or not tensors:
        return [work(tensor) for tensor in tensors]
    load = [0] * count()
    mine = []
    for index in sorted(range(len(tensors)), key=lambda i: -tensors[i].numel()):
        owner = load.index(min(load))
        load[owner] += tensors[index].numel()
        if owner == rank():
            mine.append(index)
    return _sums([work(t) if i in mine else torch.zeros_like(t) for i, t in enumerate(tensors)])


def _sums(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Every process's tensors added up, in one exchange."""
    together = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(together)
    parts = together.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
