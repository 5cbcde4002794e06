"""What a sentence speaks of, and where that is seen."""

from __future__ import annotations

import numpy as np

from encoders.features import Source
from multimodal.backends import Region
from pipelines.evidence import Discrepancy, Evidence, all_evidence, as_evidence, locate


def region(name: str, side: str | None, score: float) -> Region:
    return Region(name, side, score, Source("dicom", slice_index=3), (1.0, 2.0, 3.0, 4.0))


def test_the_best_region_of_the_named_side_is_taken():
    regions = [region("nodule", "right", 0.3), region("nodule", "left", 0.9),
               region("nodule", "right", 0.4), region("cardiomegaly", None, 0.5)]  # fmt: skip
    assert locate(regions, "nodule", "right") is regions[2]
    assert locate(regions, "nodule", None) is regions[1]
    assert locate(regions, "cardiomegaly", "left") is regions[3]
    assert locate(regions, "pneumothorax", None) is None


def test_a_cut_box_is_the_overlap_of_box_and_slice():
    rng = np.random.default_rng(0)
    rows, columns = 30, 20
    y, x = np.mgrid[:rows, :columns]
    for _ in range(200):
        x0, y0 = rng.integers(-15, 35, 2)
        x1, y1 = x0 + rng.integers(1, 30), y0 + rng.integers(1, 30)
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        found = Region(
            "n", None, 1.0, Source("dicom"), (float(x0), float(y0), float(x1), float(y1))
        )
        box = as_evidence(found, (rows, columns)).box
        if not inside.any():
            assert box is None
            continue
        ys, xs = np.nonzero(inside)
        assert box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_evidence_is_listed_once():
    proof = Evidence("image", 3, 1.0, (0.0, 0.0, 1.0, 1.0))
    points = [Discrepancy("size", "a", "b", 0.9, (proof, Evidence("text", sentence="a")))] * 2
    assert all_evidence([], points) == (proof, Evidence("text", sentence="a"))
