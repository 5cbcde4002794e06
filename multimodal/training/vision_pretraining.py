"""Stage 1: the ViT learns which patch shows which finding, and which sentence speaks of a slice.

Dense targets from the exact masks, and beside them CLIP's contrast of slices and sentences
(open_clip's loss); the sentences' own small tower is thrown away. In: a corpus. Out: tower and
finding head, trained in place.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.ops import sigmoid_focal_loss

from encoders.vision import VisionTower
from multimodal.projectors import FindingHead
from multimodal.prompts import NamedFinding, other_side
from multimodal.training.corpus import LEAST, Corpus, SliceBatch, open_corpus
from multimodal.training.loop import Schedule, Stage, mixed_precision, move, train
from multimodal.training.world.reports import Writer

MAX_WORDS = 64  # tokens of a caption
CONTRAST = 0.05  # weight of CLIP's loss beside the dense one


class DenseModel(nn.Module):
    """Tower and finding head, trained together."""

    def __init__(self, tower: VisionTower, head: FindingHead) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One study's uint8 `[n, 3, side, side]`, or slices of many `[n, 5, side, side]` -> presence logits
        and log sizes `[n, patches, F]`.
        """
        return self.head(self.features(pixels))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same -> tower features `[n, patches, width]`."""
        prepare = self.tower.preprocess
        return self.tower(prepare.normalise(pixels[:, : prepare.channels]))


class Contrast(nn.Module):
    """Slices and sentences in one space; only pretraining needs it."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.from_slice, self.from_text = nn.Linear(width, 64), nn.Linear(width, 64)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # CLIP's start, 1 / 0.07

    def forward(self, features: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Tower features `[n, patches, width]`, token ids `[n, l]` padded with 0 -> open_clip's loss."""
        from open_clip.loss import ClipLoss

        empty = words == 0
        read = self.reader(
            self.words(words) + self.places[: words.shape[1]], src_key_padding_mask=empty
        )
        kept = (~empty).unsqueeze(-1)
        text = (read * kept).sum(1) / kept.sum(1)
        normed = nn.functional.normalize
        image = normed(self.from_slice(features.mean(1)).float(), dim=-1)
        told = normed(self.from_text(text).float(), dim=-1)
        return ClipLoss()(image, told, self.log_scale.exp().clamp(max=100.0))


def dense_loss(
    presence: torch.Tensor,
    log_size: torch.Tensor,
    cover: torch.Tensor,
    size_mm: torch.Tensor,
    *,
    shown: torch.Tensor,
) -> torch.Tensor:
    """`patch_losses` of the findings in the mean, plus the size error where a finding is.

    Args:
        presence, log_size: `[n, patches, F]`.
        cover: `[n, patches, F]`, the share of the patch that the mask covers in its slab, 0..1.
        size_mm: `[n, F]`, NaN where the finding has no stated size.
        shown: `[F]`, see `patches_shown`.
    """
    loss = patch_losses(presence, cover, shown).mean()
    known = (cover > 0.02) & size_mm.isfinite()[:, None]
    if known.any():
        wanted = size_mm[:, None].expand_as(cover)[known].log()
        loss = loss + 0.3 * nn.functional.smooth_l1_loss(log_size[known], wanted, beta=0.2)
    return loss


def patch_losses(presence: torch.Tensor, cover: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Focal loss (Lin et al. 2017) of the patches of each finding, `[F]`.

    Divided by the patches that are expected to show each finding, so that a stone of one patch in
    a thousand slices pulls as hard as ascites: in a mean over all patches nearly nothing pulls.
    """
    focal = sigmoid_focal_loss(presence, patch_targets(cover), alpha=-1, gamma=2)
    return focal.sum((0, 1)) / (len(cover) * shown)


def patch_targets(cover: torch.Tensor) -> torch.Tensor:
    """How sure a patch should be: a plaque covers a fiftieth of its patch and still counts.

    Focal loss is least at 0.12 for a target of 0.3: small lesions would be learned as nearly nothing.
    """
    return (255.0 / LEAST * cover).clamp(max=1.0)


def patches_shown(
    corpus: Corpus, num_slices: int = 1500, weights: np.ndarray | None = None
) -> torch.Tensor:
    """Of each finding, how many patches of a drawn slice show it, `[F]`; one in all if none does."""
    drawn = corpus.slices(np.random.default_rng(0), num_slices, weights)
    return (patch_targets(drawn.cover).sum((0, 1)) / num_slices).clamp(min=1 / num_slices)


@torch.no_grad()
def hardness(model: DenseModel, corpus: Corpus, num_batches: int = 40) -> np.ndarray:
    """How often to draw each finding, `[F]`: by the root of what is lost in it as yet.

    A tower that has learned pneumothoraces learns nothing from a further one.
    """
    device = next(model.parameters()).device
    shown, losses = patches_shown(corpus).to(device), []
    for number in range(num_batches):
        batch = corpus.slices(np.random.default_rng((1, number)), 24)
        with mixed_precision(device):
            presence, _ = model(move(batch.pixels, device))
        losses.append(patch_losses(presence.float(), move(batch.cover, device), shown))
    return torch.stack(losses).mean(0).sqrt().cpu().numpy()


@dataclass(frozen=True)
class _Batch:
    slices: SliceBatch
    words: torch.Tensor


def train_vision(
    model: DenseModel,
    tokenizer: Any,
    work_dir: Path,
    schedule: Schedule,
    *,
    knows: bool = False,
    seed: int = 0,
) -> None:
    """Train tower and head in place; `tokenizer` reads the captions.

    A model that `knows` something already is shown most what it knows least.
    """
    corpus, usual = open_corpus(work_dir, crowded=True), open_corpus(work_dir)
    device = next(model.parameters()).device
    both = nn.ModuleDict({"dense": model, "contrast": Contrast(model.tower.width, len(tokenizer))})
    both.to(device)
    weights = hardness(model, corpus) if knows else None
    shown = patches_shown(corpus, weights=weights).to(device)

    def draw(_step: int, rng: np.random.Generator) -> _Batch:
        batch = corpus.slices(rng, schedule.batch_size, weights)
        return _Batch(batch, _captions(corpus, batch, tokenizer, rng))

    def loss(batch: _Batch) -> tuple[str, torch.Tensor]:
        slices = batch.slices
        with mixed_precision(device), _short_attention(device):
            features = model.features(move(slices.pixels, device))
            presence, log_size = model.head(features)
            contrast = both["contrast"](features, move(batch.words, device))
        dense = dense_loss(presence.float(), log_size.float(), move(slices.cover, device),
                           move(slices.size_mm, device), shown=shown)  # fmt: skip
        return "dense and contrast", dense + CONTRAST * contrast

    def check() -> str:
        found = held_out_auroc(model, usual)
        return "AUROC " + " ".join(f"{name} {value:.3f}" for name, value in found.items())

    train(Stage("vision", both, draw, loss, check), schedule, work_dir, seed=seed)


def _short_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the fused kernel takes half as long again where a picture has 144 patches."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _captions(
    corpus: Corpus, batch: SliceBatch, tokenizer: Any, rng: np.random.Generator
) -> torch.Tensor:
    """What each slice shows, said in a random wording: token ids `[n, l]`, padded with 0."""
    names = [name for name, _ in corpus.world.findings]
    texts = []
    for study, cover, mirrored in zip(batch.studies, batch.cover, batch.mirrored, strict=True):
        truth = [in_a_mirror(f) if mirrored else f for f in corpus.truth[study]]
        writer = Writer(truth, rng, corpus.vocabulary[study])
        shown = {names[i] for i in (cover.amax(0) > 0.02).nonzero().flatten().tolist()}
        said = [writer.say(f) for f in writer.truth if f.name in shown] or [writer.deny_absent()]
        texts.append(" ".join(s.text for s in said))
    ids = [tokenizer.encode(t, add_special_tokens=False)[:MAX_WORDS] for t in texts]
    longest = max(map(len, ids))
    return torch.tensor([row + [0] * (longest - len(row)) for row in ids])


def in_a_mirror(finding: NamedFinding) -> NamedFinding:
    """On the other side; in the middle it stays."""
    return replace(finding, side=finding.side and other_side(finding.side))


@torch.no_grad()
def held_out_auroc(model: DenseModel, corpus: Corpus, num_studies: int = 128) -> dict[str, float]:
    """AUROC per finding of each side's best patch, on held-out studies of the finding's region."""
    model.eval()
    device = next(model.parameters()).device
    scores, truths, regions = [], [], []
    for index in corpus.held_out(num_studies):
        with mixed_precision(device):
            presence, _ = model(torch.from_numpy(np.array(corpus.views[index])).to(device))
        scores.append(_of_each_side(presence.float().cpu().numpy()))
        truths.append(_of_each_side(corpus.cover[index]) > LEAST)
        regions.append(dict(corpus.vocabulary[index].findings))
    model.train()
    found = {}
    for i, (name, sided) in enumerate(corpus.world.findings):
        score, truth = (np.stack([row[:, i] for row, region in zip(rows, regions, strict=True)
                                  if name in region]) for rows in (scores, truths))  # fmt: skip
        found[name] = (
            auroc(score.ravel(), truth.ravel()) if sided else auroc(score.max(1), truth.max(1))
        )
    return found


def _of_each_side(patches: np.ndarray) -> np.ndarray:
    """`[views, patches, F]` -> the highest of the right and left half of the pictures, `[2, F]`."""
    grid = math.isqrt(patches.shape[1])
    columns = patches.reshape(-1, grid, grid, patches.shape[-1])
    return np.stack([half.max((0, 1, 2)) for half in np.array_split(columns, 2, axis=2)])


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by the rank statistic (Mann-Whitney); NaN if one class is empty."""
    from scipy.stats import rankdata

    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
