"""Convolutions in the place of a ViT's patch embedding, for small towers on small pictures.

Pixels in, one feature map cell per patch out. After Xiao et al. 2021, "Early Convolutions Help
Transformers See Better": what is smaller than a patch is found by weights shared by all places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_GROUP = 16  # channels normalised together


class ConvStem(nn.Sequential):
    """`[n, 3, h, w]` -> `[n, out, h / 2**levels, w / 2**levels]`."""

    def __init__(self, levels: Sequence[Sequence[int]], out: int) -> None:
        """Each level, (width, residual blocks), halves the picture; widths are multiples of 16."""
        layers: list[nn.Module] = []
        before = 3
        for width, blocks in levels:
            layers.append(nn.Conv2d(before, width, 3, 2, 1))
            layers += [_Residual(width) for _ in range(blocks)]
            layers += [nn.GroupNorm(width // _GROUP, width), nn.ReLU()]
            before = width
        super().__init__(*layers, nn.Conv2d(before, out, 1))


class _Residual(nn.Module):
    """Norm, ReLU and convolution, twice (He et al. 2016); adds nothing at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.GroupNorm(width // _GROUP, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1),
            nn.GroupNorm(width // _GROUP, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        last: nn.Module = self.change[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, width, h, w]`, shape kept."""
        changed: torch.Tensor = self.change(x)
        return x + changed
