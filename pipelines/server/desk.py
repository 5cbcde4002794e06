"""What all routes share: one loaded backend, its places, metrics and files, and the way of a request.

A request enters (counted at once), is weighed by its headers, waits for its turn and runs in a
thread; wherever it ends, everything it held is given back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from encoders.errors import UnreadableImage
from multimodal.backends import Backend, Estimate, GenerateOptions, Load, MediaSize
from multimodal.messages import Message
from multimodal.process import BackendProcess
from pipelines.ct_report import provenance
from pipelines.server.admission import Admission, Ticket
from pipelines.server.calls import Call, Watched
from pipelines.server.exchange import Exchange
from pipelines.server.failures import ApiError, stage_of, too_large
from pipelines.server.media import Media
from pipelines.server.meters import Meters
from pipelines.server.settings import Settings
from pipelines.server.storage import Store
from pipelines.server.tracing import Tracing

Event = TypeVar("Event")
_PROBE_S = 1.0  # a backend that does not say how busy it is within this time hangs


class Desk:
    """One server's work.

    Args:
        backend: what answers.
        settings: the limits.
        num_tenants: how many share it.
        closed: why nobody is let in; "" while the door is open.
    """

    def __init__(
        self, backend: Backend, settings: Settings, num_tenants: int, closed: Callable[[], str]
    ) -> None:
        self.backend, self.settings = backend, settings
        self.capabilities = backend.capabilities()
        self.name = self.capabilities.name
        self.created = int(time.time())
        self.meters = Meters(self.name, provenance(backend), settings.metrics_compat)
        self.tracing = Tracing(self.name, on=settings.otel)
        self._own = None if settings.folder else TemporaryDirectory(prefix="crossread-server-")
        self.folder = settings.folder or Path(self._own.name if self._own else "")
        self.store = Store(self.folder, settings)
        self.admission = Admission(
            settings, shared=num_tenants > 1, closed=closed, refuse=self.meters.refused
        )
        self.meters.watch(self.admission, settings.max_waiting)
        self._probe: asyncio.Future[Load] | None = None

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not the one served.

        Raises:
            ApiError: 404.
        """
        if name is not None and name != self.name:
            raise ApiError(
                404, f"this server serves the model {self.name!r} only", "model_not_found",
                param="model",
            )  # fmt: skip

    def check_place(self, exchange: Exchange) -> None:
        """Refuse, and count, what `admitted` would refuse; anything else goes on as if unasked.

        Raises:
            ApiError: 429, 503.
        """
        if self.admission.would_refuse(exchange.tenant):
            with self.tracing.request(exchange.path, exchange.headers):
                self.admission.enter(exchange.tenant)

    @asynccontextmanager
    async def admitted(self, exchange: Exchange) -> AsyncIterator[Ticket]:
        """A place for an exchange; how it ended is counted."""
        with self.tracing.request(exchange.path, exchange.headers) as trace:
            ticket = self.admission.enter(exchange.tenant)
            ticket.trace = trace
            try:
                yield ticket
            except (asyncio.CancelledError, GeneratorExit):
                self.meters.stopped("running" if ticket.started else "waiting")
                raise
            except Exception as error:  # counted, whatever it is, and passed on
                self.meters.failed(stage_of(error))
                raise
            finally:
                ticket.leave()

    def media(self, ticket: Ticket) -> Media:
        """A folder for the request's media, removed when its last holder leaves."""
        media = Media(self.store, ticket.tenant, self.settings)
        ticket.finally_do(media.close)
        return media

    async def weigh(
        self, ticket: Ticket, messages: Sequence[Message], options: GenerateOptions
    ) -> Estimate:
        """What a request will take, by headers alone.

        Raises:
            ApiError: 413 for a medium over a limit, 429 if its prompt must not wait.
            ContextOverflow: it does not fit the model.
        """
        try:
            estimate = await asyncio.to_thread(self.backend.estimate, messages, options)
        except UnreadableImage as error:
            if "Decompression" in type(error.__cause__).__name__:  # PIL's own limit is higher
                raise too_large("a picture has more megapixels than any limit") from None
            raise
        for medium in estimate.media:
            _check_size(medium, self.settings)
        ticket.weigh(estimate.prompt_tokens)
        return estimate

    async def run(
        self, ticket: Ticket, work: Callable[[Backend], Iterator[Event]]
    ) -> AsyncGenerator[Event, None]:
        """The events of work, once it is its turn; closing this stops it."""
        await ticket.start()
        self.meters.queued(ticket.started - ticket.entered)
        watched = Watched(self.backend, self.meters, ticket, self.settings.total_s)
        call: Call[Event] = Call(watched, self.settings, ticket.leave)
        ticket.hold()  # by the thread, until it ends
        async with aclosing(call.events(work)) as events:
            async for event in events:
                yield event

    async def probe(self) -> Load:
        """How busy the backend is; asked once at a time, so that one that hangs holds one thread.

        Raises:
            ApiError: 503, it does not say.
        """
        if self._probe is None or self._probe.done():
            self._probe = in_thread(self.backend.load)
        try:
            async with asyncio.timeout(_PROBE_S):
                return await asyncio.shield(self._probe)
        except Exception as error:  # of any kind: then it can't answer requests either
            raise ApiError(
                503, f"the model does not answer ({type(error).__name__})", "engine_down"
            ) from None

    async def check_ready(self) -> None:
        """Whether requests would be answered.

        Raises:
            ApiError: 503.
        """
        if why := self.admission.closed():
            raise ApiError(503, f"the server is {why}", why)
        silent_s = time.monotonic() - self.meters.last_event
        if self.admission.busy_s() > self.settings.stalled_s < silent_s:
            raise ApiError(503, f"nothing came from the model for {silent_s:.0f} s", "stalled")
        if isinstance(self.backend, BackendProcess) and not self.backend.alive:
            raise ApiError(503, "the model's process is gone or hangs", "engine_down")
        await self.probe()

    async def measured(self) -> bytes:
        """All metrics in Prometheus' text format; the backend's own where it tells them."""
        with suppress(ApiError):
            self.meters.take(await self.probe())
        return self.meters.text()

    def close(self) -> None:
        """Let go of files and of the backend, and send the last spans."""
        if self._own:
            self._own.cleanup()
        self.backend.close()
        self.tracing.close()


def in_thread(act: Callable[[], Event]) -> asyncio.Future[Event]:
    """What a function returns, run in a thread that holds up nobody's exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Event] = loop.create_future()

    def settle(result: Event | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = act()
        except Exception as error:  # handed on to whoever waits
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return future


def _check_size(medium: MediaSize, settings: Settings) -> None:
    """Refuse a medium over a limit, by what its headers say."""
    megapixels = medium.pixels / 1e6
    if megapixels > settings.max_megapixels:
        raise too_large(
            f"a picture has {megapixels:.0f} megapixels; at most {settings.max_megapixels:g} fit"
        )
    if medium.seconds > settings.max_audio_s:
        raise too_large(
            f"a recording takes {medium.seconds:.0f} s; at most {settings.max_audio_s:g} s fit"
        )
    if medium.modality == "dicom" and medium.frames > settings.max_frames:
        raise too_large(f"a study has {medium.frames} slices; at most {settings.max_frames} fit")
