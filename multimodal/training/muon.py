"""Muon (Jordan 2024): a matrix's step is its momentum with all singular values made equal.

torch's own turns every matrix in bfloat16, which most CPUs emulate thirty times slower, and in every
process; here each process turns its share. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from multimodal.loading import multiplies_bfloat16
from multimodal.training import ranks

MOMENTUM = 0.95
_QUINTIC = (
    3.4445,
    -4.775,
    2.0315,
)  # Jordan's: drives singular values into 0.7 to 1.2 in five rounds
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """With Nesterov momentum, steps scaled to AdamW's (Liu et al. 2025) and decoupled decay."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            turned = ranks.share_out(orthogonal, [self._heading(p) for p in given])
            for matrix, update in zip(given, turned, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))

    def _heading(self, matrix: torch.Tensor) -> torch.Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(state["momentum"], MOMENTUM)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix `[m, n]` whose singular values are all about one, by Newton and Schulz."""
    is_bfloat16 = matrix.device.type == "cuda" or multiplies_bfloat16()
    x = matrix.bfloat16() if is_bfloat16 else matrix.float()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)
