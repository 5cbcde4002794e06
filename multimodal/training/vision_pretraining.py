"""Stage 1: the vision tower learns which patch shows which finding, from exact masks.

Dense targets first, because study-level labels alone did not ground a small model (docs/log.md).
In: the corpus of `multimodal.training.corpus`. Out: tower and finding head as safetensors.
Resumable, as every stage of `multimodal.training.loop`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from encoders.vision import Preprocess, VisionTower, open_clip_config
from multimodal.projectors import FindingHead
from multimodal.training.corpus import FINDINGS, Corpus, open_corpus
from multimodal.training.loop import Schedule, Stage, mixed_precision, train

TOWER = open_clip_config(
    {
        "layers": 4, "width": 128, "head_width": 32, "mlp_ratio": 3.0,
        "patch_size": 8, "image_size": 96,
    },
    128,
    Preprocess(96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)  # fmt: skip


class DenseModel(nn.Module):
    """Tower and finding head, trained together."""

    def __init__(self, tower: VisionTower, head: FindingHead) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 `[n, 3, 96, 96]` -> presence logits and log sizes `[n, 144, F]`."""
        features = self.tower(self.tower.preprocess.normalise(pixels))
        return self.head(features)


def dense_loss(
    presence: torch.Tensor, log_size: torch.Tensor, cover: torch.Tensor, size_mm: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy on patches plus the size error where the finding is.

    Args:
        presence, log_size: `[n, patches, F]`.
        cover: `[n, patches, F]`, the share of the patch that the mask covers, 0..1.
        size_mm: `[n, F]`, NaN where the finding has no stated size.
    """
    target = (16.0 * cover).clamp(max=1.0)  # a plaque covers a corner of its patch and still counts
    loss = nn.functional.binary_cross_entropy_with_logits(
        presence, target, pos_weight=torch.tensor(4.0)
    )
    known = (cover > 0.02) & size_mm.isfinite()[:, None]
    if known.any():
        wanted = size_mm[:, None].expand_as(cover)[known].log()
        loss = loss + 0.3 * nn.functional.smooth_l1_loss(log_size[known], wanted, beta=0.2)
    return loss


def train_vision(
    model: DenseModel, work_dir: Path, schedule: Schedule, *, seed: int = 0, batch_size: int = 48
) -> None:
    """Train tower and head in place."""
    corpus = open_corpus(work_dir)

    def loss(_step: int, rng: np.random.Generator) -> tuple[str, torch.Tensor]:
        batch = corpus.slices(rng, batch_size)
        with mixed_precision():
            presence, log_size = model(batch.pixels)
        return "dense", dense_loss(presence.float(), log_size.float(), batch.cover, batch.size_mm)

    def check() -> str:
        found = held_out_auroc(model, corpus)
        return "AUROC " + " ".join(f"{name} {value:.3f}" for name, value in found.items())

    train(Stage("vision", model, loss, check), schedule, work_dir, seed=seed)


@torch.no_grad()
def held_out_auroc(model: DenseModel, corpus: Corpus, num_studies: int = 48) -> dict[str, float]:
    """Study-level AUROC per finding (the best patch's logit) on held-out studies."""
    model.eval()
    scores, truths = [], []
    for index in corpus.held_out(num_studies):
        with mixed_precision():
            presence, _ = model(torch.from_numpy(np.array(corpus.views[index])))
        scores.append(presence.float().amax((0, 1)).numpy())
        truths.append(corpus.cover[index].max((0, 1)) > 0)
    model.train()
    return {
        name: auroc(np.stack(scores)[:, i], np.stack(truths)[:, i])
        for i, name in enumerate(FINDINGS)
    }


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by the rank statistic (Mann-Whitney); NaN if one class is empty."""
    from scipy.stats import rankdata

    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
