"""Tests of trust: does hiding the evidence matter, are strange studies noticed, how long does it take?

In: a backend and generated cases. Out: named figures for the model card.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from encoders.dicom import Volume, load_volume, scan, write_ct_series
from encoders.dicom.values import AIR_HU
from encoders.errors import CrossReadError
from multimodal import prompts
from multimodal.backends import Finished, GenerateOptions, Region, collect, seen_in
from multimodal.local import LocalBackend
from multimodal.messages import Study, user
from multimodal.prompts import NamedFinding
from multimodal.review import believed
from multimodal.training.measures import area, mean
from multimodal.training.world.reports import Vocabulary, Writer, all_keys
from multimodal.training.world.worlds import (
    World,
)

NUM_CONTROLS = 4
LONG_SHAPE = (120, 512, 512)  # of the study whose reading is timed
_PROBE_SEED = 600_000


class Probed(Protocol):
    """What is needed of a case."""

    @property
    def volume(self) -> Volume:
        """The study."""
        ...

    @property
    def truth(self) -> list[NamedFinding]:
        """What it shows."""
        ...


def _ask(backend: LocalBackend, volume: Volume, prompt: str, options: GenerateOptions) -> Finished:
    return collect(backend.generate([user(Study(volume), prompt)], options))


def _present(backend: LocalBackend, volume: Volume, name: str, side: prompts.Side | None) -> float:
    """The finding's probability as a reading states it."""
    options = GenerateOptions(choices=("yes", "no"), ground=True)
    answer = _ask(backend, volume, prompts.ask_presence(name, side), options)
    seen, weights = seen_in(answer.regions), backend.capabilities().review
    return believed(answer.choices["yes"], seen.get((name, side)), weights)


def hidden_regions(backend: LocalBackend, cases: Sequence[Probed]) -> dict[str, float]:
    """Does hiding what is named lower a finding's probability more than hiding anything else?

    Hidden is the box on the slices of its view and of the two beside it; anything else are boxes
    of that size elsewhere.
    """
    fell, fell_elsewhere, most = [], [], []
    for number, case in enumerate(cases):
        rng = np.random.default_rng((_PROBE_SEED, number))
        listed = _ask(backend, case.volume, prompts.LIST_FINDINGS, GenerateOptions(ground=True))
        regions = {(r.finding, r.side): r for r in listed.regions}
        for finding in case.truth:
            before = _present(backend, case.volume, finding.name, finding.side)
            region = regions.get((finding.name, finding.side))
            if before < 0.5 or region is None or region.source.slice_range is None:
                continue
            falls = []
            for box in (_box_of(region, case.volume), *_elsewhere(region, case.volume, rng)):
                hidden = replace(case.volume, voxels=_hide(case.volume.voxels, box))
                falls.append(before - _present(backend, hidden, finding.name, finding.side))
            fell.append(falls[0])
            fell_elsewhere.append(float(np.mean(falls[1:])))
            most.append(falls[0] > max(falls[1:]))
    return {
        "probability falls by, where named": mean(fell),
        "probability falls by, elsewhere": mean(fell_elsewhere),
        "named region matters most": mean(most),
        "findings tried": float(len(fell)),
    }


Box = tuple[slice, slice, slice]


def _box_of(region: Region, volume: Volume) -> Box:
    start, stop = region.source.slice_range or (0, 0)
    slices, rows, columns = volume.voxels.shape
    x0, y0, x1, y1 = (round(v) for v in region.box)
    return (
        slice(max(start - (stop - start), 0), min(2 * stop - start, slices)),
        slice(max(y0, 0), min(max(y1, 1), rows)),
        slice(max(x0, 0), min(max(x1, 1), columns)),
    )


def _elsewhere(region: Region, volume: Volume, rng: np.random.Generator) -> Iterator[Box]:
    """Boxes of the region's size on other slices, inside the body."""
    box = _box_of(region, volume)
    size = [s.stop - s.start for s in box]
    shape = volume.voxels.shape
    found = 0
    while found < NUM_CONTROLS:
        corner = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape, size, strict=True)]
        other = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        same = abs(corner[0] - box[0].start) < size[0]
        if same and size[0] * 3 < shape[0]:
            continue
        if (volume.voxels[other[0], other[1], other[2]] > -300).mean() < 0.1 and rng.random() < 0.9:
            continue
        found += 1
        yield other[0], other[1], other[2]


