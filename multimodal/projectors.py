"""Projectors: tower features in, backbone embeddings out, with fewer tokens.

Tokens of a slice carry where they lie in the patient: millimetres from the volume's centre enter
as Fourier features, so slices 5 mm and 50 mm apart differ. Knows no tower and no language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from encoders.errors import IncompatibleModel

_WAVELENGTHS_MM = (12.5, 25.0, 50.0, 100.0, 200.0, 400.0, 800.0)
GEOMETRY_WIDTH = 11  # origin, column step, row step (3 each, mm), slab thickness, flag


def fourier(values_mm: torch.Tensor) -> torch.Tensor:
    """Sine and cosine of millimetres at octave wavelengths: `[..., k]` -> `[..., k * 14]`."""
    waves = torch.tensor(_WAVELENGTHS_MM, device=values_mm.device, dtype=torch.float32)
    angles = values_mm.float().unsqueeze(-1) * (2 * torch.pi / waves)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


FOURIER_WIDTH = 2 * len(_WAVELENGTHS_MM)


def token_centres_mm(geometry: torch.Tensor, grid: tuple[int, int], view_size: int) -> torch.Tensor:
    """Patient coordinates of each cell's centre: `[n, 11]` -> `[n, rows * columns, 3]`, LPS mm."""
    rows, columns = grid
    y = (torch.arange(rows, device=geometry.device) + 0.5) * (view_size / rows) - 0.5
    x = (torch.arange(columns, device=geometry.device) + 0.5) * (view_size / columns) - 0.5
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    origin, step_x, step_y = geometry[:, None, 0:3], geometry[:, None, 3:6], geometry[:, None, 6:9]
    return origin + xx.reshape(1, -1, 1) * step_x + yy.reshape(1, -1, 1) * step_y


def patch_volumes_mm3(
    geometry: torch.Tensor, grid: tuple[int, int], view_size: int
) -> torch.Tensor:
    """What a patch of each view stands for: `[n, 11]` -> `[n]`, mm^3."""
    rows, columns = grid
    area = geometry[:, 3:6].norm(dim=1) * geometry[:, 6:9].norm(dim=1)
    return area * (view_size / rows) * (view_size / columns) * geometry[:, 9].abs()


def mlp(width_in: int, width_out: int) -> nn.Sequential:
    """LayerNorm, then two layers with GELU between (the projector of LLaVA-1.5, normed)."""
    return nn.Sequential(
        nn.LayerNorm(width_in),
        nn.Linear(width_in, width_out),
        nn.GELU(),
        nn.Linear(width_out, width_out),
    )


