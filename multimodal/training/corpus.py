"""Generated studies on disk, as the model sees them: views, geometry, patch targets and truth.

Every study goes through the same `make_views` as a hospital's. Arrays are memory-mapped and
written study by study, so generation resumes where it stopped and several processes may share it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from encoders.dicom.header import SeriesInfo
from encoders.dicom.views import PROFILES, ViewProfile, Window, make_views
from encoders.dicom.volume import Volume
from encoders.errors import InvalidOption
from multimodal.prompts import NamedFinding
from multimodal.training.world.findings import Shown
from multimodal.training.world.phantom import Rendered
from multimodal.training.world.reports import Vocabulary
from multimodal.training.world.worlds import WORLDS, World

HELD_OUT = 256  # the first studies of a corpus are never trained on
_FORMAT = 3  # of what is kept: targets of a slab's maximum, slices of at most 3 mm
_FULL = 1000
_SHARE = (Window("share", _FULL / 2, _FULL, "max"),) * 3  # a dot of one slice is in a MIP
_FOLDERS = {False: "corpus", True: "crowd"}
LEAST = 5  # of 255: a plaque in one corner of its patch is shown


@dataclass(frozen=True)
class Frame:
    """What a study becomes: the pictures of a view profile, each `grid` patches wide and high."""

    profile: str = "crossread-ct-fine"
    grid: int = 12

    @property
    def views(self) -> ViewProfile:
        """The profile by its name."""
        return PROFILES[self.profile]

    @property
    def size(self) -> int:
        """Pixels of a picture's side."""
        assert self.views.size is not None, "a model's pictures have one size"
        return self.views.size

    @property
    def num_patches(self) -> int:
        """Of a picture."""
        return self.grid**2


@dataclass(frozen=True)
class Make:
    """How a corpus is made: of which world, how many studies, how coarse, seen in which frame.

    In a crowded one small findings are ten times as frequent and several of a kind lie together, for
    eyes to learn from. Study i is drawn from seed `first + i`.
    """

    world: str = "body"
    studies: int = 6000
    coarser: float = 2.5
    frame: Frame = field(default_factory=Frame)
    crowded: bool = False
    first: int = 0


@dataclass(frozen=True)
class SliceBatch:
    """Slices for dense training: uint8 `[n, 5, size, size]`, `[n, patches, F]`, `[n, F]`.

    Each brings the first channel of the one before it and of the one after, as `with_beside` does;
    `mirrored` are those whose right is left.
    """

    studies: list[int]
    mirrored: list[bool]
    pixels: torch.Tensor
    cover: torch.Tensor
    size_mm: torch.Tensor


