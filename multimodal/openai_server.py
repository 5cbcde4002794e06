"""HTTP to a server that speaks the OpenAI protocol: JSON answers and streams of JSON chunks.

A request is repeated only while nothing of an answer has come. Messages of errors name the host,
never what was sent or said. Knows no messages and no media.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import httpx

from encoders.errors import (
    BadAnswer,
    ContextOverflow,
    InvalidOption,
    NotFound,
    Refused,
    TimedOut,
    Unreachable,
)

Chunk = Mapping[str, Any]
_MAX_LINE_BYTES = 2**20
_MAX_BODY_BYTES = 2**22
_BUSY = (429, 502, 503, 504)
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)
_OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")  # keep-alives, and what SSE has besides data


@dataclass(frozen=True)
class Patience:
    """How long a server may take, in seconds, and how often it is asked.

    Attributes:
        connect_s: until it is reached.
        silent_s: without a byte, before and within an answer.
        first_token_s: until the first token, repeated requests and waits between them included.
        total_s: for a whole answer.
        attempts: the most requests for one answer.
        longest_wait_s: the longest Retry-After that is obeyed rather than told.
        backoff_s: before the second request where the server asks for no wait; then doubled.
    """

    connect_s: float = 10.0
    silent_s: float = 120.0
    first_token_s: float = 120.0
    total_s: float = 600.0
    attempts: int = 3
    longest_wait_s: float = 30.0
    backoff_s: float = 0.5


class NotAccepted(Refused):
    """The server takes no such request: an option or a kind of part it does not know."""


class _TryAgain(Unreachable):
    """A failure that may pass; `wait_s` is what the server asked for."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class OpenAIServer:
    """One server; each request has a connection of its own, so several threads may ask at once.

    The key of `CROSSREAD_API_KEY` is sent as `Authorization: Bearer`. Redirects are not followed
    and proxies of the environment not used: pictures go to the host that was named, to no other.

    Args:
        address: `https://host/v1`.
        patience: time limits and retries.

    Raises:
        InvalidOption: an address or key that cannot be used.
    """

    def __init__(self, address: str, patience: Patience | None = None) -> None:
        self.host = _host_of(address)
        self._base, self._patience = address.rstrip("/"), patience or Patience()
        key = os.environ.get("CROSSREAD_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InvalidOption("CROSSREAD_API_KEY holds characters that no key has; set it anew")
        # read as it is sent: an answer that is packed could grow without limit
        self._headers = {"Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._tls = httpx.create_ssl_context()

    def get(self, path: str) -> Any:
        """The JSON that stands at a path.

        Raises:
            RemoteError: it cannot be had.
        """
        with self._request("GET", path) as response, self.sensible():
            return json.loads(self._read(response))

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Chunk]:
        """The chunks answered to a request; closing the iterator hangs up.

        Raises:
            ContextOverflow: the server says that the prompt is too long.
            RemoteError: it cannot be reached, refuses, takes too long or answers nonsense.
        """
        patience, started = self._patience, monotonic()
        for attempt in range(1, patience.attempts + 1):
            begun = False
            try:
                for chunk in self._chunks(path, body, started):
                    begun = begun or _has_begun(chunk)
                    yield chunk
                return
            except _TryAgain as error:
                wait_s = error.wait_s
                if wait_s is None:
                    wait_s = patience.backoff_s * 2 ** (attempt - 1)
                left_s = started + patience.first_token_s - monotonic()
                too_long = wait_s > min(patience.longest_wait_s, left_s)
                if begun or too_long or attempt == patience.attempts:
                    raise
                sleep(wait_s)

    @contextmanager
    def sensible(self) -> Iterator[None]:
        """Whatever a malformed answer makes fail within, as `BadAnswer`."""
        try:
            yield
        except _MALFORMED:
            raise BadAnswer(
                f"{self.host} answers with something that is not the OpenAI protocol"
            ) from None

    def _chunks(self, path: str, body: Mapping[str, Any], started: float) -> Iterator[Chunk]:
        begun = ended = False
        with self._request("POST", path, body) as response:
            for line in self._lines(response):
                self._check_time(started, begun)
                if not line or line.startswith(_OTHER_FIELDS):
                    continue
                if line.removeprefix(b"data:").strip() == b"[DONE]":
                    return
                chunk = self._parsed(line)
                begun, ended = begun or _has_begun(chunk), ended or _has_ended(chunk)
                yield chunk
        if not ended:
            raise _TryAgain(f"{self.host} broke off in the middle of an answer; try again")

    def _check_time(self, started: float, begun: bool) -> None:
        limit_s = self._patience.total_s if begun else self._patience.first_token_s
        if monotonic() - started > limit_s:
            what = "its answer" if begun else "the first token"
            raise TimedOut(f"{self.host} took longer than {limit_s:g} s for {what}")

    def _parsed(self, line: bytes) -> Chunk:
        with self.sensible():
            if not line.startswith(b"data:"):
                raise ValueError
            chunk = json.loads(line.removeprefix(b"data:"))
            if "error" in chunk:
                raise BadAnswer(f"{self.host} reports an error of its own; see its log")
            _has_begun(chunk), _has_ended(chunk)
            return chunk

    def _lines(self, response: httpx.Response) -> Iterator[bytes]:
        """Lines of the stream, an empty one for each packet that ends none."""
        rest = b""
        for packet in response.iter_raw():
            *lines, rest = (rest + packet).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                raise BadAnswer(f"{self.host} sends a line without end")
            yield from (line.strip() for line in lines or [b""])
        yield rest.strip()

    def _read(self, response: httpx.Response) -> bytes:
        read = b""
        for packet in response.iter_raw():
            read += packet
            if len(read) > _MAX_BODY_BYTES:
                raise BadAnswer(f"{self.host} sends more than the answer to this can hold")
        return read

    @contextmanager
    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose status is good, its body not yet read; hung up on leaving."""
        limits = httpx.Timeout(self._patience.silent_s, connect=self._patience.connect_s)
        try:
            with (
                httpx.Client(
                    headers=self._headers, timeout=limits, verify=self._tls, trust_env=False
                ) as client,
                client.stream(method, f"{self._base}/{path}", json=body) as response,
            ):
                if response.status_code != 200:
                    self._refuse(response)
                yield response
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            silent_s = self._patience.silent_s
            raise TimedOut(f"{self.host} was silent for more than {silent_s:g} s") from None
        except httpx.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Refused(
                    f"the certificate of {self.host} is not trusted; name the file of its authority"
                    " in SSL_CERT_FILE"
                ) from None
            raise _TryAgain(
                f"{self.host} cannot be reached, or broke off; check the address and the server"
            ) from None

    def _refuse(self, response: httpx.Response) -> None:
        """Raise what the status of an answer means."""
        host, code = self.host, response.status_code
        if code in _BUSY:
            wait_s = _retry_after(response.headers.get("Retry-After", ""))
            asked = "" if wait_s is None else f" and asks to wait {wait_s:.0f} s"
            raise _TryAgain(f"{host} is busy ({code}){asked}; try again later", wait_s)
        if code in (401, 403):
            raise Refused(f"{host} refuses access ({code}); check CROSSREAD_API_KEY")
        if code in (404, 410):
            raise NotFound(f"{host} has nothing there ({code}); the address should end in /v1")
        if code >= 500:
            raise Unreachable(f"{host} failed to answer ({code}); see its log")
        if code < 400:
            raise Refused(f"{host} redirects elsewhere; not followed: give the final address")
        said = self._read(response).lower()
        if b"context length" in said or b"context_length" in said:
            raise ContextOverflow(
                f"the model at {host} cannot hold the prompt and its answer; shorten the text or"
                " give fewer pictures"
            )
        raise NotAccepted(
            f"{host} does not accept the request ({code}); perhaps its model takes no pictures or"
            " no sound"
        )


def _host_of(address: str) -> str:
    """Host and port of an address that may be used."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        httpx.URL(address)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise InvalidOption("the server's address must look like https://host:port/v1#model")
    if parts.username is not None:
        raise InvalidOption(
            f"the address of {parts.hostname} holds a user; set CROSSREAD_API_KEY instead"
        )
    return parts.netloc


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3): a number or a date."""
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else None


def _has_begun(chunk: Chunk) -> bool:
    return any(choice["delta"].get("content") for choice in (chunk.get("choices") or ())[:1])


def _has_ended(chunk: Chunk) -> bool:
    return any(choice.get("finish_reason") for choice in (chunk.get("choices") or ())[:1])
