"""The middleware before Gradio: no visitor gets or names another's files, or sends too many.

What the server answers is read for the files it names, which are the visitor's from then on. A
tab is open while its heartbeat is: the connection that Gradio's page holds.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from http.cookies import CookieError, SimpleCookie
from typing import Any

from pipelines.ui.settings import Settings
from pipelines.ui.visitors import Visitors
from pipelines.ui.words import told_in

COOKIE = "crossread_visitor"
GRACE_S = 30.0  # files stay so long after a browser's last tab: a reload leaves, then arrives
_FILE = re.compile(r"/file[=/](.*)$", re.DOTALL)
_HEARTBEAT = re.compile(r"/heartbeat/[^/]+$")
_MAX_BODY_BYTES = 64 * 2**20  # of what is no upload; a tool's call holds its file
_MULTIPART_BYTES = 4096  # boundary and headers of a file, at most

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware; see the file's head."""

    def __init__(self, app: Any, visitors: Visitors, settings: Settings) -> None:
        self.app, self.visitors, self.settings = app, visitors, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.visitors.sweep_in_time()
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        visitor, path = visitor_of(headers), scope["path"]
        refusal = self._refusal(visitor, path, headers)
        if refusal is None and scope["method"] == "POST" and not path.endswith("/upload"):
            body = await _body(receive)
            refusal = self._refusal_of_body(visitor, body)
            receive = _again(body or b"", receive)
        if refusal is not None:
            await _refuse(send, *refusal, headers)
            return
        with self._tab(visitor) if _HEARTBEAT.search(path) else nullcontext():
            await self._pass_on(scope, receive, send, visitor, headers)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, visitor: str, headers: Mapping[str, str]
    ) -> None:
        """To Gradio; a file that was let go since it was allowed is refused like any that is not his."""
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, self._watched(scope, sending, visitor, headers))
        except (RuntimeError, OSError):  # Starlette's, of a file that is not there
            refusal = None if started else self._refusal(visitor, scope["path"], headers)
            if refusal is None:
                raise
            await _refuse(send, *refusal, headers)

    @contextmanager
    def _tab(self, visitor: str) -> Iterator[None]:
        self.visitors.arrive(visitor)
        try:
            yield
        finally:
            departure = self.visitors.leave(visitor)
            loop = asyncio.get_running_loop()
            loop.call_later(GRACE_S, self.visitors.let_go, visitor, departure)

    def _refusal(
        self, visitor: str, path: str, headers: Mapping[str, str]
    ) -> tuple[int, str] | None:
        """Status and key of the words for a request that is told by its address alone."""
        if wanted := _FILE.search(path):
            return self._refusal_of_file(visitor, wanted[1])
        if "/proxy=" in path:
            return 403, "not_yours"
        if path.endswith("/upload"):
            files, size = self.visitors.sent(visitor)
            coming = int(headers.get("content-length") or 0)
            if files >= self.settings.max_files:
                return 413, "too_many_files"
            if size + coming - _MULTIPART_BYTES > self.settings.max_session_mib * 2**20:
                return 413, "too_much"
        return None

    def _refusal_of_file(self, visitor: str, path: str) -> tuple[int, str] | None:
        """Of one that is to be had or to be read; outside our folder Gradio's own rules hold."""
        if re.match(r"[a-z]+:", path, re.IGNORECASE):
            return 403, "no_addresses"
        if self.visitors.inside(path) and not self.visitors.may_have(visitor, path):
            return 403, "not_yours"
        return None

    def _refusal_of_body(self, visitor: str, body: bytes | None) -> tuple[int, str] | None:
        if body is None:
            return 413, "too_much"
        try:
            named = _paths(json.loads(body)) if body else ()
        except (ValueError, RecursionError):
            return None  # no JSON: Gradio refuses it
        for path in named:
            if refusal := self._refusal_of_file(visitor, path):
                return refusal
            if not self.visitors.inside(path):
                return 403, "not_yours"
        return None

    def _watched(self, scope: Scope, send: Send, visitor: str, headers: Mapping[str, str]) -> Send:
        """`send`, reading what is sent for the files it names, and giving a browser its cookie."""
        wants_page = scope["method"] == "GET" and scope["path"] == "/" and not visitor
        kind, rest = "", b""
        is_upload = scope["path"].endswith("/upload")

        async def watched(message: Message) -> None:
            nonlocal kind, rest
            if message["type"] == "http.response.start":
                found = {k.lower(): v for k, v in message["headers"]}
                kind = found.get(b"content-type", b"").decode("latin-1")
                if wants_page and "html" in kind:
                    message["headers"] = [*message["headers"], _cookie(headers)]
            elif message["type"] == "http.response.body" and _is_read(kind):
                lines = (rest + message.get("body", b"")).split(b"\n")
                rest = lines.pop() if message.get("more_body") else b""
                for line in lines:
                    self._grant_named(visitor, line, is_upload)
            await send(message)

        return watched

    def _grant_named(self, visitor: str, line: bytes, is_upload: bool) -> None:
        try:
            said = json.loads(line.removeprefix(b"data:"))
        except (ValueError, RecursionError):
            return
        for path in said if is_upload and isinstance(said, list) else _paths(said):
            self.visitors.grant(visitor, str(path), sent=is_upload)


def visitor_of(headers: Mapping[str, str]) -> str:
    """The visitor of a request; "" for a program without the cookie."""
    try:
        cookies = SimpleCookie(headers.get("cookie") or "")
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _paths(said: Any) -> Iterator[str]:
    """The path of every file that JSON describes as Gradio does."""
    stack = [said]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            meta = value.get("meta")
            if isinstance(value.get("path"), str) and isinstance(meta, dict) and "_type" in meta:
                yield value["path"]
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _is_read(kind: str) -> bool:
    return kind.startswith(("application/json", "text/event-stream"))


def _cookie(headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    """A new visitor's; behind TLS it also holds where the page is framed, as on a Space."""
    secure = headers.get("x-forwarded-proto", "").startswith("https")
    where = "Secure; SameSite=None; Partitioned" if secure else "SameSite=Lax"
    said = f"{COOKIE}={secrets.token_urlsafe(32)}; Path=/; HttpOnly; {where}"
    return b"set-cookie", said.encode()


async def _body(receive: Receive) -> bytes | None:
    """A request's body, None if it is larger than a conversation may be."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """What was received, once more; then whatever comes."""
    told = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return told.pop() if told else await receive()

    return receiving


async def _refuse(send: Send, status: int, key: str, headers: Mapping[str, str]) -> None:
    words = told_in(headers.get("accept-language", ""))[key]
    body = json.dumps({"detail": words, "error": words}, ensure_ascii=False).encode()
    kind = (b"content-type", b"application/json; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind]})
    await send({"type": "http.response.body", "body": body})
