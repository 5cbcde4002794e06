"""Generated studies on disk, as the model sees them: views, geometry, patch targets and truth.

Every study goes through the same `make_views` as a hospital's. Arrays are memory-mapped and
written study by study, so generation resumes where it stopped and several processes may share it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from encoders.dicom.header import SeriesInfo
from encoders.dicom.views import PROFILES, Window, make_views
from encoders.dicom.volume import Volume
from multimodal.prompts import NamedFinding
from multimodal.training.world.phantom import FINDINGS as WORLD_FINDINGS
from multimodal.training.world.phantom import Rendered, random_phantom, render

FINDINGS: tuple[str, ...] = tuple(name for name, _ in WORLD_FINDINGS)
NUM_VIEWS, SIZE, GRID = 16, 96, 12
PATCHES = GRID**2
SHAPES = ((32, 192, 192), (40, 224, 224), (48, 256, 256))  # slices, rows, columns
_FULL = np.int16(1000)
_LEAST = 5  # of 255: a plaque in one corner of its patch is shown
_COVER = replace(PROFILES["crossread-ct"], windows=(Window("share", _FULL / 2, _FULL),) * 3)
HELD_OUT = 256  # the first studies of a corpus are never trained on


@dataclass(frozen=True)
class SliceBatch:
    """Slices for dense training: uint8 `[n, 3, 96, 96]`, `[n, 144, F]` and `[n, F]`."""

    pixels: torch.Tensor
    cover: torch.Tensor
    size_mm: torch.Tensor


class Corpus:
    """A generated corpus opened for reading.

    Attributes:
        views: uint8 `[studies, 16, 3, 96, 96]`.
        geometry: float32 `[studies, 16, 11]`.
        cover: uint8 0..255 `[studies, 16, 144, F]`, the share of a patch a mask covers.
        truth: what each study shows.
    """

    def __init__(self, folder: Path) -> None:
        self.done = np.load(folder / "done.npy", mmap_mode="r")
        self.num_studies = int(np.argmin(self.done)) if not self.done.all() else len(self.done)
        self.views = np.load(folder / "views.npy", mmap_mode="r")
        self.geometry = np.load(folder / "geometry.npy", mmap_mode="r")
        self.cover = np.load(folder / "cover.npy", mmap_mode="r")
        self.seeds = range(self.num_studies)
        self._size = np.load(folder / "size_mm.npy", mmap_mode="r")
        self.truth = [
            [
                NamedFinding(*item)
                for item in json.loads((folder / "truth" / f"{i}.json").read_text())
            ]
            for i in range(self.num_studies)
        ]
        self._shown: list[np.ndarray] | None = None

    def held_out(self, num: int = HELD_OUT) -> range:
        """Indices of studies kept for evaluation."""
        return range(min(num, HELD_OUT))

    def training(self) -> range:
        """Indices of studies to train on."""
        return range(HELD_OUT, self.num_studies)

    def slices(self, rng: np.random.Generator, n: int) -> SliceBatch:
        """Random training slices, two thirds of them with a finding, every finding as often."""
        shown = self._showing()
        picks = [shown[k] for k in rng.integers(len(shown), size=2 * n // 3)]
        rows = [pick[rng.integers(len(pick))] for pick in picks]
        rest = n - len(rows)
        other = np.stack(
            [rng.integers(HELD_OUT, self.num_studies, rest), rng.integers(NUM_VIEWS, size=rest)], 1
        )
        studies, slices = np.concatenate([np.reshape(rows, (-1, 2)), other]).T
        return SliceBatch(
            torch.from_numpy(self.views[studies, slices]),
            torch.from_numpy(self.cover[studies, slices]).float() / 255.0,
            torch.from_numpy(self._size[studies]),
        )

    def _showing(self) -> list[np.ndarray]:
        """Per finding `[k, 2]`: study and slice of every training slice that shows it."""
        if self._shown is None:
            most = self.cover[HELD_OUT : self.num_studies].max(2)  # [studies, views, F]
            places = [np.argwhere(most[..., f] > _LEAST) for f in range(len(FINDINGS))]
            self._shown = [p + np.array([HELD_OUT, 0]) for p in places if len(p)]
        return self._shown


def open_corpus(work_dir: Path) -> Corpus:
    """The corpus under a training work folder."""
    return Corpus(work_dir / "corpus")


def generate_corpus(
    work_dir: Path, num_studies: int, *, worker: int = 0, num_workers: int = 1
) -> None:
    """Fill the corpus: study i is made from seed i, by worker i modulo `num_workers`."""
    from tqdm import tqdm

    folder = work_dir / "corpus"
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    arrays = {
        name: _array(folder / f"{name}.npy", (num_studies, *shape), dtype)
        for name, shape, dtype in (
            ("views", (NUM_VIEWS, 3, SIZE, SIZE), np.uint8),
            ("geometry", (NUM_VIEWS, 11), np.float32),
            ("cover", (NUM_VIEWS, PATCHES, len(FINDINGS)), np.uint8),
            ("size_mm", (len(FINDINGS),), np.float32),
            ("done", (), np.bool_),
        )
    }
    for index in tqdm(range(worker, num_studies, num_workers), desc="studies", mininterval=10):
        if arrays["done"][index]:
            continue
        rng = np.random.default_rng(index)
        body = random_phantom(rng)
        rendered = render(body, SHAPES[index % len(SHAPES)], rng)
        views = make_views(to_volume(rendered), PROFILES["crossread-ct"])
        arrays["views"][index] = views.pixels
        arrays["geometry"][index] = views.geometry
        arrays["cover"][index] = np.round(255 * patch_cover(rendered))
        arrays["size_mm"][index] = [_size(body.truth, name) for name in FINDINGS]
        truth = [(f.name, f.side, f.size_mm) for f in body.truth]
        (folder / "truth" / f"{index}.json").write_text(json.dumps(truth))
        arrays["done"][index] = True


def to_volume(rendered: Rendered) -> Volume:
    """A drawn phantom as the volume that reading its DICOM series would give."""
    info = SeriesInfo(modality="CT")
    positions = rendered.affine[2, 3] + rendered.affine[2, 0] * np.arange(len(rendered.voxels))
    return Volume(rendered.voxels, rendered.affine, positions, (), info)


def patch_cover(rendered: Rendered) -> np.ndarray:
    """Share of each patch of each view that a finding's mask covers: `[views, patches, F]`, 0..1.

    A mask goes the way of the pictures, so target and picture agree for any matrix and order.
    """
    cover = np.zeros((NUM_VIEWS, PATCHES, len(FINDINGS)), np.float32)
    for (name, _), mask in rendered.masks.items():
        volume = replace(to_volume(rendered), voxels=mask.astype(np.int16) * _FULL)
        share = make_views(volume, _COVER).pixels[:, 0].astype(np.float32) / 255.0
        patch = SIZE // GRID
        blocks = share.reshape(NUM_VIEWS, GRID, patch, GRID, patch).mean((2, 4))
        channel = FINDINGS.index(name)
        cover[..., channel] = np.maximum(cover[..., channel], blocks.reshape(NUM_VIEWS, PATCHES))
    return cover


def _size(truth: list[NamedFinding], name: str) -> float:
    """The stated size of a finding; NaN if none is stated or two sides differ."""
    sizes = {f.size_mm for f in truth if f.name == name and f.size_mm is not None}
    return sizes.pop() if len(sizes) == 1 else float("nan")


def _array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if path.is_file():
        return np.load(path, mmap_mode="r+")
    return open_memmap(path, mode="w+", dtype=dtype, shape=shape)
