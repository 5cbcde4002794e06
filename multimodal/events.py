"""An answer under way: one thread makes its events, another takes them, and either may end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue

from multimodal.backends import Finished, Token

Event = Token | Finished | Exception


class EventStream(Iterator[Token | Finished]):
    """Events in the order in which they were put; an exception is raised in its place.

    Who makes the events holds `put` only, so that a stream that nobody reads any more is collected
    and so closed.

    Args:
        cancel: called once, from any thread, when the stream is closed before its end.
    """

    def __init__(self, cancel: Callable[[], None] = lambda: None) -> None:
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self.put: Callable[[Event | None], None] = self._queue.put
        self._cancel = cancel
        self._ended = False

    def __next__(self) -> Token | Finished:
        event = None if self._ended else self._queue.get()
        if event is None or not isinstance(event, Token):
            self._ended = True
        if event is None:
            raise StopIteration
        if isinstance(event, Exception):
            raise event
        return event

    def close(self) -> None:
        """Cancel; a thread that waits for the next event wakes to the end of the stream."""
        if not self._ended:
            self._ended = True
            self._cancel()
            self._queue.put(None)

    def __del__(self) -> None:
        self.close()
