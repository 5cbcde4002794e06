"""Unseen studies to measure on, and ways to ask a checkpoint about them.

Every study is drawn from its own seed, written as DICOM and read back like any other.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from encoders.dicom import Volume, load_volume, write_ct_series
from multimodal import prompts
from multimodal.backends import Finished, GenerateOptions, Token, collect, measured_in, seen_in
from multimodal.configuration import MultimodalConfig
from multimodal.local import LocalBackend
from multimodal.messages import Study, user
from multimodal.prompts import NamedFinding, Side
from multimodal.review import Key, MeasuredMm, Presence, ReviewWeights, believed, measure_of
from multimodal.training.world.dialogues import Dialogue, ask
from multimodal.training.world.mistakes import Faulty, faulty_report
from multimodal.training.world.reports import Vocabulary, Writer
from multimodal.training.world.worlds import WORLDS, World

FIRST_SEED = 500_000  # far beyond every corpus
CALIBRATION_SEED = 400_000  # other studies still: nothing is fitted on what is measured
PRESENCE = ("yes", "no")
COARSER = 2.0  # studies are drawn with half of a scanner's 512 columns


@dataclass(frozen=True)
class Case:
    """An unseen study, read back from DICOM, with its truth, questions and a faulty report.

    `masks` lie in the volume's own order.
    """

    volume: Volume
    masks: dict[tuple[str, str], np.ndarray]
    truth: list[NamedFinding]
    vocabulary: Vocabulary
    questions: tuple[Dialogue, ...]
    report: Faulty


def processes(count: int) -> Executor:
    """Processes of one thread each, or this process where one is enough."""
    if count == 1:
        return ThreadPoolExecutor(1)
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, spawn, torch.set_num_threads, (1,))


def world_of(config: MultimodalConfig) -> World:
    """The world whose findings a checkpoint knows."""
    return next(w for w in WORLDS.values() if list(w.findings) == list(config.findings or ()))


def make_case(world: World, seed: int, first: int = FIRST_SEED) -> Case:
    """Study `seed`: drawn, written as DICOM CT, read back; its questions drawn from the same seed."""
    rng = np.random.default_rng((first, seed))
    drawn = world.draw(rng, COARSER, False)
    voxels, affine = drawn.rendered.voxels, drawn.rendered.affine
    position = "HFS"
    if drawn.scan is not None:
        voxels, affine = drawn.scan.stored(voxels)
        position = drawn.scan.position
    with tempfile.TemporaryDirectory(prefix="crossread-") as folder:
        write_ct_series(voxels, affine, Path(folder), patient_position=position)
        volume = load_volume(Path(folder))
    turned = bool(np.dot(volume.grid[:3, 0], affine[:3, 0]) < 0)
    masks = {}
    for (name, side), mask in drawn.rendered.masks.items():
        lying = mask if drawn.scan is None else drawn.scan.stored(mask)[0]
        masks[name, str(side)] = lying[::-1] if turned else lying
    tasks = ("side", *("check",) * 5, "omission")
    asked = (ask(task, drawn.truth, rng, drawn.vocabulary) for task in tasks)
    report = faulty_report(Writer(drawn.truth, rng, drawn.vocabulary))
    questions = tuple(q for q in asked if q is not None)
    return Case(volume, masks, drawn.truth, drawn.vocabulary, questions, report)


def blanked(case: Case) -> Case:
    """The same study with air where the images were."""
    air = np.full_like(case.volume.voxels, -1000)
    return replace(case, volume=replace(case.volume, voxels=air))


class Sized(NamedTuple):
    """A finding's size: how likely each of `prompts.SIZES` is said to be, measured, and true."""

    name: str
    side: Side | None
    said: Mapping[str, float]
    measured_mm: float | None
    true_mm: float


class Talk:
    """Ways to ask about one study."""

    def __init__(self, backend: LocalBackend, case: Case) -> None:
        self._backend, self._study = backend, Study(case.volume)

    def ask(self, prompt: str, choices: tuple[str, ...] = (), ground: bool = False) -> Finished:
        """One question."""
        return collect(self._begin(prompt, choices, ground))

    def ask_all(self, prompts: Sequence[str], choices: tuple[str, ...] = ()) -> list[Finished]:
        """Questions that share the engine's steps."""
        return [collect(answer) for answer in [self._begin(p, choices) for p in prompts]]

    def _begin(
        self, prompt: str, choices: tuple[str, ...], ground: bool = False
    ) -> Iterator[Token | Finished]:
        options = GenerateOptions(max_new_tokens=96, choices=choices, ground=ground)
        return self._backend.generate([user(self._study, prompt)], options)

    @cached_property
    def listed(self) -> Finished:
        """The list of findings, with every region."""
        return self.ask(prompts.LIST_FINDINGS, ground=True)

    @property
    def seen(self) -> Presence:
        """How likely every finding is by what is seen alone."""
        return seen_in(self.listed.regions)

    @property
    def measured(self) -> MeasuredMm:
        """The size of every region as it is seen."""
        return measured_in(self.listed.regions)

    def sizes(self, truth: Sequence[NamedFinding]) -> list[Sized]:
        """Of every finding that has one."""
        sized = [(f.name, f.side, f.size_mm) for f in truth if f.size_mm is not None]
        asked = [prompts.ask_size(name, side) for name, side, _ in sized]
        return [
            Sized(name, side, answer.choices, measure_of(name, side, self.measured), true_mm)
            for (name, side, true_mm), answer in zip(
                sized, self.ask_all(asked, prompts.SIZES), strict=True
            )
        ]

    def presence(self, keys: Sequence[Key]) -> dict[Key, Finished]:
        """Every finding asked for by itself."""
        asked = [prompts.ask_presence(*key) for key in keys]
        return dict(zip(keys, self.ask_all(asked, PRESENCE), strict=True))

    def believed(
        self, answers: Mapping[Key, Finished], weights: ReviewWeights | None
    ) -> dict[Key, float]:
        """How likely every finding is by these answers and by what is seen, as a reading states it."""
        seen = self.seen
        return {
            key: believed(answer.choices["yes"], seen.get(key), weights)
            for key, answer in answers.items()
        }
