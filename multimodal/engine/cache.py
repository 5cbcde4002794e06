"""Keys and values of many sequences in one pool of places for each layer.

A sequence owns a run of places that lie in a row, so attention reads them where they are. What a
finished sequence leaves is kept until its room is needed: a prompt that begins with the same
content starts behind it. Knows no model.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch

NUM_KEPT = 64  # runs of finished sequences; each new prompt is compared with all of them


@dataclass(eq=False)
class Run:
    """`size` places from `start`; the first `len(content)` hold what `content` says."""

    start: int
    size: int
    owner: Hashable
    content: np.ndarray
    used: int = 0

    @property
    def stop(self) -> int:
        """The first place behind it."""
        return self.start + self.size


def num_shared(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning of two contents."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


class Pool:
    """Places for keys and values, and who owns them.

    Args:
        num_places: positions that all sequences together may take.
    """

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._held: set[Run] = set()
        self._kept: set[Run] = set()
        self._clock = itertools.count(1)

    @property
    def num_held(self) -> int:
        """Places of sequences under way."""
        return sum(run.size for run in self._held)

    @property
    def num_runs(self) -> tuple[int, int]:
        """Runs held by sequences under way, and kept of finished ones."""
        return len(self._held), len(self._kept)

    def take(self, content: np.ndarray, size: int, owner: Hashable) -> tuple[Run, int] | None:
        """A run of `size` places, and how many of its first positions are filled already.

        `owner` is whose content may be shared (a tenant, and how the model computes). At least one
        position is left to run. None where all room is held.
        """
        source, shared = self._likest(content, owner)
        if source in self._kept and source.size >= size and shared >= len(source.content) // 2:
            self._kept.remove(source)
            source.content = content[:shared]
            self._held.add(source)
            return source, shared
        if source is not None:
            source.used = next(self._clock)  # not the first to be thrown out for its own follower
        run = self._allocate(size, owner)
        if run is None:
            return None
        if source is not None and (source in self._held or source in self._kept):
            self._copy(source, run, shared)
            run.content = content[:shared]
        self._held.add(run)
        return run, len(run.content)

    def give_back(self, run: Run, content: np.ndarray | None) -> None:
        """End a run's use; what it holds is kept for others if `content` says what it is."""
        self._held.discard(run)
        if content is None:
            for keys, values in self._layers.values():
                keys[:, run.start : run.stop] = 0
                values[:, run.start : run.stop] = 0
            return
        run.content, run.used = content, next(self._clock)
        self._kept.add(run)
        if len(self._kept) > NUM_KEPT:
            self._kept.remove(self._oldest())

    def forget(self) -> None:
        """Throw out all that is kept of finished sequences."""
        self._kept.clear()

    def layer(
        self, number: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's whole pool of keys and of values, `[kv_heads, places, dim]` each.

        Made at first use, for keys and values like these, `[rows, kv_heads, dim]`.
        """
        if number not in self._layers:
            self._layers[number] = (self._empty(key), self._empty(value))
        return self._layers[number]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # never zeroed: a CPU's memory is taken page by page as places are written
        return like.new_empty(like.shape[1], self.num_places, like.shape[2])

    def _likest(self, content: np.ndarray, owner: Hashable) -> tuple[Run | None, int]:
        """The run that begins most like this content, kept ones first; at most all but one."""
        best, shared = None, 0
        for run in (*self._kept, *self._held):
            if run.owner == owner:
                n = min(num_shared(run.content, content), len(content) - 1)
                if n > shared:
                    best, shared = run, n
        return best, shared

    def _allocate(self, size: int, owner: Hashable) -> Run | None:
        start = self._gap(size)
        while start is None and self._kept:
            self._kept.remove(self._oldest())
            start = self._gap(size)
        return None if start is None else Run(start, size, owner, np.empty(0, np.int64))

    def _gap(self, size: int) -> int | None:
        """Where `size` places in a row are free."""
        at = 0
        for run in sorted((*self._held, *self._kept), key=lambda run: run.start):
            if run.start - at >= size:
                return at
            at = run.stop
        return at if self.num_places - at >= size else None

    def _oldest(self) -> Run:
        return min(self._kept, key=lambda run: run.used)

    def _copy(self, source: Run, target: Run, count: int) -> None:
        a, b = source.start, target.start
        for pool in itertools.chain.from_iterable(self._layers.values()):
            pool[:, b : b + count] = pool[:, a : a + count]
