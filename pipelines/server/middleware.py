"""What every request passes, at the level of ASGI: its id, its key, and the eye on its client.

Written as plain ASGI because a wrapper that buffers would hide a client's hanging up.
"""

from __future__ import annotations

import asyncio
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.server.exchange import error_response
from pipelines.server.failures import ApiError
from pipelines.server.keys import Keys

OPEN_PATHS = ("/healthz", "/readyz", "/metrics")


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


class Attended:
    """Cancels the work for a client that has hung up, streaming or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; once the body has come, wait for the client's hanging up beside the work."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        complete, answered = asyncio.Event(), False

        async def listening() -> Message:
            if complete.is_set():
                await asyncio.Future()  # nothing more comes; hanging up cancels the work
            message = await receive()
            if not message.get("more_body", False):
                complete.set()
            return message

        async def gone() -> None:
            await complete.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        async def answering(message: Message) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        work = asyncio.ensure_future(self.app(scope, listening, answering))
        client = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({work, client}, return_when=asyncio.FIRST_COMPLETED)
            if answered:  # whoever has the whole answer may go; what is left to do is tidying up
                await asyncio.wait({work})
        finally:
            client.cancel()
            if not work.done():
                work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            if not work.cancelled():
                raise


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
