"""One HTTP exchange: a bounded body in, then JSON, text or a stream of events out.

`Work` is a response that does its work while it is sent, so that whatever the work holds is given
back however the exchange ends. Knows no model.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from encoders.errors import CrossReadError
from pipelines.server.failures import (
    ApiError,
    SlowReader,
    as_api_error,
    refused,
    too_large,
)
from pipelines.server.settings import Settings

logger = logging.getLogger(__name__)
Body = TypeVar("Body", bound=BaseModel)
_MIB = 2**20


class Exchange:
    """What a handler sees of a request and how it answers."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._scope, self._receive, self._send, self._settings = scope, receive, send, settings
        self.headers, self.path = Request(scope).headers, str(scope["path"])
        self.tenant: str = scope.get("state", {}).get("tenant", "")
        self.begun = False
        self._forms: list[FormData] = []

    async def read(self, kind: type[Body]) -> Body:
        """The JSON body.

        Raises:
            ApiError: 408 or 413.
            ValidationError: it is not what it should be.
        """
        request = self._bounded(self._settings.max_body_mib)
        async with self._in_time():
            body = await request.body()
        return kind.model_validate_json(body)

    async def form(self, allowed: Sequence[str], max_mib: float) -> Mapping[str, Any]:
        """The fields of a multipart form, files as `UploadFile`.

        Raises:
            ApiError: 400 for a field that is not among `allowed` or comes twice, 408, 413.
        """
        if not self.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(400, "the body must be a multipart form with a file", "invalid_form")
        request = self._bounded(max_mib)
        async with self._in_time():
            form = await request.form(max_files=1, max_fields=len(allowed))
        self._forms.append(form)
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name not in allowed:
                raise refused(name)
            if name in fields:
                raise ApiError(400, f"{name} is given twice", "invalid_value", param=name)
            fields[name] = value
        if not isinstance(fields.get("file"), UploadFile):
            raise ApiError(400, "file is missing", "missing_required_parameter", param="file")
        return fields

    async def close(self) -> None:
        """Let go of what forms hold."""
        for form in self._forms:
            await form.close()

    async def answer(self, value: Any, status: int = 200) -> None:
        """JSON."""
        await self.respond(JSONResponse(value, status))

    async def respond(self, response: Response) -> None:
        """Any whole response."""
        self.begun = True
        await response(self._scope, self._receive, self._send)

    async def event(self, value: Mapping[str, Any] | str) -> None:
        """One server-sent event; the first one begins the answer."""
        if not self.begun:
            self.begun = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        await self._body(f"data: {text}\n\n".encode(), more=True)

    async def end_events(self) -> None:
        """The end of a stream of events."""
        await self._body(b"", more=False)

    async def fail(self, error: ApiError) -> None:
        """An error: as the whole answer, or as the last event of one that has begun."""
        if self.begun:
            await self.event(error.to_dict())
            await self.end_events()
        else:
            await self.respond(error_response(error))

    async def _body(self, data: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(self._settings.slow_reader_s):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise SlowReader("the client takes nothing of its answer") from None

    def _bounded(self, max_mib: float) -> Request:
        """The request, whose body can't be read beyond the limit."""
        limit = int(max_mib * _MIB)
        size = self.headers.get("content-length", "0")
        too_long = too_large(f"the body may hold {max_mib:g} MiB; send media by /v1/files")
        if not size.isascii() or not size.isdigit() or int(size) > limit:
            raise too_long
        taken = 0

        async def receive() -> Message:
            nonlocal taken
            message = await self._receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise too_long
            return message

        return Request(self._scope, receive)

    def _in_time(self) -> _InTime:
        return _InTime(self._settings.queue_s)


class _InTime:
    """A block that reads a body: it must come in time."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._timeout = limit_s, asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *failure: Any) -> None:
        try:
            await self._timeout.__aexit__(*failure)
        except TimeoutError:
            words = f"the body did not come within {self._limit_s:g} s"
            raise ApiError(408, words, "body_timeout") from None


Handler = Callable[[Exchange], Awaitable[None]]


class Work(Response):
    """A response that is worked out while it is sent."""

    def __init__(self, handle: Handler, settings: Settings) -> None:
        self._handle, self._settings, self.background = handle, settings, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request; every failure becomes OpenAI's error body or last event."""
        exchange = Exchange(scope, receive, send, self._settings)
        try:
            await self._handle(exchange)
        except (ClientDisconnect, SlowReader):
            return  # nobody listens any more
        except HTTPException as error:
            await exchange.fail(ApiError(error.status_code, str(error.detail), "invalid_form"))
        except Exception as error:  # an exchange is a process edge: one failure harms no other
            if not isinstance(error, CrossReadError | ValueError):
                logger.error("a request failed unexpectedly: %s", type(error).__name__)
            await exchange.fail(as_api_error(error))
        finally:
            await exchange.close()


def error_response(error: ApiError) -> Response:
    """An error as a whole answer."""
    return JSONResponse(error.to_dict(), error.status, headers=error.headers)
