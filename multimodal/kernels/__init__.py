"""The operation of dynamic sparsity: one signature, a kernel for each kind of device.

`reference` is the definition; `cpu` and `triton_cuda` must match it. `attention` holds the other one, of
decoding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import torch

Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


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
    return kernel_for(x.device.type)(x, gate, mask, up, down_t)


@cache
def kernel_for(device_type: str) -> Kernel:
    """The kernel of a torch device type; masked dense arithmetic where none is written for it."""
    if device_type == "cpu":
        from multimodal.kernels import cpu

        return cpu.sparse_gated_mlp
    if device_type == "cuda" and importlib.util.find_spec("triton") is not None:
        from multimodal.kernels import triton_cuda

        return triton_cuda.sparse_gated_mlp
    from multimodal.kernels import reference

    return reference.sparse_gated_mlp
