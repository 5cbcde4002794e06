"""Features and where each one came from: the values every encoder hands out.

`Source` is the address of a picture, a stretch of sound or a token; it is made with the views,
carried by `Features`, kept in the processor's layout and read when an answer points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Modality = Literal["text", "image", "video", "audio", "dicom"]


@dataclass(frozen=True)
class Problem:
    """A flaw that did not stop the work, with a stable code (`MISSING_SLICE`, `NOT_AN_IMAGE`, ...).

    `subject` names what is affected in words free of patient data: a file name inside the input,
    a tag, a slice number.
    """

    code: str
    message: str
    subject: str = ""


@dataclass(frozen=True)
class Source:
    """Where one picture, stretch of sound or token came from.

    `part` counts the media parts of a conversation from 0. `slice_range` is half-open, in the
    volume's slice order. `pixel_map` (a, b, c, d, e, f) takes picture coordinates (x, y), pixel
    corners, to coordinates of the stored slice: x' = a*x + b*y + c, y' = d*x + e*y + f.
    """

    modality: Modality
    part: int = 0
    slice_index: int | None = None
    slice_range: tuple[int, int] | None = None
    position_mm: float | None = None
    window: str | None = None
    seconds: tuple[float, float] | None = None
    box: tuple[float, float, float, float] | None = None
    pixel_map: tuple[float, float, float, float, float, float] | None = None

    def to_stored(
        self, box: tuple[float, float, float, float]
    ) -> tuple[float, float, float, float]:
        """A box (x0, y0, x1, y1) of this picture as a box of the stored slice, corners ordered."""
        a, b, c, d, e, f = self.pixel_map or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        x0, y0, x1, y1 = box
        xs = sorted((a * x0 + b * y0 + c, a * x1 + b * y1 + c))
        ys = sorted((d * x0 + e * y0 + f, d * x1 + e * y1 + f))
        return xs[0], ys[0], xs[1], ys[1]


@dataclass(frozen=True)
class Span:
    """Positions `start` (inclusive) to `stop` (exclusive) of a prompt, and what they stand for."""

    start: int
    stop: int
    source: Source


@dataclass(frozen=True)
class Features:
    """One encoded item: `tokens [n, width]` and one `Source` per token."""

    tokens: torch.Tensor
    sources: tuple[Source, ...]
