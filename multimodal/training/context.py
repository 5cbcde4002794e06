"""Stage 3: patches learn from those around them, in their view and in the views below and above.

On kept features, tower and finding head stay as they are. Crowded studies show many findings, ordinary
ones how rarely what looks like one is one: every other step learns from either. In: both corpora.
Out: `Neighbours`, trained in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from multimodal.modeling import MultimodalForConditionalGeneration, trainable
from multimodal.training.corpus import Corpus, open_corpus
from multimodal.training.language import encode_corpus
from multimodal.training.loop import Schedule, Stage, mixed_precision, move, train
from multimodal.training.vision_pretraining import dense_loss, patch_losses, patch_targets

NUM_CROWDED = 1200
NUM_HELD_OUT = 64
_COUNTED = 800  # studies whose patches are counted


@dataclass(frozen=True)
class _Batch:
    source: _Source
    features: torch.Tensor
    cover: torch.Tensor
    size_mm: torch.Tensor


@dataclass(frozen=True)
class _Source:
    """A corpus with its features; `shown`: patches of a study that show each finding, `[F]`."""

    kind: str
    corpus: Corpus
    features: np.ndarray
    training: np.ndarray
    shown: torch.Tensor

    def look(self, indices: np.ndarray) -> _Batch:
        chosen = (np.stack([of[i] for i in indices]) for of in
                  (self.features, self.corpus.cover, self.corpus.size_mm))  # fmt: skip
        return _Batch(self, *map(torch.from_numpy, chosen))


def train_context(
    model: MultimodalForConditionalGeneration, work_dir: Path, schedule: Schedule, *, seed: int = 0
) -> None:
    """Train `Neighbours` in place, by what each patch of a study shows."""
    if not schedule.steps:  # encoding for it would take longer than learning
        return
    device, part = model.device, model.neighbours
    sources = [_source(model, work_dir, crowded) for crowded in (True, False)]
    trainable(model, lambda name: name.startswith("neighbours"))

    def seen(batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Presence and log sizes `[studies, views * patches, F]`."""
        studies = move(batch.features, device).float()
        with mixed_precision(device):
            _, (presence, log_size) = model.see_patches(studies)
        return presence.flatten(1, 2), log_size.flatten(1, 2)

    def covered(batch: _Batch) -> torch.Tensor:
        return move(batch.cover, device).float().flatten(1, 2) / 255.0

    def draw(step: int, rng: np.random.Generator) -> _Batch:
        source = sources[step % len(sources)]
        return source.look(rng.choice(source.training, schedule.batch_size))

    def loss(batch: _Batch) -> tuple[str, torch.Tensor]:
        size_mm, shown = move(batch.size_mm, device), batch.source.shown
        return batch.source.kind, dense_loss(*seen(batch), covered(batch), size_mm, shown=shown)

    @torch.no_grad()
    def check() -> str:
        return "; ".join(map(lost, sources))

    def lost(source: _Source) -> str:
        batch = source.look(np.array(source.corpus.held_out(NUM_HELD_OUT)))
        losses = patch_losses(seen(batch)[0], covered(batch), source.shown).tolist()
        names = [name for name, _ in source.corpus.world.findings]
        told = " ".join(f"{n} {v:.3f}" for n, v in zip(names, losses, strict=True))
        return f"{source.kind} {told}"

    train(Stage("context", part, draw, loss, check), schedule, work_dir, seed=seed)


def _source(model: MultimodalForConditionalGeneration, work_dir: Path, crowded: bool) -> _Source:
    corpus = open_corpus(work_dir, crowded=crowded)
    most = NUM_CROWDED if crowded else None
    features = encode_corpus(model, work_dir, crowded=crowded, most=most)
    learned = corpus.training() if crowded else corpus.for_seeing()
    training = np.array([i for i in learned if i < len(features)])
    counted = torch.from_numpy(corpus.cover[training[:_COUNTED]])
    shown = torch.stack([patch_targets(of.float() / 255.0).sum((0, 1)) for of in counted]).mean(0)
    kind = ("ordinary", "crowded")[crowded]
    shown = shown.clamp(min=1 / len(counted)).to(model.device)
    return _Source(kind, corpus, features, training, shown)
