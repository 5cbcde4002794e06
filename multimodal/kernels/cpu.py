"""CPU decode path: active rows of `up` are multiplied where they lie, those of `down` summed likewise.

Small layers stay in the cache and are gathered, which costs less than describing a sparse product.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch.nn import functional as F

GATHER_BYTES = 4 << 20  # an `up` up to this size is gathered


def sparse_gated_mlp(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    """See `multimodal.kernels.sparse_gated_mlp`."""
    large = up.numel() * up.element_size() > GATHER_BYTES
    if large and up.dtype in (torch.float32, torch.float64):
        return _in_place(x, gate, mask, up, down_t)
    rows = zip(x.unbind(), gate.unbind(), mask.unbind(), strict=True)
    return torch.stack([_gathered(*row, up, down_t) for row in rows])


def _in_place(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    """All rows at once; no weight is copied."""
    _accept_sparse_tensors()
    neurons = mask.nonzero()[:, 1]
    bounds = F.pad(mask.sum(1).cumsum(0), (1, 0))
    pattern = torch.sparse_csr_tensor(
        bounds, neurons, gate.new_zeros(len(neurons)), size=mask.shape, check_invariants=False
    )
    products = torch.sparse.sampled_addmm(pattern, x, up.t(), beta=0.0).values()
    return F.embedding_bag(
        neurons, down_t, bounds[:-1], per_sample_weights=gate[mask] * products, mode="sum"
    )


@cache
def _accept_sparse_tensors() -> None:
    """Make the first CSR tensor, at which torch warns once that its sparse tensors may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.long),
                                torch.tensor([]), size=(1, 1))  # fmt: skip


def _gathered(
    x: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor
) -> torch.Tensor:
    """One row, with its own neurons."""
    active = mask.nonzero().squeeze(1)
    if len(active) == 0:
        return torch.zeros_like(x)
    hidden = gate[active] * torch.mv(up.index_select(0, active), x)
    # embedding_bag sums weighted rows as it reads them: no gathered copy of `down`
    return F.embedding_bag(
        active[None], down_t, per_sample_weights=hidden[None].to(down_t.dtype), mode="sum"
    )[0]
