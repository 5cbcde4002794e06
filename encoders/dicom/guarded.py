"""HTTP to addresses that users may have typed: whom we talk to, how much we take, what we tell.

`GuardedSession` is a `requests` session that follows no redirect, opens no connection to a private
network unless that host was listed, sends the token to listed hosts only, and stops reading at a
limit. Messages name the host, never the path: paths hold identifiers.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from encoders.errors import BadAnswer, NotFound, Refused, RemoteError, TimedOut, Unreachable

CHUNK_BYTES = 2**16
_NEVER = logging.CRITICAL + 1
_SAY_PATHS = {
    "urllib3.connectionpool": logging.ERROR, "dicomweb_client": _NEVER, "retrying": _NEVER
}  # fmt: skip


@dataclass(frozen=True)
class Access:
    """Which archives may be talked to, and how much is taken from them.

    Attributes:
        hosts: `host` or `host:port`. If any is given, no other host is talked to; only hosts named
            here may lie in a private network, and only they are sent the token.
        token: sent as `Authorization: Bearer`.
        ca_bundle: certificates to trust instead of the usual ones. TLS is always verified.
        timeout_s: for connecting, and for every wait during an answer.
        max_seconds: for one whole answer.
        max_answer_bytes: of a search or metadata answer.
        max_instance_bytes: of one object.
        max_study_bytes: of all objects of one fetch.
        workers: objects fetched at the same time.
    """

    hosts: frozenset[str] = frozenset()
    token: str = field(default="", repr=False)
    ca_bundle: Path | None = None
    timeout_s: float = 20.0
    max_seconds: float = 300.0
    max_answer_bytes: int = 2**28
    max_instance_bytes: int = 2**31
    max_study_bytes: int = 2**34
    workers: int = 4

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Access:
        """`CROSSREAD_DICOMWEB_HOSTS` (comma-separated), `_TOKEN` and `_CA`."""
        names = environment.get("CROSSREAD_DICOMWEB_HOSTS", "").split(",")
        bundle = environment.get("CROSSREAD_DICOMWEB_CA")
        return cls(
            frozenset(name.strip().lower() for name in names if name.strip()),
            environment.get("CROSSREAD_DICOMWEB_TOKEN", ""),
            Path(bundle) if bundle else None,
        )

    def lists(self, url: str) -> bool:
        """Whether the host of a URL is one of `hosts`."""
        parts = urlsplit(url)
        return bool({(parts.hostname or "").lower(), parts.netloc.lower()} & self.hosts)


def check_url(url: str, access: Access) -> None:
    """Refuse a URL that must not be fetched, before anything is looked up.

    Raises:
        Refused: not https (or http to this machine), with a password in it, or a host not listed.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise Refused(f"{host or 'the address'} must be reached by https")
    if parts.username or parts.password:
        raise Refused(f"the address of {host} holds a user name; give a token instead")
    if not host or (access.hosts and not access.lists(url)):
        raise Refused(f"{host or 'the address'} is not among CROSSREAD_DICOMWEB_HOSTS")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _public_address(host: str, port: int) -> str:
    """The address to connect to: looked up once, so that it can't change after it was checked."""
    found = [info[4] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not ip.is_global or ip.is_multicast:
            raise Refused(
                f"{host} lies in a private network; name it in CROSSREAD_DICOMWEB_HOSTS to allow it"
            )
    return str(found[0][0])


class _Public:
    """Connects to public addresses only; certificates are still those of the host's name."""

    _dns_host: str
    port: int

    def _new_conn(self) -> socket.socket:
        name = self._dns_host
        self._dns_host = _public_address(name, self.port)
        try:
            return super()._new_conn()  # type: ignore[misc]
        finally:
            self._dns_host = name


class _PublicHTTP(_Public, HTTPConnection):
    pass


class _PublicHTTPS(_Public, HTTPSConnection):
    pass


class _PublicHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PublicHTTP


class _PublicHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPS


class _PublicAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": _PublicHTTPPool,
            "https": _PublicHTTPSPool,
        }


class GuardedSession(requests.Session):
    """A session for one base URL under the rules of an `Access`; environment and netrc unused."""

    def __init__(self, base_url: str, access: Access) -> None:
        super().__init__()
        for name, level in _SAY_PATHS.items():
            logging.getLogger(name).setLevel(level)
        check_url(base_url, access)
        self.access, self.trust_env = access, False
        if access.ca_bundle is not None:
            self.verify = str(access.ca_bundle)
        if access.lists(base_url):
            if access.token:
                self.headers["Authorization"] = f"Bearer {access.token}"
            return
        self.mount("https://", _PublicAdapter())
        self.mount("http://", _PublicAdapter())

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send under the rules; an answer that is not streamed is read up to the limit."""
        check_url(request.url or "", self.access)
        request.headers.pop("Host", None)  # dicomweb-client leaves out the port
        wanted = kwargs.pop("stream", False)
        response = super().send(request, **{**kwargs, "stream": True, "allow_redirects": False})
        if response.is_redirect:
            response.close()
            raise Refused(f"{urlsplit(response.url).hostname} redirects elsewhere; not followed")
        if not wanted:
            chunks = limited(response, self.access.max_answer_bytes, self.access.max_seconds)
            response._content = b"".join(chunks)
        return response


def limited(response: requests.Response, max_bytes: int, max_seconds: float) -> Iterator[bytes]:
    """The body in pieces.

    Raises:
        BadAnswer: it is longer than `max_bytes`.
        TimedOut: it takes longer than `max_seconds`.
    """
    host = urlsplit(response.url).hostname
    started, taken = time.monotonic(), 0
    with response:
        for chunk in response.iter_content(CHUNK_BYTES):
            taken += len(chunk)
            if taken > max_bytes:
                raise BadAnswer(f"{host} sends more than the {max_bytes / 2**20:.0f} MiB allowed")
            if time.monotonic() - started > max_seconds:
                raise TimedOut(f"{host} took longer than {max_seconds:.0f} s for one answer")
            yield chunk


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Every way a request can fail, as a `RemoteError` that names the host."""
    host = urlsplit(url).hostname
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        raise _refusal(host, code) from None
    except requests.exceptions.SSLError:
        raise Refused(
            f"the certificate of {host} is not trusted; give its authority in CROSSREAD_DICOMWEB_CA"
        ) from None
    except requests.Timeout:
        raise TimedOut(f"{host} did not answer in time") from None
    except (requests.JSONDecodeError, RecursionError):
        raise BadAnswer(f"{host} answered with something that is not DICOM JSON") from None
    except requests.RequestException:
        raise Unreachable(f"{host} cannot be reached, or broke off; check the address") from None


def _refusal(host: str | None, code: int) -> RemoteError:
    if code in (401, 403):
        return Refused(f"{host} refuses access ({code}); check CROSSREAD_DICOMWEB_TOKEN")
    if code in (404, 410):
        return NotFound(f"{host} does not have it ({code}); check the UIDs in the address")
    if code >= 500 or code == 429:
        return Unreachable(f"{host} failed to answer ({code}); try again later")
    return Refused(f"{host} does not accept the request ({code})")
