"""The demo checkpoint from nothing: `make train-demo`, or python -m multimodal.training.recipe.

World -> corpus and speech -> vision -> audio -> language -> novelty -> folder with model,
processor, sample study and sample report. Every stage resumes from the work folder.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from encoders.dicom import PROFILES, make_views, write_ct_series
from multimodal.backends import DEMO
from multimodal.loading import load_composite
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.novelty import NoveltyModel, describe_study, fit_novelty
from multimodal.prompts import NamedFinding
from multimodal.training.audio_pretraining import speak_corpus, train_audio
from multimodal.training.corpus import (
    HELD_OUT,
    SHAPES,
    Corpus,
    generate_corpus,
    open_corpus,
    to_volume,
)
from multimodal.training.demo_model import build_demo
from multimodal.training.language import encode_corpus, train_language
from multimodal.training.loop import Schedule
from multimodal.training.vision_pretraining import DenseModel, train_vision
from multimodal.training.world.phantom import Key, Phantom, random_phantom, render
from multimodal.training.world.reports import deny, say

logger = logging.getLogger(__name__)

NUM_NOVELTY, NUM_DRAWN = 2000, 900
NOVELTY_SEED = 700_000  # beyond every corpus
SAMPLE_SEED = 900_024  # beyond every corpus; of 44 drawn, one whose reading makes a clear example
SAMPLE_SHAPE = (48, 256, 256)
SAMPLE_KEYS: list[Key] = [("nodule", "right"), ("pleural effusion", "left"), ("cardiomegaly", None)]


@dataclass(frozen=True)
class Recipe:
    """What `make train-demo` may be told.

    `start` is the folder of a checkpoint to go on from; a stage of no steps leaves its part as it is.
    `rate` is a factor on every stage's learning rate.
    """

    start: str = ""
    work: Path = Path(".work")
    out: Path = DEMO
    studies: int = 6000
    utterances: int = 4000
    vision_steps: int = 2200
    audio_steps: int = 1600
    language_steps: int = 2400
    rate: float = 1.0


def run(recipe: Recipe) -> None:
    """Every stage in order; what is done already is not done again."""
    workers = [
        multiprocessing.Process(
            target=generate_corpus,
            args=(recipe.work, recipe.studies),
            kwargs={"worker": i, "num_workers": 2},
        )
        for i in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    speech = speak_corpus(recipe.work, recipe.utterances)
    torch.manual_seed(0)
    model, processor = (
        load_composite(recipe.start, device="cpu") if recipe.start else build_demo()
    )
    rate = recipe.rate
    vision = Schedule(recipe.vision_steps, lr=1.2e-3 * rate)
    audio = Schedule(recipe.audio_steps, lr=2e-3 * rate, warmup=200, weight_decay=0.01)
    language = Schedule(recipe.language_steps, lr=1.2e-3 * rate, save_every=100)
    dense = DenseModel(model.vision_tower, model.finding_head)
    _once(dense, recipe.work / "vision.safetensors",
          lambda: train_vision(dense, recipe.work, vision))  # fmt: skip
    _once(model.audio_tower, recipe.work / "audio.safetensors",
          lambda: train_audio(model.audio_tower, speech, recipe.work, audio))  # fmt: skip
    features = encode_corpus(model, recipe.work)
    train_language(model, processor, recipe.work, language)
    recipe.out.mkdir(parents=True, exist_ok=True)
    novelty_of(model, open_corpus(recipe.work), features).save(recipe.out)
    save(model, recipe.out)
    processor.save_pretrained(recipe.out)
    write_sample(recipe.out / "sample")
    logger.info("the demo checkpoint is in %s; now run the evaluation", recipe.out.name)


def _once(module: nn.Module, weights: Path, train: Callable[[], None]) -> None:
    """Train a module, or take the weights that this stage has left."""
    if weights.is_file():
        module.load_state_dict(load_file(weights))
        return
    train()
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, weights)


def save(model: MultimodalForConditionalGeneration, folder: Path) -> None:
    """Write the model in half precision."""
    model.half().save_pretrained(folder)


def novelty_of(
    model: MultimodalForConditionalGeneration, corpus: Corpus, features: np.ndarray
) -> NoveltyModel:
    """The range of studies seen in training and of others drawn finer, as they come to be read.

    The limit is set by studies that neither training nor this fit saw.
    """

    def seen(index: int) -> np.ndarray:
        views, geometry = np.array(corpus.views[index]), np.array(corpus.geometry[index])
        return describe_study(views, geometry, torch.from_numpy(np.array(features[index])))

    def drawn(seed: int) -> np.ndarray:
        rng = np.random.default_rng((NOVELTY_SEED, seed))
        rendered = render(random_phantom(rng), SHAPES[seed % len(SHAPES)], rng)
        views = make_views(to_volume(rendered), PROFILES[model.config.view_profile])
        pixels = model.vision_tower.preprocess.normalise(torch.from_numpy(views.pixels))
        with torch.inference_mode():
            tower_features = model.encode_images(pixels)
        return describe_study(views.pixels, views.geometry, tower_features)

    training = corpus.training()[:NUM_NOVELTY]
    finer = [drawn(seed) for seed in tqdm(range(NUM_DRAWN), desc="range", mininterval=10)]
    fitted, kept = finer[: 2 * NUM_DRAWN // 3], finer[2 * NUM_DRAWN // 3 :]
    return fit_novelty(
        np.stack([*map(seen, training), *fitted]),
        np.stack([*map(seen, corpus.held_out(HELD_OUT)), *kept]),
    )


def write_sample(folder: Path) -> None:
    """The sample study as DICOM, and a report of it with two planted mistakes."""
    rng = np.random.default_rng(SAMPLE_SEED)
    body = random_phantom(rng, SAMPLE_KEYS)
    rendered = render(body, SAMPLE_SHAPE, rng)
    write_ct_series(rendered.voxels, rendered.affine, folder / "study")
    lines = ["TECHNIQUE: CT of the chest without contrast.", "", "FINDINGS:", *_sample_report(body)]
    (folder / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sample_report(body: Phantom) -> Iterator[str]:
    """The nodule on the wrong side, the effusion right, the large heart left out."""
    rng = np.random.default_rng(SAMPLE_SEED)
    nodule = next(f for f in body.truth if f.name == "nodule")
    other = NamedFinding("nodule", "left" if nodule.side == "right" else "right", nodule.size_mm)
    yield say(other, rng).text
    yield say(next(f for f in body.truth if f.name == "pleural effusion"), rng).text
    yield deny("pneumothorax", None, body.truth, rng).text
    yield deny("consolidation", None, body.truth, rng).text


def main() -> None:
    """Command line of the recipe: one option per field of `Recipe`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Recipe):
        kind = type(field.default)
        kind = Path if issubclass(kind, Path) else kind
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    run(Recipe(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
