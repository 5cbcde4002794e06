"""The one operation of dynamic sparsity: one signature, chosen once by device.

`reference` is the definition; `cpu` and `triton_cuda` must match it.
"""

from __future__ import annotations

import torch

from multimodal.kernels import cpu


def sparse_gated_mlp(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    """The sum over active neurons of gate * (up . x) * down, for a few tokens.

    Args:
        x: `[rows, hidden]`.
        gate: activated gate `[rows, neurons]`.
        mask: which neurons run, bool `[rows, neurons]`.
        up: `[neurons, hidden]`; only active rows are read.
        down_t: `down_proj.weight` transposed, `[neurons, hidden]`; only active rows are read.

    Returns:
        `[rows, hidden]`.
    """
    if x.is_cuda:
        from multimodal.kernels import triton_cuda

        return triton_cuda.sparse_gated_mlp(x, gate, mask, up, down_t)
    return cpu.sparse_gated_mlp(x, gate, mask, up, down_t)
