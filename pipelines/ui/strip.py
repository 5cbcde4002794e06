"""A study as a person sees it: opened once for the strip and the model, drawn as thumbnails."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from encoders.dicom import Series, Volume

NUM_THUMBNAILS = 8
_SIDE = 112  # pixels of a thumbnail's longer side
_NUM_OPENED = 3  # volumes kept in memory; of a large CT each is a quarter of a gigabyte


@dataclass(frozen=True)
class Strip:
    """A picture file and its caption: modality and number of slices, nothing else of the header."""

    path: Path
    caption: str


@lru_cache(maxsize=_NUM_OPENED)
def opened(path: Path) -> Series | Volume:
    """What a model is shown of a study's files; the last few stay open.

    Raises:
        InputError: nothing of it may or can be seen.
    """
    from encoders.dicom import Series, load_volume
    from encoders.dicom.pictures import viewable

    found = viewable(path)
    return load_volume(found) if isinstance(found, Series) and found.is_volume else found


def close_studies() -> None:
    """Forget the voxels of what was opened."""
    opened.cache_clear()


def strip_of(path: Path, folder: Path) -> Strip:
    """Up to `NUM_THUMBNAILS` slices, evenly spaced from first to last, as a PNG in a folder.

    Raises:
        InputError: nothing of the study can be shown.
    """
    from PIL import Image

    from encoders.dicom import Volume

    study = opened(path)
    slices = list(_slices(study) if isinstance(study, Volume) else _pictures(study))
    row = Image.new("RGB", (len(slices) * _SIDE, _SIDE))
    for k, (pixels, aspect) in enumerate(slices):
        height, width = pixels.shape[0] * aspect, pixels.shape[1]
        scale = _SIDE / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        thumbnail = Image.fromarray(pixels).convert("RGB").resize(size)
        left, top = (_SIDE - thumbnail.width) // 2, (_SIDE - thumbnail.height) // 2
        row.paste(thumbnail, (k * _SIDE + left, top))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{secrets.token_hex(4)}.png"
    row.save(file)
    return Strip(file, f"{study.info.modality or 'DICOM'} × {study.info.num_slices}")


def _slices(volume: Volume) -> Iterator[tuple[np.ndarray, float]]:
    """Grey slices, upright, in the window they are looked at with first, and how tall a pixel is."""
    from encoders.dicom.display import hanging, unit_of, upright, voi_of

    voi = hanging(volume.info)[0] if volume.calibrated else voi_of(volume)
    way = upright(volume.grid)
    _, row_mm, column_mm = volume.spacing_mm
    aspect = column_mm / row_mm if way.transposed else row_mm / column_mm
    aspect = aspect if np.isfinite(aspect) else 1.0
    last = len(volume.voxels) - 1
    for k in np.unique(np.linspace(0, last, NUM_THUMBNAILS).round().astype(int)):
        yield way.apply(np.rint(255 * unit_of(volume, voi, int(k))).astype(np.uint8)), aspect


def _pictures(series: Series) -> Iterator[tuple[np.ndarray, float]]:
    from encoders.dicom import load_pictures

    for picture in load_pictures(series, NUM_THUMBNAILS):
        yield picture.squared(), 1.0
