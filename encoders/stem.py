"""Convolutions in the place of a ViT's patch embedding, for small towers on small pictures.

Pixels in, one feature map cell per patch out. After Xiao et al. 2021, "Early Convolutions Help
Transformers See Better": what is smaller than a patch is found by weights shared by all places.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

GROUP = 16  # channels normalised together


class ConvStem(nn.Sequential):
    """`[n, channels, h, w]` -> `[n, out, h / patch, w / patch]`."""

    def __init__(
        self,
        levels: Sequence[Sequence[int]],
        out: int,
        patch: int,
        fine: int = 0,
        channels: int = 3,
    ) -> None:
        """Each level, (width, residual blocks), halves the picture, the first by what is left of the
        patch; of `fine` channels beside the first convolution every two pixels are looked at. Widths are
        multiples of 16.
        """
        layers: list[nn.Module] = []
        before, stride = channels, patch // 2 ** (len(levels) - 1)
        for width, blocks in levels:
            convolution = partial(_WithFine, fine) if fine and not layers else nn.Conv2d
            layers.append(convolution(before, width, 3 * stride // 2, stride, stride // 2))
            layers += [_Residual(width) for _ in range(blocks)]
            layers += [nn.GroupNorm(width // GROUP, width), nn.ReLU()]
            before, stride = width, 2
        super().__init__(*layers, nn.Conv2d(before, out, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Channels lie side by side in memory: a third faster on a CPU."""
        features: torch.Tensor = super().forward(
            pixels.contiguous(memory_format=torch.channels_last)
        )
        return features


class _WithFine(nn.Conv2d):
    """A convolution of large steps, and beside it steps of two pixels, silent as they are made.

    What is round and what is long differ by a pixel or two where a lesion is small.
    """

    def __init__(
        self, fine: int, before: int, width: int, kernel: int, stride: int, padding: int
    ) -> None:
        super().__init__(before, width, kernel, stride, padding)
        self.fine = nn.Sequential(
            nn.Conv2d(before, fine, 3, 2, 1), nn.GroupNorm(fine // GROUP, fine), nn.ReLU(),
            nn.Conv2d(fine, fine, 3, 1, 1), nn.GroupNorm(fine // GROUP, fine), nn.ReLU(),
            nn.Conv2d(fine, width, 3, stride // 2, 1),
        )  # fmt: skip
        _silence(self.fine[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, before, h, w]` -> `[n, width, h / stride, w / stride]`."""
        seen: torch.Tensor = super().forward(x) + self.fine(x)
        return seen


class _Residual(nn.Module):
    """Norm, ReLU and convolution, twice (He et al. 2016); adds nothing at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.GroupNorm(width // GROUP, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1),
            nn.GroupNorm(width // GROUP, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        _silence(self.change[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, width, h, w]`, shape kept."""
        changed: torch.Tensor = self.change(x)
        return x + changed


def _silence(last: nn.Module) -> None:
    """What comes out of a part that ends so is nothing, until it learns."""
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
