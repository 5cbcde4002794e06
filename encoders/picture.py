"""Ordinary pictures from files and arrays, upright and in 8-bit colour. Knows no tower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.errors import InvalidPixels, MissingInput, UnreadableImage
from encoders.features import Problem

if TYPE_CHECKING:
    from PIL.Image import Image

_STRETCHED = Problem(
    "STRETCHED", "a picture of more than 8 bits was stretched from darkest to brightest"
)


def open_picture(value: Path | str | np.ndarray | Image) -> tuple[Image, tuple[Problem, ...]]:
    """An RGB picture, turned as its camera says (EXIF), and what had to be done to its values.

    Args:
        value: a file, a PIL picture, or an array `[h, w]` or `[h, w, 3]`, 8-bit or any finite values.

    Raises:
        MissingInput, UnreadableImage: no such file, or not a picture.
        InvalidPixels: an array of another shape, or NaN or infinite values.
    """
    from PIL import Image, ImageOps

    if isinstance(value, np.ndarray):
        return _from_array(value)
    if isinstance(value, str | Path):
        path = Path(value)
        if not path.is_file():
            raise MissingInput(f"image {path.name!r} does not exist; check the path")
        try:
            with Image.open(path) as image:
                image.load()
                return open_picture(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableImage(
                f"{path.name!r} is not a picture that can be decoded; save it as PNG or JPEG"
            ) from error
    if not isinstance(value, Image.Image):
        raise UnreadableImage(f"a {type(value).__name__} is no picture; give a file or a PIL image")
    upright: Any = ImageOps.exif_transpose(value)
    if upright.mode.startswith(("I", "F")):  # 16-bit and float greys: PIL would clip them to white
        return _from_array(np.asarray(upright))
    return upright.convert("RGB"), ()


def _from_array(pixels: np.ndarray) -> tuple[Image, tuple[Problem, ...]]:
    from PIL import Image

    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InvalidPixels(f"a picture must be [h, w] or [h, w, 3], not {list(pixels.shape)}")
    if not np.isfinite(pixels).all():
        raise InvalidPixels("the picture holds NaN or infinite pixels; export it again")
    if pixels.dtype == np.uint8:
        return Image.fromarray(pixels).convert("RGB"), ()
    low, high = float(pixels.min()), float(pixels.max())
    scaled = (pixels.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.round(scaled).astype(np.uint8)).convert("RGB"), (_STRETCHED,)
