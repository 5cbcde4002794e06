"""Where the finding head sees what: patch maps of a study -> regions with boxes on stored slices.

How large it is, and how likely, the region head says, of all patches together.

Knows no language model: a region is what the vision tower saw, whatever the words then say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from encoders.features import Source
from multimodal.backends import Region
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.projectors import token_centres_mm


@torch.no_grad()
def locate_regions(
    model: MultimodalForConditionalGeneration,
    features: torch.Tensor,
    geometry: torch.Tensor,
    sources: Sequence[Source],
) -> tuple[Region, ...]:
    """The best region of every (finding, side) the model knows, and its size.

    Args:
        features: tower features `[views, patches, width]` of one study.
        geometry: `[views, 11]`.
        sources: one per view.
    """
    seen, patches = model.see_patches(features)
    logit, log_size = model.region_head(model.gather(seen, patches, geometry))
    grid, view_size = model.vision_tower.grid, model.config.view_size
    x_mm = token_centres_mm(geometry, grid, view_size)[..., 0].cpu().numpy()
    probability = patches[0].sigmoid().cpu().numpy()
    judged = zip(log_size.exp().tolist(), logit.sigmoid().tolist(), strict=True)
    names = [name for name, _ in model.config.findings]
    found = []
    for (name, side), (size_mm, presence) in zip(model.config.regions, judged, strict=True):
        maps = probability[..., names.index(name)]
        if side is not None:
            maps = np.where(x_mm * (1 if side == "left" else -1) >= 0, maps, 0.0)
        view, patch = divmod(int(maps.argmax()), maps.shape[1])
        box = _patch_box(maps[view].reshape(grid), patch, view_size)
        found.append(
            Region(
                name,
                side,
                float(maps[view, patch]),
                sources[view],
                sources[view].to_stored(box),
                size_mm,
                presence,
            )
        )
    return tuple(found)


def _patch_box(
    grid_map: np.ndarray, peak: int, view_size: int
) -> tuple[float, float, float, float]:
    """Bounding box, in view pixels, of the patches around the peak at half its height or more."""
    from scipy.ndimage import label

    row, column = divmod(peak, grid_map.shape[1])
    blobs, _ = label(grid_map >= 0.5 * grid_map[row, column])
    rows, columns = np.nonzero(blobs == blobs[row, column])
    height, width = view_size / grid_map.shape[0], view_size / grid_map.shape[1]
    return (
        float(columns.min() * width),
        float(rows.min() * height),
        float((columns.max() + 1) * width),
        float((rows.max() + 1) * height),
    )
