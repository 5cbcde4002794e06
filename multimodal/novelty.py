"""Is this study like those the model was validated on? A distance, fitted on generated studies.

Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888, without classes) of a study's grey-value
statistics and mean tower features. Fitted by the demo recipe, saved beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

FILE_NAME = "novelty.safetensors"
_BINS = 16


def describe_study(views: np.ndarray, geometry: np.ndarray, features: torch.Tensor) -> np.ndarray:
    """Views uint8 `[n, 3, H, W]`, geometry `[n, 11]`, features `[n, p, width]` -> one vector.

    Grey-value histograms and edge energy per window, field of view and slice spacing, mean and
    spread of the tower's features.
    """
    levels = np.arange(256, dtype=np.float32) / 255.0
    edges = [0.0, *np.linspace(0, 1, _BINS - 1)[1:-1].tolist(), 0.999, 1.001]
    counts = [np.bincount(views[:, c].ravel(), minlength=256) for c in range(3)]
    histograms = [np.sqrt(np.histogram(levels, edges, weights=n)[0] / n.sum()) for n in counts]
    grey = views.astype(np.int16)
    rough = [np.abs(np.diff(grey, n=2, axis=a)).mean((0, 2, 3)) / 255.0 for a in (2, 3)]
    # the field of view and the distance between views, both in logs of mm
    step = np.linalg.norm(np.diff(geometry[:, :3], axis=0), axis=1) if len(geometry) > 1 else [1.0]
    across = np.linalg.norm(geometry[0, 3:6]) * views.shape[-1]
    spread = features.float().flatten(0, 1)
    parts = [
        *histograms,
        *(np.log(r + 1e-3) for r in rough),
        np.log([across + 1e-3, float(np.mean(step)) + 1e-3, len(views)]),
        spread.mean(0).cpu().numpy(),
        spread.std(0).cpu().numpy(),
    ]
    return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class NoveltyModel:
    """Mean and whitening of the validated studies' vectors, and the distance that is too far."""

    mean: np.ndarray
    whiten: np.ndarray
    limit: float

    def score(self, vector: np.ndarray) -> float:
        """Distance of one study from the validated ones, 1 for a typical one."""
        z = (vector - self.mean) @ self.whiten
        return float(np.sqrt(np.mean(z**2)))

    def save(self, folder: Path) -> None:
        """Write `novelty.safetensors`."""
        arrays = {"mean": self.mean, "whiten": np.ascontiguousarray(self.whiten)}
        save_file({**arrays, "limit": np.array([self.limit], np.float32)}, folder / FILE_NAME)


def load_novelty(folder: Path) -> NoveltyModel | None:
    """What `NoveltyModel.save` wrote; None where a model has no such file."""
    if not (folder / FILE_NAME).is_file():
        return None
    arrays = load_file(folder / FILE_NAME)
    return NoveltyModel(arrays["mean"], arrays["whiten"], float(arrays["limit"][0]))


def fit_novelty(vectors: np.ndarray, held_out: np.ndarray, margin: float = 1.25) -> NoveltyModel:
    """Fit on `[n, d]` vectors; the limit is `margin` times the farthest of the held-out ones."""
    mean = vectors.mean(0)
    centred = (vectors - mean).astype(np.float64)
    covariance = centred.T @ centred / len(vectors)
    # a tenth of each variance is added so that directions without data do not explode
    values, axes = np.linalg.eigh(
        covariance + 0.1 * np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(mean))
    )
    whiten = (axes / np.sqrt(values)).astype(np.float32)
    fitted = NoveltyModel(mean, whiten, 0.0)
    farthest = max(fitted.score(v) for v in held_out)
    return NoveltyModel(mean, whiten, margin * farthest)
