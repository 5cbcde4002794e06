"""Who runs in the next step: every answer under way by one token, then prompts by a chunk.

First come, first served: a request that does not fit holds up those behind it, so that none waits
for ever. Knows no model and no logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from multimodal.engine.sequence import Segment, Sequence


@dataclass(frozen=True)
class Limits:
    """How many sequences run at the same time, and prompt tokens of one step."""

    slots: int = 32
    chunk: int = 128


@dataclass
class Scheduler:
    """Sequences that wait and sequences that run, in the order in which they came."""

    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sequence]:
        return iter((*self.running, *self.waiting))

    def admit(self, slots: int, room_for: Callable[[Sequence], bool]) -> list[Sequence]:
        """Let those who wait run, as long as there are slots and room; returns the new ones."""
        new = []
        while self.waiting and len(self.running) < slots and room_for(self.waiting[0]):
            new.append(self.waiting.popleft())
            self.running.append(new[-1])
        return new

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)

    def plan(self, chunk: int) -> list[Segment]:
        """What the next step runs."""
        answers = [_next(s) for s in self.running if not s.is_prefilling]
        prompts, left = [], chunk
        for sequence in self.running:
            if sequence.is_prefilling and left > 0:
                count = min(left, sequence.length - sequence.done)
                last = sequence.done + count == sequence.length
                prompts.append(Segment(sequence, count, int(last)))
                left -= count
        return answers + prompts


def _next(sequence: Sequence) -> Segment:
    """The last token of an answer, or all choices but the last token of each."""
    if not sequence.choices:
        return Segment(sequence, 1, 1, (sequence.tokens[-1],))
    ids = tuple(token for choice in sequence.choices for token in choice[:-1])
    groups = tuple(len(choice) - 1 for choice in sequence.choices if len(choice) > 1)
    return Segment(sequence, len(ids), len(ids), ids, groups)
