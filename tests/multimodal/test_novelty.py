"""Novelty: a distance that is 1 for the usual, large for the strange, and survives being saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from multimodal.backends import Novelty
from multimodal.novelty import FILE_NAME, describe_study, fit_novelty, load_novelty


def _usual(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((6, 6))
    return (rng.standard_normal((n, 6)) @ mixing + 3).astype(np.float32)


def test_usual_studies_score_about_one_and_strange_ones_above_the_limit() -> None:
    model = fit_novelty(_usual(500, 0), _usual(50, 1))
    scores = [model.score(v) for v in _usual(200, 2)]
    assert 0.8 < np.mean(scores) < 1.05
    assert np.mean([s > model.limit for s in scores]) < 0.02
    assert model.score(_usual(1, 3)[0] + 40) > model.limit


def test_the_distance_is_mahalanobis_where_the_data_fill_space() -> None:
    vectors = _usual(4000, 0)
    model = fit_novelty(vectors, vectors[:5])
    centred = vectors - vectors.mean(0)
    covariance = centred.T @ centred / len(vectors)
    covariance += 0.1 * np.diag(np.diag(covariance))
    z = vectors[7] - vectors.mean(0)
    wanted = np.sqrt(z @ np.linalg.inv(covariance) @ z / len(z))
    np.testing.assert_allclose(model.score(vectors[7]), wanted, rtol=1e-3)


def test_what_was_saved_scores_the_same(tmp_path: Path) -> None:
    assert load_novelty(tmp_path) is None
    model = fit_novelty(_usual(100, 0), _usual(10, 1))
    model.save(tmp_path)
    assert (tmp_path / FILE_NAME).is_file()
    again = load_novelty(tmp_path)
    assert again is not None
    assert again.limit == np.float32(model.limit)
    assert again.score(_usual(1, 5)[0]) == model.score(_usual(1, 5)[0])


def test_a_description_notices_contrast_spacing_and_field_of_view() -> None:
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
    geometry = np.zeros((4, 11), np.float32)
    geometry[:, 2], geometry[:, 3], geometry[:, 7] = np.arange(4) * 5, 1.5, 1.5
    features = torch.randn(4, 9, 5)
    usual = describe_study(views, geometry, features)
    assert usual.dtype == np.float32
    assert np.isfinite(usual).all()
    far, wide = geometry.copy(), geometry.copy()
    far[:, 2] *= 10
    wide[:, 3] *= 2
    for other in (describe_study(views // 2, geometry, features),
                  describe_study(views, far, features), describe_study(views, wide, features),
                  describe_study(views, geometry, features + 1)):  # fmt: skip
        assert other.shape == usual.shape
        assert np.abs(other - usual).max() > 0.1
    assert np.isfinite(describe_study(views[:1], geometry[:1], features[:1])).all()  # one slice


def test_out_of_range_means_above_the_limit() -> None:
    assert Novelty(2.0, 1.5).out_of_range
    assert not Novelty(1.5, 1.5).out_of_range
