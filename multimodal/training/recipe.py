"""The demo checkpoint from nothing: `make train-demo`, or python -m multimodal.training.recipe.

World -> corpus and speech -> vision -> audio -> context -> regions -> language -> together -> hearing ->
range -> folder with model, processor, sample study and sample report. Every stage resumes from the work
folder after a kill; on a machine lent for a short while, `--stages` names those to run there.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from encoders.dicom import PROFILES, make_views, write_ct_series
from encoders.errors import InvalidOption
from multimodal.backends import DEMO
from multimodal.loading import load_composite
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.novelty import NoveltyModel, describe_study, fit_novelty
from multimodal.processing import MultimodalProcessor, senses_of
from multimodal.prompts import NamedFinding, other_side
from multimodal.training import ranks
from multimodal.training.audio_pretraining import speak_corpus, train_audio
from multimodal.training.calibration import calibrate
from multimodal.training.context import train_context
from multimodal.training.corpus import (
    HELD_OUT,
    Corpus,
    Make,
    generate_corpus,
    open_corpus,
    to_volume,
)
from multimodal.training.demo_model import SIZES, build_demo
from multimodal.training.growth import see_as
from multimodal.training.hearing import HEARING, train_hearing
from multimodal.training.language import encode_corpus, train_language
from multimodal.training.loop import Schedule
from multimodal.training.regions import train_regions
from multimodal.training.vision_pretraining import DenseModel, train_vision
from multimodal.training.world.findings import Key
from multimodal.training.world.reports import Writer
from multimodal.training.world.worlds import WORLDS, Drawn, World

logger = logging.getLogger(__name__)

STAGES = (
    "corpus",
    "speech",
    "vision",
    "audio",
    "context",
    "regions",
    "language",
    "together",
    "hearing",
    "save",
)
NUM_NOVELTY, NUM_DRAWN, NUM_CALIBRATED = 2000, 600, 360
NOVELTY_SEED = 700_000  # beyond every corpus
SAMPLE_SEED = 900_003  # beyond every corpus; of 40 drawn, one whose reading makes a clear example
SAMPLE_SHAPE = (48, 256, 256)
SAMPLE_KEYS: list[Key] = [("nodule", "right"), ("pleural effusion", "left"), ("cardiomegaly", None)]


@dataclass(frozen=True)
class Recipe:
    """What `make train-demo` may be told.

    Attributes:
        work, out: where the stages keep their states, where the checkpoint goes.
        parent: folder of a checkpoint to go on from; empty, everything is drawn anew.
        new_share: how far a parent's vision tower goes from what it was to what it becomes.
        stages: which to run, in order; a stage of no steps leaves its part as it is.
        world, coarser, studies: of the corpus, see `corpus.Make`.
        crowd: studies crowded with findings, from which the vision tower and neighbours learn.
        first: seed of the first study; who goes on draws others than were learned from.
        size: of the networks, a name in `demo_model.SIZES`.
        rate: a factor on every stage's learning rate.
        batch: a factor on every stage's batch size.
        device: "auto" is a GPU where there is one.
        num_workers: processes that draw studies, threads that draw batches.
    """

    work: Path = Path(".work")
    out: Path = DEMO
    parent: str = ""
    new_share: float = 0.75
    stages: str = ",".join(STAGES)
    world: str = "body"
    coarser: float = 2.5
    size: str = "small"
    studies: int = 6000
    crowd: int = 8000
    first: int = 0
    utterances: int = 4000
    vision_steps: int = 3000
    audio_steps: int = 2400
    context_steps: int = 800
    region_steps: int = 500
    language_steps: int = 3600
    together_steps: int = 0
    hearing_steps: int = 1500
    rate: float = 1.0
    batch: float = 1.0
    device: str = "auto"
    num_workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def wants(self, stage: str) -> bool:
        """Whether a stage is among those to run."""
        return stage in self.stages.split(",")

    def schedule(self, steps: int, lr: float, batch_size: int, save_every: int = 200) -> Schedule:
        """A stage's schedule on this machine."""
        return Schedule(
            steps, self.rate * lr, max(round(self.batch * batch_size), 1),
            warmup=min(200, max(steps // 10, 1)), save_every=save_every,
            num_workers=self.num_workers,
        )  # fmt: skip


def run(recipe: Recipe) -> None:
    """The stages in order; what is done already is not done again.

    Raises:
        InvalidOption: a stage, world or size that does not exist.
    """
    for given, known in ((recipe.stages.split(","), STAGES), ([recipe.world], tuple(WORLDS)),
                         ([recipe.size], tuple(SIZES))):  # fmt: skip
        if unknown := set(given) - set(known):
            raise InvalidOption(f"{min(unknown)!r} is none of {', '.join(known)}")
    world = WORLDS[recipe.world]
    if recipe.wants("corpus"):
        frame = SIZES[recipe.size].frame
        make = Make(recipe.world, recipe.studies, recipe.coarser, frame, first=recipe.first)
        generate_corpus(recipe.work, make, recipe.num_workers)
        crowd = replace(make, studies=recipe.crowd, crowded=True)
        generate_corpus(recipe.work, crowd, recipe.num_workers)
    if recipe.wants("speech"):
        speak_corpus(recipe.work, world, recipe.utterances, recipe.num_workers)
    rest = [stage for stage in STAGES[2:] if recipe.wants(stage)]
    if not rest:
        return
    model, processor = _at_the_start(recipe)
    device = (
        recipe.device if recipe.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    model.to(device)
    for stage in rest:
        _RUN[stage](recipe, model, processor)


def _at_the_start(recipe: Recipe) -> tuple[MultimodalForConditionalGeneration, MultimodalProcessor]:
    """The composite as it was before any stage, or as the stages done so far have left it."""
    torch.manual_seed(0)
    if recipe.parent:
        model, processor = load_composite(recipe.parent, device="cpu")
        see_as(model, SIZES[recipe.size])
        processor.senses = senses_of(model.config)
    else:
        model, processor = build_demo(WORLDS[recipe.world], recipe.size)
    for part, name in ((_dense(model), "vision"), (model.audio_tower, "audio"),
                       (model.neighbours, "context"), (model.region_head, "regions"),
                       (model, "language"), (model, "together"),
                       (_hears(model), "hearing")):  # fmt: skip
        weights = recipe.work / f"{name}.safetensors"
        if weights.is_file():
            part.load_state_dict(load_file(weights), strict=part is not model)
    return model, processor


def _dense(model: MultimodalForConditionalGeneration) -> DenseModel:
    return DenseModel(model.vision_tower, model.finding_head)


def _hears(model: MultimodalForConditionalGeneration) -> nn.ModuleDict:
    return nn.ModuleDict({name: getattr(model, name) for name in HEARING})


def _once(work: Path, name: str, module: nn.Module, train: Callable[[], None]) -> None:
    """Train a module unless its stage has left weights, and leave them."""
    weights = work / f"{name}.safetensors"
    if weights.is_file():
        return
    train()
    if ranks.rank() == 0:
        state = {k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}
        save_file(state, weights)
    ranks.wait()


def _vision(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    dense, schedule = (
        _dense(model),
        recipe.schedule(recipe.vision_steps, 1.2e-3, 48, save_every=700),
    )
    before = {name: value.clone() for name, value in dense.state_dict().items()}

    def learn() -> None:
        train_vision(dense, processor.tokenizer, recipe.work, schedule, knows=bool(recipe.parent))
        if recipe.parent:
            go_part_way(dense, before, recipe.new_share)

    _once(recipe.work, "vision", dense, learn)


@torch.no_grad()
def go_part_way(module: nn.Module, before: Mapping[str, torch.Tensor], share: float) -> None:
    """Weights a share of the way from what they were to what they are (Wortsman et al. 2022, WiSE-FT).

    A tower that goes on with other studies learns of them and forgets of those before.
    """
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.lerp_(before[name].to(value), 1.0 - share)


def _audio(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    schedule = recipe.schedule(recipe.audio_steps, 2e-3, 24)
    speech = speak_corpus(recipe.work, WORLDS[recipe.world], recipe.utterances)
    _once(recipe.work, "audio", model.audio_tower,
          lambda: train_audio(model.audio_tower, speech, recipe.work, schedule))  # fmt: skip


def _context(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    schedule = recipe.schedule(recipe.context_steps, 2e-3, 6)
    _once(recipe.work, "context", model.neighbours,
          lambda: train_context(model, recipe.work, schedule))  # fmt: skip


def _regions(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    schedule = recipe.schedule(recipe.region_steps, 2e-3, 128, save_every=500)
    _once(recipe.work, "regions", model.region_head,
          lambda: train_regions(model, recipe.work, schedule))  # fmt: skip


def _language(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    schedule = recipe.schedule(recipe.language_steps, 1.2e-3, 8, save_every=100)
    _once(recipe.work, "language", model,
          lambda: train_language(model, processor, recipe.work, schedule))  # fmt: skip


def _together(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    schedule = recipe.schedule(recipe.together_steps, 3e-4, 8, save_every=100)
    _once(recipe.work, "together", model,
          lambda: train_language(model, processor, recipe.work, schedule, together=True))  # fmt: skip
    if recipe.together_steps:  # what is kept was seen by the tower before
        (recipe.work / "features.done").unlink(missing_ok=True)


def _hearing(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    schedule = recipe.schedule(recipe.hearing_steps, 6e-4, 24)
    _once(recipe.work, "hearing", _hears(model), lambda: train_hearing(
        model, processor, recipe.work, schedule, num_spoken=recipe.utterances))  # fmt: skip


def _save(
    recipe: Recipe, model: MultimodalForConditionalGeneration, processor: MultimodalProcessor
) -> None:
    recipe.out.mkdir(parents=True, exist_ok=True)
    novelty_of(model.eval(), open_corpus(recipe.work), recipe).save(recipe.out)
    save(model, recipe.out)
    processor.save_pretrained(recipe.out)
    calibrate(recipe.out, NUM_CALIBRATED, recipe.num_workers)
    write_sample(recipe.out / "sample", WORLDS[recipe.world])
    logger.info("the demo checkpoint is in %s; now run the evaluation", recipe.out.name)


_RUN = {
    "vision": _vision,
    "audio": _audio,
    "context": _context,
    "regions": _regions,
    "language": _language,
    "together": _together,
    "hearing": _hearing,
    "save": _save,
}


def save(model: MultimodalForConditionalGeneration, folder: Path) -> None:
    """Write the model in half precision."""
    model.half().save_pretrained(folder)


def novelty_of(
    model: MultimodalForConditionalGeneration, corpus: Corpus, recipe: Recipe
) -> NoveltyModel:
    """The range of studies seen in training and of others drawn finer, as they come to be read.

    The limit is set by studies that neither training nor this fit saw.
    """

    @torch.inference_mode()
    def described(views: np.ndarray, geometry: np.ndarray) -> np.ndarray:
        pixels = model.vision_tower.preprocess.normalise(torch.from_numpy(views).to(model.device))
        return describe_study(views, geometry, model.encode_images(pixels))

    def seen(index: int) -> np.ndarray:
        views, geometry = np.array(corpus.views[index]), np.array(corpus.geometry[index])
        return describe_study(views, geometry, torch.from_numpy(np.array(features[index])))

    def drawn(seed: int) -> np.ndarray:
        rng = np.random.default_rng((NOVELTY_SEED, seed))
        rendered = corpus.world.draw(rng, rng.uniform(0.6, 1.0) * recipe.coarser, False).rendered
        views = make_views(to_volume(rendered), PROFILES[model.config.view_profile])
        return described(views.pixels, views.geometry)

    training, features = corpus.training()[:NUM_NOVELTY], encode_corpus(model, recipe.work)
    with ThreadPoolExecutor(recipe.num_workers) as pool:
        found = pool.map(drawn, range(NUM_DRAWN))
        finer = list(tqdm(found, total=NUM_DRAWN, desc="range", mininterval=10))
        fitted, kept = finer[: 2 * NUM_DRAWN // 3], finer[2 * NUM_DRAWN // 3 :]
        usual = [list(pool.map(seen, which)) for which in (training, corpus.held_out(HELD_OUT))]
    return fit_novelty(np.stack([*usual[0], *fitted]), np.stack([*usual[1], *kept]))


def write_sample(folder: Path, world: World) -> None:
    """A chest as DICOM, and a report of it with two planted mistakes."""
    rng = np.random.default_rng(SAMPLE_SEED)
    drawn = world.chest(rng, SAMPLE_SHAPE, SAMPLE_KEYS)
    voxels, affine = drawn.rendered.voxels, drawn.rendered.affine
    write_ct_series(voxels, affine, folder / "study")
    findings = _sample_report(drawn)
    lines = ["TECHNIQUE: CT of the chest without contrast.", "", "FINDINGS:", *findings]
    (folder / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sample_report(drawn: Drawn) -> Iterator[str]:
    """The nodule on the wrong side, the effusion right, the large heart left out."""
    vocabulary = replace(drawn.vocabulary, languages=("en",), rich=False)
    writer = Writer(drawn.truth, np.random.default_rng(SAMPLE_SEED), vocabulary)
    nodule = next(f for f in drawn.truth if f.name == "nodule")
    assert nodule.side is not None
    other = NamedFinding("nodule", other_side(nodule.side), nodule.size_mm)
    yield writer.say(other).text
    yield writer.say(next(f for f in drawn.truth if f.name == "pleural effusion")).text
    yield writer.deny(("pneumothorax", None), drawn.truth).text
    yield writer.deny(("consolidation", None), drawn.truth).text


def main() -> None:
    """Command line of the recipe: one option per field of `Recipe`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser, usual = argparse.ArgumentParser(description=__doc__), Recipe()
    for given in fields(Recipe):
        value = getattr(usual, given.name)
        kind = Path if isinstance(value, Path) else type(value)
        parser.add_argument(f"--{given.name.replace('_', '-')}", type=kind, default=value)
    ranks.join()
    run(Recipe(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
