"""The measured part of a model card: numbers as Markdown tables, between the card's marks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def card_table(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    sections = (
        _tasks(found),
        _pairs("presence, balanced accuracy", found["presence per finding"]),
        _grid("mistake", found["mistakes"]),
        _pairs("dictated instead of typed", found["dictated"]),
        _pairs("evidence, when a region is hidden", found["hiding the region"]),
        _pairs("studies of another kind", found["out of range"]),
        _pairs("one reading of 120 slices with a report, seconds", found["reading"]),
        _grid(f"the gate at its default, {found['gate_studies']} studies", found["gate"]),
        _rows(found["sparsity"]),
    )
    lines = [line for section in sections for line in (*section, "")]
    numbers = ("studies", "few_studies", "dictated_studies", "sparsity_studies")
    count, few, spoken, some = (found[n] for n in numbers)
    lines.append(
        f"{count} unseen studies of the world `{found['world']}` ({few} where images are blanked,"
        f" another's or hidden, {spoken} dictated, {some} at each sparsity), {found['machine']}; weights SHA-256 {found['weights_sha256'][:16]}…."
        " Made by `make eval-demo`."
    )
    return "\n".join(lines)


def _tasks(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| | with images | images blanked | another study's images |"
    yield "|---|---|---|---|"
    for name, value in found["seeing"].items():
        others = (found[way].get(name) for way in ("blanked", "shuffled"))
        yield f"| {name} | {_show(value)} | {' | '.join(_show(v) for v in others)} |"


def _pairs(title: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"| {title} | |"
    yield "|---|---|"
    yield from (f"| {name} | {_show(value)} |" for name, value in values.items())


def _grid(title: str, values: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    heads = list(next(iter(values.values())))
    yield f"| {title} | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for name, row in values.items():
        yield f"| {name} | {' | '.join(_show(row[h]) for h in heads)} |"


def _rows(rows: Sequence[Mapping[str, float]]) -> Iterator[str]:
    heads = list(rows[0])
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    yield from (f"| {' | '.join(_show(row[h]) for h in heads)} |" for row in rows)


def _show(value: float | None) -> str:
    """Three decimals; nothing where there is no number."""
    return "" if value is None or value != value else f"{value:.3f}"


def _known(value: Any) -> Any:
    """JSON has no NaN: what is unknown is null."""
    if isinstance(value, Mapping):
        return {name: _known(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return None if value != value else value


def write_card(folder: Path, found: Mapping[str, Any]) -> None:
    """Put the numbers between the marks of the model card, and into `evaluation.json`."""
    text = json.dumps(_known(found), indent=2, allow_nan=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- numbers -->")
    _, _, after = rest.partition("<!-- end of numbers -->")
    numbers = f"<!-- numbers -->\n{card_table(found)}\n<!-- end of numbers -->"
    card.write_text(before + numbers + after, encoding="utf-8")