class SliceProjector(nn.Module):
    """Patch features of pictures -> embeddings, `factor` squared patches to a token.

    "shuffle" joins the patches' features (nothing is averaged away), "pool" takes their mean. Where
    `factor` does not divide the grid (37 x 37 is prime), "pool" takes the mean of cells of nearly
    equal size that may share a row or column of patches.
    """

    def __init__(
        self, width: int, hidden: int, grid: tuple[int, int], *, factor: int, reduction: str
    ) -> None:
        super().__init__()
        divides = grid[0] % factor == 0 and grid[1] % factor == 0
        if factor > min(grid) or not (divides or reduction == "pool"):
            raise IncompatibleModel(
                f"a {grid[0]}x{grid[1]} grid of patches cannot be reduced by {factor};"
                " choose a vision_factor that divides it, or the vision_reduction 'pool'"
            )
        self.divides = divides
        self.grid, self.factor, self.reduction = grid, factor, reduction
        self.mlp = mlp(width * (factor**2 if reduction == "shuffle" else 1), hidden)
        self.place = nn.Linear(3 * FOURIER_WIDTH + 4, hidden)

    def forward(
        self, features: torch.Tensor, geometry: torch.Tensor, view_size: int
    ) -> torch.Tensor:
        """`[n, patches, width]` and geometry `[n, 11]` -> `[n, tokens, hidden]`."""
        projected = self.mlp(self._reduced(features))
        place = self.place(self._place_features(geometry, view_size).to(projected.dtype))
        known = geometry[:, None, 10:11].to(projected.dtype)
        return projected + known * place

    def _reduced(self, features: torch.Tensor) -> torch.Tensor:
        n, _, width = features.shape
        k, (rows, columns) = self.factor, self.grid
        if not self.divides:
            picture = features.transpose(1, 2).reshape(n, width, rows, columns)
            cells = nn.functional.adaptive_avg_pool2d(picture, (rows // k, columns // k))
            return cells.flatten(2).transpose(1, 2)
        cells = features.view(n, rows // k, k, columns // k, k, width).transpose(2, 3)
        cells = cells.reshape(n, -1, k * k, width)
        return cells.flatten(2) if self.reduction == "shuffle" else cells.mean(2)

    def _place_features(self, geometry: torch.Tensor, view_size: int) -> torch.Tensor:
        grid = (self.grid[0] // self.factor, self.grid[1] // self.factor)
        centres = fourier(token_centres_mm(geometry, grid, view_size))
        steps = torch.stack(
            [geometry[:, 3:6].norm(dim=1), geometry[:, 6:9].norm(dim=1), geometry[:, 9].abs()],
            dim=1,
        )
        scale = torch.cat([(steps + 0.1).log(), geometry[:, 10:11]], dim=1)
        return torch.cat([centres, scale[:, None].expand(-1, centres.shape[1], -1)], dim=2)


class AudioProjector(nn.Module):
    """Encoder frames -> embeddings, `stack` frames joined into a token (the last padded)."""

    def __init__(self, width: int, hidden: int, stack: int) -> None:
        super().__init__()
        self.stack = stack
        self.mlp = mlp(width * stack, hidden)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`[frames, width]` of one stretch -> `[ceil(frames / stack), hidden]`."""
        short = -frames.shape[0] % self.stack
        padded = nn.functional.pad(frames, (0, 0, 0, short))
        return self.mlp(padded.view(-1, self.stack * frames.shape[1]))


class Neighbours(nn.Module):
    """What a patch learns from those around it in its view and in the views below and above.

    A vessel that runs through a slice is as round there as a nodule, and so is the cap of a mass: the next
    view tells them apart. Adds nothing at first.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 4 * hidden)
        self.second = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, width)
        for of_last in self.out.parameters():
            nn.init.zeros_(of_last)

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """A study's views from below to above, `[..., views, patches, width]`, shape kept."""
        own, around, below, above = self.first(self.norm(features)).chunk(4, dim=-1)
        inside = own + _around(around, grid)
        inside[..., 1:, :, :] += (below + _around(below, grid))[..., :-1, :, :]
        inside[..., :-1, :, :] += (above + _around(above, grid))[..., 1:, :, :]
        inside = nn.functional.gelu(inside)
        changed: torch.Tensor = self.out(inside + nn.functional.gelu(self.second(inside)))
        return features + changed


def _around(patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A ninth of each patch and the eight about it, nothing beyond the edge; shape kept."""
    pictures = patches.flatten(0, -3).transpose(1, 2).unflatten(2, grid)
    pooled = nn.functional.avg_pool2d(pictures, 3, 1, 1)
    return pooled.flatten(2).transpose(1, 2).reshape(patches.shape)


class FindingHead(nn.Module):
    """Which patch shows which finding, and how large it is.

    Trained on exact masks; its maps ground the answer and feed the region tokens.
    """

    def __init__(self, width: int, num_findings: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * num_findings)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[..., patches, width]` -> presence logits and log-millimetre sizes, `[..., patches, F]`."""
        presence, log_size = self.linear(features).float().chunk(2, dim=-1)
        return presence, log_size + 3.0  # exp(3) = 20 mm: start at a usual size


@dataclass(frozen=True)
class Regions:
    """What the patches of one study say of every (finding, side).

    Attributes:
        features: `[regions, width]`, of the patches that are surest of it.
        where_mm: `[regions, 3]`, their centre, LPS from the volume's.
        logit: `[regions]`, of the surest patch.
        log_size: `[regions]`, log millimetres, by the surest patches.
        log_volume: `[regions]`, log cubic millimetres that all patches claim together, and 1000.
        spread_mm: `[regions, 3]`, standard deviation of the claimed patches along each axis.
    """

    features: torch.Tensor
    where_mm: torch.Tensor
    logit: torch.Tensor
    log_size: torch.Tensor
    log_volume: torch.Tensor
    spread_mm: torch.Tensor


@torch.autocast("cpu", enabled=False)  # millimetres need more than eight bits
@torch.autocast("cuda", enabled=False)
def gather_regions(
    features: torch.Tensor,
    patches: tuple[torch.Tensor, torch.Tensor],
    centres_mm: torch.Tensor,
    patch_mm3: torch.Tensor,
    *,
    regions: Sequence[tuple[int, int]],
) -> Regions:
    """One study's patches, seen as its regions.

    The side of a patch is the sign of its patient x from the volume's centre (LPS: + is left).

    Args:
        features: `[n, p, width]`.
        patches: the finding head's presence logits and log sizes, `[n, p, F]`.
        centres_mm: `[n, p, 3]`.
        patch_mm3: `[n]`, the volume that a patch of each view stands for.
        regions: (finding index, sign) pairs; sign -1 right, +1 left, 0 anywhere.
    """
    presence, log_size = (values.float().flatten(0, 1) for values in patches)
    index = [finding for finding, _ in regions]
    sign = torch.tensor([s for _, s in regions], device=presence.device)
    places = centres_mm.flatten(0, 1)
    other_side = places[None, :, 0] * sign[:, None] < 0
    logits = presence[:, index].T.masked_fill(other_side, -20.0)  # [regions, n * p]
    weights = (2.0 * logits).softmax(dim=1)
    shown = logits.sigmoid() * patch_mm3.repeat_interleave(features.shape[1])
    volume = shown.sum(1)
    share = shown / volume.clamp(min=1e-6)[:, None]
    apart = places[None] - (share @ places)[:, None]
    return Regions(
        weights @ features.float().flatten(0, 1),
        weights @ places,
        logits.amax(1),
        (weights * log_size[:, index].T).sum(1).clamp(0.0, 6.0),
        (volume + 1000.0).log(),  # a tenth of a patch tells little
        (share[..., None] * apart.square()).sum(1).sqrt(),
    )


class RegionHead(nn.Module):
    """Whether a study shows each (finding, side), and how large it is.

    A patch judges alone, and a lesion is more than its surest patch: this weighs what all of them
    say. Trained on what studies show; starts from the surest patch's word.
    """

    def __init__(self, width: int, num_regions: int, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.name = nn.Embedding(num_regions, hidden)
        self.first = nn.Linear(width + _NUM_FIGURES, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 2)

    def forward(self, seen: Regions) -> tuple[torch.Tensor, torch.Tensor]:
        """Presence logits and log-millimetre sizes, each `[..., regions]`."""
        figures = torch.cat(
            [
                torch.stack(
                    [seen.logit / 4.0, seen.log_size - 3.0, (seen.log_volume - 9.0) / 4.0], -1
                ),
                seen.where_mm / 100.0,
                (seen.spread_mm + 1.0).log() / 2.0 - 1.0,
            ],
            dim=-1,
        )
        features = self.norm(seen.features.to(self.first.weight.dtype))
        looked = torch.cat([features, figures.to(features.dtype)], dim=-1)
        inside = nn.functional.gelu(self.first(looked) + self.name.weight)
        more, larger = self.out(nn.functional.gelu(self.second(inside))).float().unbind(-1)
        return seen.logit + more, (seen.log_size + larger).clamp(0.0, 6.0)


_NUM_FIGURES = 9


class RegionProjector(nn.Module):
    """One token per (finding, side) of a study: what is seen best there, how surely, and where."""

    def __init__(self, width: int, hidden: int, num_regions: int) -> None:
        super().__init__()
        self.mlp = mlp(width + 4 * FOURIER_WIDTH + 3, hidden)
        self.name = nn.Embedding(num_regions, hidden)

    def forward(self, seen: Regions, logit: torch.Tensor, log_size: torch.Tensor) -> torch.Tensor:
        """One study's regions, the head's logits and log sizes `[regions]` -> `[regions, hidden]`."""
        size_mm = log_size.exp()[:, None]
        inside = torch.cat(
            [
                seen.features,
                fourier(torch.cat([seen.where_mm, size_mm * 8.0], dim=1)),  # 8: a few mm must show
                torch.stack([logit / 4.0, logit.sigmoid(), seen.log_volume - 9.0], dim=1),
            ],
            dim=1,
        )
        weight = self.name.weight
        return self.mlp(inside.to(weight.dtype)) + weight