def _hide(voxels: np.ndarray, box: Box) -> np.ndarray:
    """The voxels with a box filled, slice by slice, with the median of what lies around it.

    With air where nothing does.
    """
    hidden = voxels.copy()
    rows, columns = box[1:]
    around = max((rows.stop - rows.start) // 4, 2)
    wide = (
        slice(max(rows.start - around, 0), rows.stop + around),
        slice(max(columns.start - around, 0), columns.stop + around),
    )
    for index in range(box[0].start, box[0].stop):
        ring = voxels[index].astype(np.float32)
        ring[rows, columns] = np.nan
        seen = ring[wide][np.isfinite(ring[wide])]
        hidden[index, rows, columns] = np.median(seen) if len(seen) else AIR_HU
    return hidden


def strange_studies(
    backend: LocalBackend, own: Sequence[float], recorded: Path
) -> dict[str, float]:
    """How well the range tells generated studies from recorded and drawn ones of other kinds.

    Args:
        own: novelty of generated studies, in shares of the limit.
        recorded: folder of real DICOM; nothing is read where there is none.
    """
    found: dict[str, list[float]] = {}
    claims = refused = 0
    for kind, volume in chain(_noises(), _recorded(recorded)):
        try:
            novelty = backend.novelty(Study(volume))
        except CrossReadError:  # refused, and so nothing is claimed of it
            refused += 1
            continue
        if novelty is None:
            return {}
        found.setdefault(kind, []).append(novelty.score / novelty.limit)
        if not novelty.out_of_range:
            keys = prompts.sided_keys(backend.capabilities().findings)
            claims += sum(_present(backend, volume, *key) >= 0.5 for key in keys)
    strange = [s for scores in found.values() for s in scores]
    rows = [*((False, s) for s in own), *((True, s) for s in strange)]
    figures = {f"{kind} ({len(s)}): least distance": min(s) for kind, s in sorted(found.items())}
    return {
        "AUROC": area(rows),
        "generated: greatest distance": max(own),
        **figures,
        "refused before any model saw it": float(refused),
        "confident findings claimed": float(claims),
    }


def _noises() -> Iterator[tuple[str, Volume]]:
    """Volumes that show nothing: noise of several kinds, and one value everywhere."""
    from encoders.dicom.header import SeriesInfo

    shape, spacing = (40, 128, 128), np.diag([0.0, 0.0, 0.0, 1.0])
    spacing[[2, 1, 0], [0, 1, 2]] = 5.0, 2.7, 2.7
    positions = 5.0 * np.arange(shape[0])
    for seed in range(8):
        rng = np.random.default_rng((_PROBE_SEED, 9, seed))
        flat = rng.uniform(-1000, 400)
        values = (
            rng.normal(-300, 500, shape), rng.uniform(-1000, 1000, shape), np.full(shape, flat),
            flat + np.cumsum(rng.normal(0, 25, shape), 1),
        )[seed % 4]  # fmt: skip
        voxels = np.clip(values, -1024, 3000).astype(np.int16)
        yield "noise", Volume(voxels, spacing, positions, (), SeriesInfo(modality="CT"))


def _recorded(folder: Path) -> Iterator[tuple[str, Volume]]:
    """Every series under a folder that can be read, by its modality."""
    places = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    for place in places:
        try:
            series = scan(place).series
        except CrossReadError:
            continue
        for one in series:
            try:
                yield f"recorded {one.info.modality}", load_volume(one)
            except CrossReadError:
                continue


def reading_time(backend: LocalBackend, world: World) -> dict[str, float]:
    """Seconds of one reading of 120 slices of 512 x 512 with a report, as the pipeline asks it."""
    volume, truth, vocabulary, read = _long_study(world)
    spent = {"read DICOM": read, "encode": 0.0, "prefill": 0.0, "decode": 0.0}
    started = time.perf_counter()

    def say(prompt: str, choices: tuple[str, ...] = ()) -> None:
        answer = _ask(backend, volume, prompt, GenerateOptions(max_new_tokens=96, choices=choices))
        for stage, seconds in answer.usage.timings_s.items():
            spent[stage] = spent.get(stage, 0.0) + seconds

    say(prompts.LIST_FINDINGS)
    for name, side in all_keys(vocabulary):
        say(prompts.ask_presence(name, side), ("yes", "no"))
    writer = Writer(truth, np.random.default_rng(0), vocabulary)
    sentences = [s.text for s in writer.report()]
    for sentence in sentences:
        say(
            prompts.CHECK_SENTENCE.format(sentence=sentence), (prompts.AGREES, *prompts.ERROR_TYPES)
        )
    say(
        prompts.FIND_OMISSION.format(report=" ".join(sentences)),
        (prompts.NOTHING_OMITTED, "omission"),
    )
    return spent | {"in all": read + time.perf_counter() - started}


def _long_study(world: World) -> tuple[Volume, list[NamedFinding], Vocabulary, float]:
    rng = np.random.default_rng((_PROBE_SEED, 120))
    drawn = world.chest(rng, LONG_SHAPE, None)
    rendered = drawn.rendered
    with tempfile.TemporaryDirectory(prefix="crossread-") as folder:
        write_ct_series(rendered.voxels, rendered.affine, Path(folder))
        started = time.perf_counter()
        volume = load_volume(Path(folder))
        return volume, drawn.truth, drawn.vocabulary, time.perf_counter() - started
