"""Many inputs: progress on a terminal, several at once if asked, one bad input never loses the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from encoders.errors import BadAnswer, CrossReadError, RemoteError

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
        yield _attempt(index, value, run, what)


def run_at_once(
    inputs: Iterable[Input], run: Callable[[Input], Result], what: str, workers: int
) -> Iterator[tuple[Input, Result | Failed]]:
    """As `run_each` with up to `workers` threads: each input and its outcome, the first done first.

    Inputs are taken as threads come free, so an endless iterable is fine.

    Raises:
        RemoteError: a server or archive failed; it would fail every input after this one too.
    """
    numbered = enumerate(inputs)

    def task(index: int, value: Input) -> tuple[Input, Result | Failed]:
        return value, _attempt(index, value, run, what, stop_on=RemoteError)

    failure: RemoteError | None = None
    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        under_way: set[Future[tuple[Input, Result | Failed]]] = set()
        try:
            while failure is None or under_way:
                free = islice(numbered, 0 if failure else workers - len(under_way))
                under_way |= {pool.submit(task, index, value) for index, value in free}
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if isinstance(error, RemoteError):
                        failure = error  # what is under way is still told
                    else:
                        yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure


def _attempt(
    index: int,
    value: Input,
    run: Callable[[Input], Result],
    what: str,
    *,
    stop_on: type[CrossReadError] | tuple[()] = (),
) -> Result | Failed:
    """`run(value)` or why not; a failure of the kind `stop_on` is raised, except of one answer."""
    try:
        return run(value)
    except CrossReadError as error:
        if isinstance(error, stop_on) and not isinstance(error, BadAnswer):
            raise
        logger.warning("%s %d failed: %s", what, index, error)
        return Failed(index, type(error).__name__, str(error))
    except Exception as error:  # a night's work must not be lost to one input
        kind = type(error).__name__
        logger.error("%s %d failed unexpectedly: %s", what, index, kind)
        return Failed(index, kind, "an unexpected failure; read this input alone to see where")
