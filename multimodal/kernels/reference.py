"""The definition of the sparse MLP, in masked dense arithmetic. Slow and plain on purpose."""

from __future__ import annotations

import torch


def sparse_gated_mlp(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    """See `multimodal.kernels.sparse_gated_mlp`."""
    hidden = torch.where(mask, gate, torch.zeros_like(gate)) * (x @ up.T)
    return hidden @ down_t
