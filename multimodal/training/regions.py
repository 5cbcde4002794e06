"""Stage 4: what a study shows of every (finding, side), and how large, from what its patches say.

Seconds on kept features: the tower stays as it is. In: a corpus and its features. Out: the region head,
trained in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.projectors import Regions
from multimodal.prompts import Side, other_side
from multimodal.training.corpus import Corpus, open_corpus
from multimodal.training.language import encode_corpus
from multimodal.training.loop import Schedule, Stage, move, train
from multimodal.training.measures import area, balanced, mean

SIZE = 2.0  # weight of the size error beside that of presence
HIDDEN = 0.2  # share of the features hidden anew in each step: else it knows its studies by heart


def train_regions(
    model: MultimodalForConditionalGeneration, work_dir: Path, schedule: Schedule, *, seed: int = 0
) -> None:
    """Train the region head in place, one batch in two in a mirror."""
    corpus, features = open_corpus(work_dir), encode_corpus(model, work_dir)
    head, device = model.region_head, model.device
    head.requires_grad_(True)
    seen = see_all(model, corpus, features)
    present, sizes = truth_of(corpus, model.config.regions)
    training = np.array(corpus.for_seeing())
    shape = (schedule.batch_size, *seen.features.shape[1:])

    def draw(_step: int, rng: np.random.Generator) -> tuple[torch.Tensor, bool, torch.Tensor]:
        """Which studies, whether in a mirror, and by what their features are multiplied."""
        chosen = torch.from_numpy(rng.choice(training, schedule.batch_size))
        shown = torch.from_numpy(rng.random(shape, np.float32) >= HIDDEN)
        return chosen, rng.random() < 0.5, shown / (1 - HIDDEN)

    def loss(drawn: tuple[torch.Tensor, bool, torch.Tensor]) -> tuple[str, torch.Tensor]:
        chosen, turned, shown = drawn
        some, wanted, size = _some(seen, chosen, device), present[chosen], sizes[chosen]
        if turned:
            some, others = mirrored(some, model.config.regions)
            wanted, size = wanted[:, others], size[:, others]
        logit, log_size = head(replace(some, features=some.features * move(shown, device)))
        wanted, size = move(wanted, device), move(size, device)
        lost = nn.functional.binary_cross_entropy_with_logits(logit, wanted)
        known = size.isfinite()
        off = nn.functional.smooth_l1_loss(log_size[known], size[known].log(), beta=0.1)
        return "regions", lost + SIZE * off

    @torch.no_grad()
    def check() -> str:
        kept = torch.tensor(corpus.held_out())
        logit, log_size = (v.cpu() for v in head(_some(seen, kept, device)))
        return _told(corpus, model.config.regions, logit, log_size, present[kept], sizes[kept])

    train(Stage("regions", head, draw, loss, check), schedule, work_dir, seed=seed)


@torch.inference_mode()
def see_all(
    model: MultimodalForConditionalGeneration, corpus: Corpus, features: np.ndarray
) -> Regions:
    """The regions of every study, `[studies, regions, ...]`, on the CPU."""
    found = []
    for i in tqdm(range(corpus.num_studies), desc="regions", mininterval=10):
        patches = torch.from_numpy(np.array(features[i])).float().to(model.device)
        geometry = torch.from_numpy(np.array(corpus.geometry[i])).to(model.device)
        found.append(model.see_regions(patches, geometry))
    return Regions(
        *(torch.stack([getattr(one, f.name).cpu() for one in found]) for f in fields(Regions))
    )


def truth_of(
    corpus: Corpus, regions: list[tuple[str, str | None]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Presence 0 or 1 and sizes in mm (NaN where none is stated), each `[studies, regions]`."""
    present = torch.zeros(corpus.num_studies, len(regions))
    sizes = torch.full(present.shape, float("nan"))
    for row, truth in enumerate(corpus.truth):
        for finding in truth:
            column = regions.index((finding.name, finding.side))
            present[row, column] = 1.0
            if finding.size_mm is not None:
                sizes[row, column] = finding.size_mm
    return present, sizes


def mirrored(
    seen: Regions, regions: Sequence[tuple[str, Side | None]]
) -> tuple[Regions, list[int]]:
    """Studies `[studies, regions, ...]` whose right is left, and of each region the other side's column.

    Features stay as they are: roughly right, as the tower learned half of its slices in a mirror.
    """
    others = [regions.index((name, other_side(side) if side else None)) for name, side in regions]
    turned = Regions(*(getattr(seen, f.name)[:, others] for f in fields(Regions)))
    opposite = turned.where_mm.new_tensor([-1.0, 1.0, 1.0])  # LPS: x runs to the left
    return replace(turned, where_mm=turned.where_mm * opposite), others


def _some(seen: Regions, chosen: torch.Tensor, device: torch.device) -> Regions:
    return Regions(*(move(getattr(seen, f.name)[chosen], device) for f in fields(Regions)))


def _told(
    corpus: Corpus,
    regions: list[tuple[str, str | None]],
    logit: torch.Tensor,
    log_size: torch.Tensor,
    present: torch.Tensor,
    sizes: torch.Tensor,
) -> str:
    """Of held-out studies whose region knows the finding, the means over all findings and sides."""
    areas, even = [], []
    known = [dict(corpus.vocabulary[i].findings) for i in corpus.held_out()]
    for column, (name, _) in enumerate(regions):
        asked = torch.tensor([name in words for words in known])
        truth, told = present[asked, column].bool(), logit[asked, column].sigmoid()
        rows = list(zip(truth.tolist(), told.tolist(), strict=True))
        areas.append(area(rows))
        rate = float(truth.float().mean())  # at the odds that the finding has anyway
        even.append(balanced([(t, float(p >= rate)) for t, p in rows]))
    stated = sizes.isfinite()
    off = (log_size.exp() - sizes)[stated].abs()
    return (
        f"AUROC {mean(areas):.3f} balanced {mean(even):.3f}"
        f" size {off.median():.1f} mm {(off / sizes[stated]).median():.3f}"
    )
