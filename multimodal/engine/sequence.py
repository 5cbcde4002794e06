"""One request as the engine sees it: a prompt of embeddings, what is wanted, and how far it is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from multimodal.backends import GenerateOptions, Reason


@dataclass(frozen=True)
class Picked:
    """One token of an answer; its log-probability and the likeliest ones' where they were asked."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Scored:
    """The log-probability of each choice as the beginning of the answer."""

    scores: tuple[float, ...]


@dataclass(frozen=True)
class Ended:
    """The end of an answer."""

    reason: Reason


Outcome = Picked | Scored | Ended | Exception


class Constraint(Protocol):
    """What may come next, as a grammar sees it."""

    def allowed(self) -> torch.Tensor:
        """Bool `[vocabulary]`."""
        ...

    def advance(self, token: int) -> None:
        """Take a token."""
        ...


@dataclass(eq=False)
class Sequence:
    """A request.

    Attributes:
        embeds: the prompt, `[length, hidden]`.
        content: what stands at each position of the prompt, int64 `[length]`: positions of equal
            content before them all have equal keys and values.
        tell: takes each outcome, on the engine's thread; false ends the answer.
        ends: tokens that end an answer.
        choices: token ids to score in place of an answer.
        turns: positions of the prompt by which rotary embeddings turn, int64 `[3, length]`, where media
            lie in time, height and width (mrope); None where all lie in a row.
        done: positions whose keys and values are kept.
        tokens: the answer so far.
    """

    options: GenerateOptions
    embeds: torch.Tensor
    content: np.ndarray
    tell: Callable[[Outcome], bool]
    ends: frozenset[int] = frozenset()
    choices: tuple[tuple[int, ...], ...] = ()
    constraint: Constraint | None = None
    turns: np.ndarray | None = None
    done: int = 0
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    first_logits: torch.Tensor | None = None
    cancelled: bool = False
    asked_s: float = field(default_factory=time.monotonic)
    begun_s: float = 0.0
    decoding_s: float = 0.0
    place: Any = None  # the runner's own note of where the keys and values are

    def __post_init__(self) -> None:
        seed = self.options.seed
        self.chance = random.Random(seed)  # of this request alone: its neighbours draw their own

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.content)

    @property
    def size(self) -> int:
        """Positions that it takes at most."""
        if self.choices:
            return self.length + sum(len(choice) - 1 for choice in self.choices)
        return self.length + self.options.max_new_tokens - 1

    @property
    def is_prefilling(self) -> bool:
        """Whether some of the prompt has not been run."""
        return self.done < self.length

    def turned(self, rows: np.ndarray) -> np.ndarray:
        """By which positions rotary embeddings turn these, `[n]` or `[3, n]`; words go on in a row."""
        if self.turns is None:
            return rows
        behind = self.turns.max() + 1 + rows - self.length
        return np.where(
            rows < self.length, self.turns[:, np.minimum(rows, self.length - 1)], behind
        )

    def is_late(self, now_s: float) -> bool:
        """Whether it waited or ran longer than it may."""
        options = self.options
        limits = (options.deadline_s, None if self.begun_s else options.queue_s)
        return any(limit is not None and now_s - self.asked_s > limit for limit in limits)


@dataclass(frozen=True)
class Segment:
    """Positions of a sequence that one forward pass runs: `count` of them from `sequence.done`.

    Attributes:
        ids: tokens to run; None for `count` positions of the prompt.
        groups: lengths of alternatives that stand side by side after the prompt, blind to each
            other; empty for tokens in a row.
        num_logits: how many of the last positions are to be predicted from.
    """

    sequence: Sequence
    count: int
    num_logits: int
    ids: tuple[int, ...] | None = None
    groups: tuple[int, ...] = ()
