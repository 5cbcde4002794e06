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
    """`run` on every input, in order; one that fails becomes a `Failed` in its place.

    A failure that nobody foresaw is told by its type alone: its words may quote a patient.
    """
    from tqdm import tqdm

    for index, value in enumerate(tqdm(inputs, desc=what, disable=None)):
        try:
            yield run(value)
        except CrossReadError as error:
            logger.warning("%s %d failed: %s", what, index, error)
            yield Failed(index, type(error).__name__, str(error))
        except Exception as error:  # a night's work must not be lost to one input
            kind = type(error).__name__
            logger.error("%s %d failed unexpectedly: %s", what, index, kind)
            yield Failed(index, kind, "an unexpected failure; read this input alone to see where")
