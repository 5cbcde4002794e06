"""Stage 3: patches learn from those around them, in their view and in the views below and above.

On kept features of crowded studies: tower and finding head stay as they are. In: a corpus. Out:
`Neighbours`, trained in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from multimodal.modeling import MultimodalForConditionalGeneration, trainable
from multimodal.training.corpus import open_corpus
from multimodal.training.language import encode_corpus
from multimodal.training.loop import Schedule, Stage, mixed_precision, move, train
from multimodal.training.vision_pretraining import dense_loss, patch_losses, patch_targets

NUM_STUDIES = 1600
NUM_HELD_OUT = 64
_COUNTED = 200  # studies whose patches are counted


@dataclass(frozen=True)
class _Batch:
    features: torch.Tensor
    cover: torch.Tensor
    size_mm: torch.Tensor


def train_context(
    model: MultimodalForConditionalGeneration, work_dir: Path, schedule: Schedule, *, seed: int = 0
) -> None:
    """Train `Neighbours` in place, by what each patch of a study shows."""
    if not schedule.steps:  # encoding for it would take longer than learning
        return
    corpus = open_corpus(work_dir, crowded=True)
    features = encode_corpus(model, work_dir, crowded=True, most=NUM_STUDIES)
    device, part = model.device, model.neighbours
    training = np.array([i for i in corpus.training() if i < len(features)])
    counted = torch.from_numpy(corpus.cover[training[:_COUNTED]]).float() / 255.0
    shown = patch_targets(counted).sum((1, 2)).mean(0).clamp(min=1 / _COUNTED).to(device)
    trainable(model, lambda name: name.startswith("neighbours"))

    def look(indices: np.ndarray) -> _Batch:
        chosen = (np.stack([of[i] for i in indices]) for of in
                  (features, corpus.cover, corpus.size_mm))  # fmt: skip
        return _Batch(*map(torch.from_numpy, chosen))

    def seen(batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Presence and log sizes `[studies, views * patches, F]`."""
        studies = move(batch.features, device).float()
        with mixed_precision(device):
            _, (presence, log_size) = model.see_patches(studies)
        return presence.flatten(1, 2), log_size.flatten(1, 2)

    def covered(batch: _Batch) -> torch.Tensor:
        return move(batch.cover, device).float().flatten(1, 2) / 255.0

    def draw(_step: int, rng: np.random.Generator) -> _Batch:
        return look(rng.choice(training, schedule.batch_size))

    def loss(batch: _Batch) -> tuple[str, torch.Tensor]:
        lost = dense_loss(*seen(batch), covered(batch), move(batch.size_mm, device), shown=shown)
        return "patches", lost

    @torch.no_grad()
    def check() -> str:
        batch = look(np.array(corpus.held_out(NUM_HELD_OUT)))
        losses = patch_losses(seen(batch)[0], covered(batch), shown).tolist()
        names = [name for name, _ in corpus.world.findings]
        return "loss " + " ".join(f"{n} {v:.3f}" for n, v in zip(names, losses, strict=True))

    train(Stage("context", part, draw, loss, check), schedule, work_dir, seed=seed)
