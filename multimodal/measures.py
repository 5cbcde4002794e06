"""What a backend measures of its own work, where it happens: totals and distributions by name.

A name may be split by one label, a modality or a layer. Plain numbers that cross to another process;
knows no model and no dashboard.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40)
NUMBERS = tuple(2**k for k in range(13))
Key = tuple[str, str]  # a name and the value of its label, "" without one


@dataclass(frozen=True)
class Distribution:
    """Measured values: how many lie up to each of `bounds`, and above the last; and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...] = ()
    total: float = 0.0

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)

    def with_value(self, value: float) -> Distribution:
        """One value more."""
        counts = list(self.counts or (0,) * (len(self.bounds) + 1))
        counts[bisect_left(self.bounds, value)] += 1
        return Distribution(self.bounds, tuple(counts), self.total + value)


@dataclass(frozen=True)
class Measured:
    """All totals and distributions at one moment."""

    totals: Mapping[Key, float] = field(default_factory=dict)
    spreads: Mapping[Key, Distribution] = field(default_factory=dict)

    def __or__(self, other: Measured) -> Measured:
        return Measured({**self.totals, **other.totals}, {**self.spreads, **other.spreads})


class Measures:
    """Takes measurements from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[Key] = Counter()
        self._spreads: dict[Key, Distribution] = {}

    def count(self, name: str, label: str = "") -> None:
        """One more of something."""
        with self._lock:
            self._totals[name, label] += 1

    def observe(self, name: str, value: float, label: str = "") -> None:
        """A value; of a name that ends in `_seconds`, a time."""
        bounds = SECONDS if name.endswith("_seconds") else NUMBERS
        with self._lock:
            old = self._spreads.get((name, label)) or Distribution(bounds)
            self._spreads[name, label] = old.with_value(value)

    @contextmanager
    def timed(self, name: str, label: str = "") -> Iterator[None]:
        """Observe how long the block takes, if it does not fail."""
        started = time.perf_counter()
        yield
        self.observe(name, time.perf_counter() - started, label)

    def told(self) -> Measured:
        """Everything so far."""
        with self._lock:
            return Measured(dict(self._totals), dict(self._spreads))
