"""What every request passes, at the level of ASGI: its id, its key, and the eye on its client.

Written as plain ASGI because a wrapper that buffers would hide a client's hanging up.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.server.exchange import Exchange, error_response
from pipelines.server.failures import ApiError
from pipelines.server.keys import Keys
from pipelines.server.settings import Settings

OPEN_PATHS = ("/healthz", "/readyz", "/metrics")
WORK_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/audio/transcriptions",
    "/v1/readings",
)  # fmt: skip


class Named:
    """Gives every answer an `X-Request-ID` of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, adding the header."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = f"req-{uuid.uuid4().hex}"

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = name
            await send(message)

        await self.app(scope, receive, named)


class Bounded:
    """Refuses work that has no place before it is routed, which costs a third.

    Args:
        check: raises where there is no place.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, check: Callable[[Exchange], None], settings: Settings) -> None:
        self.app, self._check, self._settings = app, check, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer why not."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in WORK_PATHS:
            exchange = Exchange(scope, receive, send, self._settings)
            try:
                self._check(exchange)
            except ApiError as error:
                await exchange.fail(error)
                return
        await self.app(scope, receive, send)


class Attended:
    """Cancels the work for a client that has hung up, streaming or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; from the end of the body on, hanging up cancels the work."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        work, client = asyncio.current_task(), None
        assert work is not None
        answered = left = False

        async def gone() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            if not answered:  # whoever has the whole answer may go; the rest is tidying up
                left = True
                work.cancel()

        async def listening() -> Message:
            nonlocal client
            if client is not None:
                await asyncio.Future()  # nothing more comes; hanging up cancels the work
            message = await receive()
            if not message.get("more_body", False):
                client = asyncio.ensure_future(gone())
            return message

        async def answering(message: Message) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, listening, answering)
        except asyncio.CancelledError:
            if not left or work.uncancel():
                raise  # by others too
        finally:
            if client is not None:
                client.cancel()


class Guarded:
    """Lets in who has a key; without a key file everybody is the one tenant ''."""

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self.app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the tenant in the scope's state, or answer 401."""
        if scope["type"] != "http" or self._keys is None or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        tenant = self._keys.tenant_of(key.strip()) if kind.lower() == "bearer" else None
        if tenant is None:
            error = ApiError(
                401, "no valid key; send it as Authorization: Bearer KEY", "invalid_api_key"
            )
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = tenant
        await self.app(scope, receive, send)
