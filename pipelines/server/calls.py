"""A request at work: its thread, the backend it asks, and the ways in which it is stopped.

The work runs in a thread and hands its events to the event loop through a bounded buffer; it ends
at the next event once nobody wants it any more. Knows neither HTTP nor what the work is.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from encoders.errors import CrossReadError, TimedOut
from multimodal.backends import (
    Backend,
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Novelty,
    Token,
)
from multimodal.events import EventStream
from multimodal.messages import Message, Study
from pipelines.server.admission import Ticket
from pipelines.server.failures import ApiError, SlowReader
from pipelines.server.meters import Meters
from pipelines.server.settings import Settings

logger = logging.getLogger(__name__)
Event = TypeVar("Event")
_GRACE_S = 5.0  # an answer that takes too long is cut off at an event; one that hangs has none


class Stopped(CrossReadError):
    """The work was stopped: nobody wants its result any more, or it took too long."""


@dataclass(frozen=True)
class _End:
    """The last thing a thread hands over: why it ended, None if it was done."""

    failure: Exception | None = None


class Watched:
    """A backend as one request sees it: every event is counted, and none comes after `stop`."""

    def __init__(self, backend: Backend, meters: Meters, ticket: Ticket, total_s: float) -> None:
        self._backend, self._meters, self._ticket = backend, meters, ticket
        self._deadline = ticket.started + total_s
        self._stop = threading.Event()
        self._events: Iterator[Token | Finished] = iter(())
        self.tokens = 0

    def capabilities(self) -> Capabilities:
        """Those of the backend."""
        return self._backend.capabilities()

    def novelty(self, study: Study) -> Novelty | None:
        """What the backend says."""
        self._check()
        return self._backend.novelty(study)

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The backend's events, within the time left for the request as a whole.

        Raises:
            Stopped: nobody wants them any more.
            TimedOut: no time is left.
        """
        self._check()
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimedOut("the request took longer than this server allows")
        mine = replace(options or GenerateOptions(), tenant=self._ticket.tenant, deadline_s=left_s)
        last, ticket = 0.0, self._ticket
        with ticket.trace.answer(mine, ticket.started - ticket.entered) as told:
            self._events = events = self._backend.generate(messages, mine)
            with closing(cast("Any", events)):
                for event in events:
                    self._check()
                    now = time.monotonic()
                    self._count(event, now, last)
                    told(event)
                    last = now
                    yield event
            self._check()  # a stream that was closed ends without Finished

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What the backend says."""
        return self._backend.estimate(messages, options)

    def load(self) -> Load:
        """What the backend says."""
        return self._backend.load()

    def close(self) -> None:
        """Nothing: the backend is everybody's."""

    def stop(self) -> None:
        """Let nothing more come, and wake whoever waits for the next event if that can be done."""
        self._stop.set()
        if isinstance(self._events, EventStream):  # a generator can't be closed while it runs
            self._events.close()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("the request was stopped")

    def _count(self, event: Token | Finished, now: float, last: float) -> None:
        """Note an event at `now`; the one before it in the same answer came at `last`, or 0."""
        if isinstance(event, Finished):
            self._meters.answered(event.usage)
            self._ticket.learn(event.usage)
            return
        if last:
            self._meters.token(now - last)
        elif not self.tokens:
            self._meters.first_token(now - self._ticket.entered)
        self.tokens += 1


class Call(Generic[Event]):
    """Work in a thread of its own.

    Args:
        backend: what the work asks.
        settings: limits of time and buffer.
        ended: called on the event loop when the thread has ended.
    """

    def __init__(self, backend: Watched, settings: Settings, ended: Callable[[], None]) -> None:
        self.backend, self._settings, self._ended = backend, settings, ended
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[Event | _End] = asyncio.Queue()
        self._room = threading.Semaphore(settings.max_buffered)

    def stop(self) -> None:
        """End the work at its next event."""
        self.backend.stop()
        self._room.release()  # a thread that waits for room has no reader to wait for

    async def events(
        self, work: Callable[[Backend], Iterator[Event]]
    ) -> AsyncGenerator[Event, None]:
        """What the work makes; closing this stops it.

        Raises:
            ApiError: 504, the first event or the last took too long.
        """
        thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        thread.start()
        started = self._loop.time()
        limit_s, what = self._settings.first_token_s, "the first token"
        try:
            while True:
                try:
                    async with asyncio.timeout_at(started + limit_s):
                        event = await self._ready.get()
                except TimeoutError:
                    self.stop()
                    raise ApiError(504, f"{what} took more than {limit_s:g} s", "timeout") from None
                if isinstance(event, _End):
                    if event.failure is not None:
                        raise event.failure
                    return
                limit_s, what = self._settings.total_s + _GRACE_S, "the answer"
                self._room.release()
                yield event
        finally:
            self.stop()

    def _run(self, work: Callable[[Backend], Iterator[Event]]) -> None:
        """The thread: every event of the work, then its end."""
        end = _End()
        try:
            for event in work(self.backend):
                if not self._room.acquire(timeout=self._settings.slow_reader_s):
                    self.stop()
                    raise SlowReader("the client takes nothing of its answer")
                self._hand_over(self._ready.put_nowait, event)
        except Exception as error:  # whatever it is belongs to this request alone
            if not isinstance(error, CrossReadError):
                logger.error("a request failed unexpectedly: %s", type(error).__name__)
            end = _End(error)
        self._hand_over(self._ready.put_nowait, end)
        self._hand_over(self._ended)

    def _hand_over(self, act: Callable[..., None], *values: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(act, *values)
        except RuntimeError:  # the loop is gone: the server has ended and nobody waits
            logger.info("a request outlived the server")
