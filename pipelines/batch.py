"""Many inputs, one after the other: progress on a terminal, and one bad input never loses the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from encoders.errors import CrossReadError

logger = logging.getLogger(__name__)
Input = TypeVar("Input")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """An input of a batch that gave no result: its place in the batch and why."""

    index: int
    error: str
    message: str


def run_each(
    inputs: Iterable[Input], run: Callable[[Input], Result], what: str
) -> Iterator[Result | Failed]:
    """`run` on every input, in order; a `CrossReadError` becomes a `Failed` in its place."""
    from tqdm import tqdm

    for index, value in enumerate(tqdm(inputs, desc=what, disable=None)):
        try:
            yield run(value)
        except CrossReadError as error:
            logger.warning("%s %d failed: %s", what, index, error)
            yield Failed(index, type(error).__name__, str(error))
