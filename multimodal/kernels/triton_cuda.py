"""CUDA and ROCm decode path in Triton: one program per token and block of output columns.

Two launches: active neurons' products first, then their weighted sum. Inactive rows of `up` and
`down` are never loaded. Chosen only for tensors on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _up_kernel(x, gate, index, up, out, hidden, neurons, count, BLOCK_H: tl.constexpr):
    """out[row, i] = gate[row, index[row, i]] * dot(up[index[row, i]], x[row])."""
    row, i = tl.program_id(0), tl.program_id(1)
    neuron = tl.load(index + row * count + i)
    if neuron >= 0:
        columns = tl.arange(0, BLOCK_H)
        total = tl.zeros([BLOCK_H], dtype=tl.float32)
        for start in range(0, hidden, BLOCK_H):
            inside = start + columns < hidden
            a = tl.load(up + neuron * hidden + start + columns, mask=inside, other=0.0)
            b = tl.load(x + row * hidden + start + columns, mask=inside, other=0.0)
            total += a.to(tl.float32) * b.to(tl.float32)
        g = tl.load(gate + row * neurons + neuron).to(tl.float32)
        tl.store(out + row * count + i, g * tl.sum(total, axis=0))
    else:
        tl.store(out + row * count + i, 0.0)


@triton.jit
def _down_kernel(weights, index, down_t, out, hidden, count, BLOCK_H: tl.constexpr):
    """out[row, block] = sum over i of weights[row, i] * down_t[index[row, i], block]."""
    row, block = tl.program_id(0), tl.program_id(1)
    columns = block * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < hidden
    total = tl.zeros([BLOCK_H], dtype=tl.float32)
    for i in range(0, count):
        neuron = tl.load(index + row * count + i)
        if neuron >= 0:
            w = tl.load(weights + row * count + i)
            d = tl.load(down_t + neuron * hidden + columns, mask=inside, other=0.0)
            total += w * d.to(tl.float32)
    tl.store(out + row * hidden + columns, total.to(out.dtype.element_ty), mask=inside)


def active_index(mask: torch.Tensor) -> torch.Tensor:
    """Active neurons of each row, ascending, padded with -1: int64 `[rows, most]`."""
    counts = mask.sum(1)
    most = max(int(counts.max()), 1)
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :most]
    beyond = torch.arange(most, device=mask.device) >= counts[:, None]
    return order.masked_fill(beyond, -1).contiguous()


def sparse_gated_mlp(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    """See `multimodal.kernels.sparse_gated_mlp`."""
    rows, hidden = x.shape
    index = active_index(mask)
    count = index.shape[1]
    products = torch.empty(rows, count, dtype=torch.float32, device=x.device)
    x, gate = x.contiguous(), gate.contiguous()
    _up_kernel[(rows, count)](
        x, gate, index, up, products, hidden, gate.shape[1], count, BLOCK_H=256
    )
    out = torch.empty_like(x)
    grid = (rows, triton.cdiv(hidden, 128))
    _down_kernel[grid](products, index, down_t, out, hidden, count, BLOCK_H=128)
    return out
