"""The server as a process: listens, drains on SIGTERM or SIGINT, and ends.

A second signal ends it at once. What the model's process does is the backend's business.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from encoders.errors import InvalidOption
from multimodal.backends import Backend
from pipelines.server.app import Life, create_app
from pipelines.server.keys import Keys
from pipelines.server.settings import Settings

logger = logging.getLogger(__name__)
_LOCAL = ("127.0.0.1", "::1", "localhost")
_LAST_BYTES_S = 5  # for answers to reach their clients once the work is done
KEEP_ALIVE_S = 75  # longer than clients (5 s) and balancers (60 s) keep an idle connection: whoever
# closes it later may send a request just as the other closes


def run_server(
    load: Callable[[], Backend],
    settings: Settings,
    keys: Keys | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    listening: Callable[[int], None] = lambda _: None,
    ready: Callable[[int], None] = lambda _: None,
) -> None:
    """Serve until told to stop.

    Args:
        load: gives the backend.
        settings: the limits.
        keys: who may ask; without them the server listens to this machine only.
        host: address to listen at.
        port: 0 for any free one.
        listening: told the port once connections are taken; the model is loaded meanwhile.
        ready: told the port once requests are answered.

    Raises:
        InvalidOption: an open address without keys, or a port that cannot be had.
        CrossReadError: whatever kept the model from being loaded.
    """
    check_host(host, keys)
    life = Life(load, settings, keys)
    with _bound(host, port) as listener:
        server = _Server(life)
        number = listener.getsockname()[1]
        server.listening, server.ready = lambda: listening(number), lambda: ready(number)
        server.run(sockets=[listener])
    if life.failure is not None:
        raise life.failure


def check_host(host: str, keys: Keys | None) -> None:
    """Refuse to let in everybody from everywhere.

    Raises:
        InvalidOption: an address that others reach, without keys.
    """
    if keys is None and host not in _LOCAL:
        raise InvalidOption(f"listening at {host} lets others in: give --keys, or use 127.0.0.1")


def settle() -> None:
    """Spare the garbage collector what stands for good: looking through it takes 0.3 s, in a crowd.

    The modules loaded are 400,000 objects, and everybody waits, `/healthz` too.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol by its name: asyncio switches Nagle's delay of 40 ms off for such sockets only
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InvalidOption(
                f"cannot listen at {host}:{port} ({error.strerror}); choose another --port"
            ) from None
        yield listener


class _Server(uvicorn.Server):
    """uvicorn, which on a signal first lets accepted requests end while it answers 503 to others."""

    def __init__(self, life: Life) -> None:
        config = uvicorn.Config(
            create_app(life), log_config=None, log_level="critical", access_log=False,
            lifespan="on", timeout_graceful_shutdown=_LAST_BYTES_S, server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S, proxy_headers=False,
        )  # fmt: skip
        super().__init__(config)
        self._life = life
        self._draining: asyncio.Task[None] | None = None
        self.listening: Callable[[], None] = lambda: None
        self.ready: Callable[[], None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on a signal; the process then ends as usual and not by the signal."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._told_to_stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell so."""
        await super().startup(sockets)
        self.listening()

    async def on_tick(self, counter: int) -> bool:
        """Tell once the model is there; end where none could be loaded."""
        if self.ready is not None and self._life.is_open:
            settle()
            self.ready()
            self.ready = None
        return await super().on_tick(counter) or self._life.failure is not None

    def _told_to_stop(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._life.draining = True
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        limit_s = self._life.settings.drain_s
        try:
            async with asyncio.timeout(limit_s):
                await self._life.drained()
        except TimeoutError:
            logger.warning("requests that took more than %g s were given up", limit_s)
        self.should_exit = True
