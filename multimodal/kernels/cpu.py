"""CPU decode path: gathers the active rows of `up` and sums the active rows of `down` transposed."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def sparse_gated_mlp(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    """See `multimodal.kernels.sparse_gated_mlp`; a row at a time, each with its own neurons."""
    return torch.stack(
        [
            _one(*row, up, down_t)
            for row in zip(x.unbind(), gate.unbind(), mask.unbind(), strict=True)
        ]
    )


def _one(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    active = mask.nonzero().squeeze(1)
    if len(active) == 0:
        return torch.zeros_like(x)
    hidden = gate[active] * torch.mv(up.index_select(0, active), x)
    # embedding_bag sums weighted rows as it reads them: no gathered copy of `down`
    return F.embedding_bag(
        active[None], down_t, per_sample_weights=hidden[None].to(down_t.dtype), mode="sum"
    )[0]
