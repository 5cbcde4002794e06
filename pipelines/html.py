"""A reading as one self-contained page, and a slice as a picture.

Nothing is fetched: styles and pictures are inside the page, and every word is escaped.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.terminal import grouped, percent, slice_words

if TYPE_CHECKING:
    import jinja2

    from encoders.dicom import Volume
    from pipelines.evidence import Discrepancy, Reading

Box = tuple[float, float, float, float]
_HIGHEST = 4096  # pixels of a picture
_WIDTH = 440  # pixels of one window's picture


@dataclass(frozen=True)
class Passage:
    """A stretch of the report and what is wrong with it, None where nothing is."""

    text: str
    point: Discrepancy | None


def render_reading(reading: Reading) -> str:
    """The page of one reading."""
    num_slices = int(reading.study.get("num_slices") or 0)
    return _template().render(
        reading=reading, pictures=list(_pictures(reading, num_slices)),
        alarms=[w.message for w in reading.warnings if w.code == "OUT_OF_RANGE"],
        notes=grouped([w for w in reading.warnings if w.code != "OUT_OF_RANGE"]),
        facts=[_fact(k, v) for k, v in reading.study.items() if v not in (None, "")],
        place=lambda index: slice_words(index, num_slices), percent=_percent,
        passages=list(mark_report(reading.report or "", reading.discrepancies)),
        missing=[d for d in reading.discrepancies if d.sentence is None],
    )  # fmt: skip


def _percent(probability: float | None) -> str:
    return "–" if probability is None else percent(probability).replace("%", " %")


def _pictures(reading: Reading, num_slices: int) -> Iterator[tuple[str, str]]:
    """Caption and data address of each key slice; the caption names what is boxed there."""
    for index, png in reading.key_slices:
        shown = [" ".join(w for w in (f.side, f.name) if w) for f in reading.findings
                 if f.box is not None and f.slice_index == index]  # fmt: skip
        shown += [p.correction or p.sentence or p.type for p in reading.discrepancies
                  if not shown and any(e.slice_index == index for e in p.evidence)]  # fmt: skip
        caption = slice_words(index, num_slices).capitalize()
        address = "data:image/png;base64," + base64.b64encode(png).decode()
        yield f"{caption}: {', '.join(shown)}" if shown else caption, address


def _fact(name: str, value: Any) -> tuple[str, str]:
    """A line of the series' description: `spacing mm`, `2.50 x 0.70 x 0.70`."""
    words = name.removeprefix("num_").replace("_", " ")
    if isinstance(value, tuple | list):
        return words, " x ".join(f"{v:.2f}" for v in value)
    if isinstance(value, bool):
        return words, "yes" if value else "no"
    return words, f"{value:g}" if isinstance(value, float) else str(value)


def mark_report(report: str, points: Sequence[Discrepancy]) -> Iterator[Passage]:
    """The report cut into passages, each judged sentence a passage of its own.

    A sentence that a line break runs through is found again whatever space stands in it.
    """
    at = 0
    for point in points:
        if point.sentence is None:
            continue
        wanted = re.compile(r"\s+".join(map(re.escape, point.sentence.split())))
        match = wanted.search(report, at)
        if match is None:
            continue
        if match.start() > at:
            yield Passage(report[at : match.start()], None)
        yield Passage(match[0], point)
        at = match.end()
    if at < len(report):
        yield Passage(report[at:], None)


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("reading.html")


def draw_slice(volume: Volume, index: int, boxes: Sequence[Box] = ()) -> bytes:
    """A PNG of one slice in the two windows its body part is read in, side by side, boxes on it.

    Shown as radiologists do (patient right at the picture's left, front or head up), square
    pixels, the patient's directions lettered at the edges where the file tells them. Uncalibrated
    values are shown once, as their header wants, or between percentiles of the volume.

    Args:
        index: slice of `volume`.
        boxes: (x0, y0, x1, y1) in pixels of the stored slice.
    """
    from PIL import Image

    panels = [
        _panel(volume, index, grey, boxes, name) for name, grey in _greys(volume, index)
    ]  # fmt: skip
    sheet = Image.new(
        "RGB", (sum(p.width for p in panels) + 4 * (len(panels) - 1), panels[0].height)
    )
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + 4
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _greys(volume: Volume, index: int) -> Iterator[tuple[str, np.ndarray]]:
    from encoders.dicom.display import hanging, unit_of, voi_of

    for voi in hanging(volume.info) if volume.calibrated else (voi_of(volume),):
        yield voi.name, np.rint(255 * unit_of(volume, voi, index)).astype(np.uint8)


def _panel(volume: Volume, index: int, grey: np.ndarray, boxes: Sequence[Box], name: str) -> Any:
    from PIL import Image, ImageDraw

    from encoders.dicom.display import upright

    turn = upright(volume.grid)
    shown = turn.apply(grey)
    rows, columns = shown.shape
    row_mm, column_mm = (float(np.linalg.norm(volume.grid[:3, i])) for i in (1, 2))
    if turn.transposed:
        row_mm, column_mm = column_mm, row_mm
    # whatever the file says of its spacing, a picture stays one that can be shown
    height = min(max(round(_WIDTH * rows * row_mm / (columns * column_mm)), 1), _HIGHEST)
    scale_x, scale_y = _WIDTH / columns, height / rows
    image = Image.fromarray(np.ascontiguousarray(shown))
    image = image.resize((_WIDTH, height), Image.Resampling.BILINEAR).convert("RGB")
    draw = ImageDraw.Draw(image)
    for box in boxes:
        x0, y0, x1, y1 = turn.box(box, grey.shape)
        edges = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
        draw.rectangle(edges, outline=(255, 196, 0), width=2)
    grey_ink = (170, 200, 230)
    draw.text((6, 4), f"{slice_words(index, len(volume.voxels))} · {name}", fill=grey_ink)
    if not volume.placed:  # nobody knows which side is which
        return image
    right, left, upper, lower = turn.letters
    draw.text((6, height / 2), right, fill=grey_ink)
    draw.text((_WIDTH - 12, height / 2), left, fill=grey_ink)
    draw.text((_WIDTH / 2, 4), upper, fill=grey_ink)
    draw.text((_WIDTH / 2, height - 14), lower, fill=grey_ink)
    return image
