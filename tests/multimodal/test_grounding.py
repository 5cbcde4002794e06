"""Regions: the head's best patch, on its side, in the pixels of the stored slice."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from encoders.features import Source
from multimodal.grounding import locate_regions

GRID, SIZE = (4, 4), 8  # patches of two pixels
FINDINGS = [("nodule", True), ("cardiomegaly", False)]


def _model(presence: torch.Tensor, sizes_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Any:
    config = SimpleNamespace(
        view_size=SIZE, findings=FINDINGS,
        regions=[("nodule", "right"), ("nodule", "left"), ("cardiomegaly", None)],
    )  # fmt: skip
    return SimpleNamespace(
        config=config,
        vision_tower=SimpleNamespace(grid=GRID),
        see_patches=lambda features: (features, (presence, torch.zeros_like(presence))),
        gather=lambda features, patches, geometry: (features, patches, geometry),
        region_head=lambda seen: (torch.tensor([0.0, 2.0, -2.0]), torch.tensor(sizes_mm).log()),
    )


def _geometry(num_views: int) -> torch.Tensor:
    """Columns run 1 mm a pixel to the left of the patient, the middle of the picture at x = 0."""
    geometry = torch.zeros(num_views, 11)
    geometry[:, 0], geometry[:, 3], geometry[:, 7] = -3.5, 1.0, 1.0
    return geometry


def _sources(num_views: int) -> list[Source]:
    """Stored slices are twice as large, moved by (10, 20)."""
    return [Source("dicom", slice_index=7 * i, pixel_map=(2.0, 0.0, 10.0, 0.0, 2.0, 20.0))
            for i in range(num_views)]  # fmt: skip


def test_each_side_has_its_own_best_patch_on_its_own_slice() -> None:
    presence = torch.full((3, 16, 2), -8.0)
    presence[0, 4, 0] = 2.0  # row 1, column 0: x < 0, the patient's right
    presence[2, 7, 0] = 3.0  # row 1, column 3: left, on another view, and stronger
    presence[1, 10, 1] = 1.0
    right, left, heart = locate_regions(
        _model(presence, (14.0, 9.0, 120.0)), torch.zeros(3, 16, 5), _geometry(3), _sources(3)
    )
    assert (right.finding, right.side, left.side, heart.side) == ("nodule", "right", "left", None)
    assert [r.source.slice_index for r in (right, left, heart)] == [0, 14, 7]
    assert right.score == pytest.approx(float(torch.tensor(2.0).sigmoid()))
    assert [r.size_mm for r in (right, left, heart)] == pytest.approx([14.0, 9.0, 120.0], rel=1e-5)
    assert [r.presence for r in (right, left, heart)] == pytest.approx(
        [0.5, 0.8808, 0.1192], rel=1e-3
    )
    # patch (1, 0) is pixels x 0..2, y 2..4 of the view; stored: 2x + 10, 2y + 20
    assert right.box == pytest.approx((10, 24, 14, 28))
    assert left.box == pytest.approx((22, 24, 26, 28))


def test_a_box_holds_the_neighbours_at_half_the_height_and_no_island() -> None:
    presence = torch.full((1, 16, 2), -8.0)
    presence[0, [5, 6], 1] = 2.0  # row 1, columns 1 and 2
    presence[0, 9, 1] = 1.0  # below: more than half as probable
    presence[0, 15, 1] = 1.9  # strong, but not touching
    *_, heart = locate_regions(_model(presence), torch.zeros(1, 16, 5), _geometry(1), _sources(1))
    assert heart.box == pytest.approx((2 * 2 + 10, 2 * 2 + 20, 2 * 6 + 10, 2 * 6 + 20))