class Corpus:
    """A generated corpus opened for reading.

    Attributes:
        world: whose studies these are.
        num_views: pictures of a study.
        views: uint8 `[studies, views, 3, size, size]`.
        geometry: float32 `[studies, views, 11]`.
        cover: uint8 0..255 `[studies, views, patches, F]`, the share of a patch a mask covers in its
            slab's maximum.
        size_mm: float32 `[studies, F]`, NaN where a finding has no one size that is stated.
        truth: what each study shows.
        vocabulary: what may be said of each.
    """

    def __init__(self, folder: Path) -> None:
        self.world = WORLDS[json.loads((folder / "make.json").read_text())["world"]]
        self.done = np.load(folder / "done.npy", mmap_mode="r")
        self.num_studies = int(np.argmin(self.done)) if not self.done.all() else len(self.done)
        self.views = np.load(folder / "views.npy", mmap_mode="r")
        self.num_views = self.views.shape[1]
        self.geometry = np.load(folder / "geometry.npy", mmap_mode="r")
        self.cover = np.load(folder / "cover.npy", mmap_mode="r")
        self.size_mm = np.load(folder / "size_mm.npy", mmap_mode="r")
        self.truth: list[list[NamedFinding]] = []
        self.vocabulary: list[Vocabulary] = []
        vocabularies = {v.region: v for v in self.world.vocabularies}
        for i in range(self.num_studies):
            told = json.loads((folder / "truth" / f"{i}.json").read_text())
            self.truth.append([Shown(*item) for item in told["findings"]])
            self.vocabulary.append(vocabularies[told["region"]])
        self._shown: dict[int, np.ndarray] | None = None

    def held_out(self, num: int = HELD_OUT) -> range:
        """Indices of studies kept for evaluation."""
        return range(min(num, HELD_OUT))

    def training(self) -> range:
        """Indices of studies to train on."""
        return range(HELD_OUT, self.num_studies)

    def for_seeing(self) -> range:
        """Those that neighbours and region head learn from."""
        return range(HELD_OUT, (HELD_OUT + self.num_studies) // 2)

    def for_telling(self) -> range:
        """The others, which words learn from: eyes are surer of what they learned than of anything new."""
        return range((HELD_OUT + self.num_studies) // 2, self.num_studies)

    def slices(
        self, rng: np.random.Generator, n: int, weights: np.ndarray | None = None
    ) -> SliceBatch:
        """Random training slices, two thirds of them with a finding.

        Each of the `F` findings is there as often as its weight says; without, those that few slices
        show come more often than they are.
        """
        showing = self._showing()
        often = [
            len(pick) ** -0.5 if weights is None else weights[f] for f, pick in showing.items()
        ]
        shown = list(showing.values())
        chosen = rng.choice(len(shown), 2 * n // 3, p=np.array(often) / sum(often))
        picks = [shown[k] for k in chosen]
        rows = [pick[rng.integers(len(pick))] for pick in picks]
        rest = n - len(rows)
        other = np.stack(
            [
                rng.integers(HELD_OUT, self.num_studies, rest),
                rng.integers(self.num_views, size=rest),
            ],
            1,
        )
        studies, slices = np.concatenate([np.reshape(rows, (-1, 2)), other]).T
        mirrored = rng.random(n) < 0.5
        views, cover = varied(
            self._with_beside(studies, slices, rng), self.cover[studies, slices], mirrored, rng
        )
        return SliceBatch(
            studies.tolist(),
            mirrored.tolist(),
            torch.from_numpy(views),
            torch.from_numpy(cover).float() / 255.0,
            torch.from_numpy(self.size_mm[studies]),
        )

    def _with_beside(
        self, studies: np.ndarray, slices: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Upside down as often as not."""
        step, last = rng.choice((-1, 1), len(slices)), self.num_views - 1
        beside = [(slices + way * step).clip(0, last) for way in (1, -1)]
        found = [self.views[studies, of, :1] for of in beside]
        return np.concatenate([self.views[studies, slices], *found], 1)

    def _showing(self) -> dict[int, np.ndarray]:
        """Per finding `[k, 2]`: study and slice of every training slice that shows it."""
        if self._shown is None:
            most = self.cover[HELD_OUT : self.num_studies].max(2)  # [studies, views, F]
            places = [np.argwhere(most[..., f] > LEAST) for f in range(most.shape[-1])]
            start = np.array([HELD_OUT, 0])
            self._shown = {f: p + start for f, p in enumerate(places) if len(p)}
        return self._shown


def varied(
    views: np.ndarray, cover: np.ndarray, mirrored: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each slice moved by whole patches, a little brighter or darker, or mirrored; its targets with it.

    What a finding looks like is not where it is, and no study is known by its exact greys.
    """
    grid = math.isqrt(cover.shape[1])
    patch = views.shape[-1] // grid
    gain, offset = rng.uniform(0.95, 1.05, len(views)), rng.uniform(-5, 5, len(views))
    grey = views * gain[:, None, None, None].astype(np.float32)
    grey += offset[:, None, None, None].astype(np.float32)
    pictures = grey.clip(0, 255).astype(np.uint8)
    squares = cover.reshape(len(cover), grid, grid, -1).copy()
    for picture, square, turned, (down, right) in zip(
        pictures, squares, mirrored, rng.integers(-1, 2, (len(views), 2)), strict=True
    ):
        way = -1 if turned else 1
        picture[:] = np.roll(picture[:, :, ::way], (down * patch, right * patch), (1, 2))
        square[:] = np.roll(square[:, ::way], (down, right), (0, 1))
    return pictures, squares.reshape(cover.shape)


def open_corpus(work_dir: Path, *, crowded: bool = False) -> Corpus:
    """The corpus under a training work folder, or the crowded one beside it.

    Raises:
        InvalidOption: there is none.
    """
    folder = work_dir / _FOLDERS[crowded]
    if not (folder / "done.npy").is_file():
        raise InvalidOption(f"{folder} holds no studies; run the stage 'corpus' first")
    return Corpus(folder)


def generate_corpus(work_dir: Path, make: Make, num_workers: int = 1) -> None:
    """Fill the corpus, each study from its own seed; what is there already stays.

    Raises:
        InvalidOption: the folder holds a corpus that was made otherwise.
    """
    folder = work_dir / _FOLDERS[make.crowded]
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    recorded = folder / "make.json"
    wanted = {name: value for name, value in asdict(make).items() if name != "studies"}
    wanted["format"] = _FORMAT
    if recorded.is_file() and json.loads(recorded.read_text()) != wanted:
        raise InvalidOption(
            f"{folder} holds {recorded.read_text()}, not {wanted}; use another work folder"
        )
    recorded.write_text(json.dumps(wanted))
    _open_arrays(folder, make)
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    workers = [
        spawn.Process(target=_fill, args=(folder, make, range(i, make.studies, num_workers)))
        for i in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a process that draws studies ended with {worker.exitcode}")


def _open_arrays(folder: Path, make: Make) -> dict[str, np.ndarray]:
    num, frame = len(WORLDS[make.world].findings), make.frame
    views = frame.views.num_views
    arrays = {}
    for name, shape, dtype in (
        ("views", (views, 3, frame.size, frame.size), np.uint8),
        ("geometry", (views, 11), np.float32),
        ("cover", (views, frame.num_patches, num), np.uint8),
        ("size_mm", (num,), np.float32),
        ("done", (), np.bool_),
    ):
        path = folder / f"{name}.npy"
        if path.is_file():
            arrays[name] = np.load(path, mmap_mode="r+")
        else:
            arrays[name] = open_memmap(path, mode="w+", dtype=dtype, shape=(make.studies, *shape))
    return arrays


def _fill(folder: Path, make: Make, indices: Iterable[int]) -> None:
    from tqdm import tqdm

    torch.set_num_threads(1)
    arrays, world = _open_arrays(folder, make), WORLDS[make.world]
    for index in tqdm(indices, desc="studies", mininterval=10):
        if arrays["done"][index]:
            continue
        seed = make.first + index
        rng = np.random.default_rng((seed, 1) if make.crowded else seed)
        drawn = world.draw(rng, make.coarser, make.crowded)
        views = make_views(to_volume(drawn.rendered), make.frame.views)
        arrays["views"][index] = views.pixels
        arrays["geometry"][index] = views.geometry
        arrays["cover"][index] = np.round(255 * patch_cover(drawn.rendered, world, make.frame))
        arrays["size_mm"][index] = [_size(drawn.truth, name) for name, _ in world.findings]
        told = [(f.name, f.side, f.size_mm, getattr(f, "place", None)) for f in drawn.truth]
        text = json.dumps({"region": drawn.vocabulary.region, "findings": told})
        (folder / "truth" / f"{index}.json").write_text(text)
        arrays["done"][index] = True


def to_volume(rendered: Rendered) -> Volume:
    """A drawn study as the volume that reading its DICOM series would give."""
    info = SeriesInfo(modality="CT")
    positions = rendered.affine[2, 3] + rendered.affine[2, 0] * np.arange(len(rendered.voxels))
    return Volume(rendered.voxels, rendered.affine, positions, (), info)


def patch_cover(rendered: Rendered, world: World, frame: Frame) -> np.ndarray:
    """Share of each patch that a finding's mask covers in its slab's maximum: `[views, patches, F]`, 0..1.

    A mask goes the way of the pictures, so target and picture agree for any matrix.
    """
    names = [name for name, _ in world.findings]
    shares = replace(frame.views, windows=_SHARE)
    patch = frame.size // frame.grid
    cover = np.zeros((shares.num_views, frame.num_patches, len(names)), np.float32)
    for (name, _), mask in rendered.masks.items():
        volume = replace(to_volume(rendered), voxels=mask.astype(np.int16) * np.int16(_FULL))
        share = make_views(volume, shares).pixels[:, 0].astype(np.float32) / 255.0
        blocks = share.reshape(-1, frame.grid, patch, frame.grid, patch).mean((2, 4))
        channel = names.index(name)
        cover[..., channel] = np.maximum(cover[..., channel], blocks.reshape(cover.shape[:2]))
    return cover


def _size(truth: list[NamedFinding], name: str) -> float:
    """The stated size of a finding; NaN if none is stated or two sides differ."""
    sizes = {f.size_mm for f in truth if f.name == name and f.size_mm is not None}
    return sizes.pop() if len(sizes) == 1 else float("nan")
