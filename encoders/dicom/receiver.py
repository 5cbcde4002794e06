"""A DICOM node that takes images (C-STORE SCP, PS3.4 B), closed unless opened by name.

Listens on this machine only, takes nothing from peers that are not listed by AE title and address,
and stops reading at its limits: before a PDU or a message is held in memory, not after. Files are
named by hashes, never by what was received, and appear under their name when they are whole.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseServer
from ssl import SSLContext, SSLSocket
from typing import Any

from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.tls import Tls
from encoders.errors import Unreachable

logger = logging.getLogger(__name__)
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # its lines quote what it receives
SUCCESS, NO_ROOM, NOT_THE_SAME, NOT_READABLE, NOT_ALLOWED = 0, 0xA700, 0xA900, 0xC000, 0x0124
_OTHER_PDU_BYTES = 2**16  # an association request with all its contexts


@dataclass(frozen=True)
class Rules:
    """Who may send, and how much.

    Attributes:
        peers: AE title -> IP address of those who may send; nobody if empty.
        port: 0 for any free one.
        max_bytes: of all that lies in the folder.
        tls: certificates, if only callers with one of our authority may talk.
        study_timeout_s: a study with nothing new for so long is complete.
    """

    peers: Mapping[str, str] = field(default_factory=dict)
    ae_title: str = "CROSSREAD"
    host: str = "127.0.0.1"
    port: int = 11112
    max_pdu_bytes: int = 2**18
    max_instance_bytes: int = 2**31
    max_bytes: int = 2**35
    max_associations: int = 4
    timeout_s: float = 30.0
    tls: Tls | None = None
    study_timeout_s: float = 10.0


class Shelf:
    """A folder that received objects are put into: one subfolder a study, names that are hashes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder, self.max_bytes = folder, max_bytes
        self._used = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        self._lock = threading.Lock()

    @quiet_pydicom()
    def put(self, data: bytes, sop_uid: str) -> tuple[int, Path | None]:
        """Keep one object; the C-STORE status (PS3.4 B.2.3) and the study's folder."""
        import pydicom
        from pydicom.errors import InvalidDicomError

        try:
            header = pydicom.dcmread(
                io.BytesIO(data), stop_before_pixels=True,
                specific_tags=["SOPInstanceUID", "StudyInstanceUID"],
            )  # fmt: skip
            study, own = str(header["StudyInstanceUID"].value), str(header["SOPInstanceUID"].value)
        except (InvalidDicomError, KeyError, ValueError, AttributeError, EOFError, OSError,
                TypeError, NotImplementedError, RecursionError):  # fmt: skip
            return NOT_READABLE, None  # what pydicom lets through on broken data
        if own != sop_uid:
            return NOT_THE_SAME, None
        folder = self.folder / _hashed(study)
        with self._lock:
            if self._used + len(data) > self.max_bytes:
                return NO_ROOM, None
            self._used += len(data)
        folder.mkdir(exist_ok=True, mode=0o700)
        part = self.folder / f"{_hashed(own)}.{threading.get_ident()}.part"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        part.replace(folder / f"{_hashed(own)}.dcm")
        return SUCCESS, folder


def _hashed(uid: str) -> str:
    return hashlib.sha256(uid.encode("utf-8", "replace")).hexdigest()[:32]


class Receiver:
    """Receives while its `with` block runs; calls `on_study` with the folder of a complete study.

    Raises:
        Unreachable: the port can't be listened on.
    """

    def __init__(
        self, folder: Path, rules: Rules, on_study: Callable[[Path], None] | None = None
    ) -> None:
        self.rules, self._on_study = rules, on_study
        self._shelf = Shelf(folder, rules.max_bytes)
        self._last: dict[Path, float] = {}
        self._ending = threading.Event()
        ae = AE(rules.ae_title)
        ae.require_called_aet = True
        ae.require_calling_aet = sorted(rules.peers) or [" nobody "]
        ae.maximum_associations, ae.maximum_pdu_size = rules.max_associations, rules.max_pdu_bytes
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = rules.timeout_s
        contexts = [*storage_contexts(), PresentationContext()]
        contexts[-1].abstract_syntax = Verification
        contexts[-1].transfer_syntax = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]
        context = rules.tls.server() if rules.tls else None
        try:
            self._server = _Server(
                ae, (rules.host, rules.port), rules.ae_title, contexts,
                evt_handlers=[(evt.EVT_C_STORE, self._store)], request_handler=_Handler,
            )  # fmt: skip
        except OSError as error:
            raise Unreachable(f"port {rules.port} of {rules.host} can't be listened on") from error
        self._server.rules = rules
        self._server.tls = context

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Receiver:
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends all associations; studies still under way are announced."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()
        self._server.server_close()
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _store(self, event: Any) -> int:
        caller = event.assoc.requestor
        if self.rules.peers.get(caller.ae_title) != caller.address_info.address:
            return NOT_ALLOWED
        event.assoc.dul.socket.meter.pending = 0
        status, folder = self._shelf.put(
            event.encoded_dataset(), str(event.request.AffectedSOPInstanceUID)
        )
        if folder is not None:
            self._last[folder] = time.monotonic()
        else:
            logger.warning("an object from %s was refused (%#06x)", caller.ae_title, status)
        return status

    def _watch(self) -> None:
        """Announce every study that has been quiet for long enough; at the end, all others."""
        wait = min(self.rules.study_timeout_s / 4, 1.0)
        ended = False
        while not ended:
            ended = self._ending.wait(wait)
            now = time.monotonic()
            for folder, last in list(self._last.items()):
                if ended or now - last > self.rules.study_timeout_s:
                    del self._last[folder]
                    if self._on_study is not None:
                        self._on_study(folder)


def storage_contexts() -> list[PresentationContext]:
    """Every storage class, in whatever transfer syntax it comes."""
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    contexts = []
    for offered in StoragePresentationContexts:
        context = PresentationContext()
        context.abstract_syntax = offered.abstract_syntax
        context.transfer_syntax = list(ALL_TRANSFER_SYNTAXES)
        contexts.append(context)
    return contexts


class _Meter:
    """Reads from a socket, but no PDU and no message beyond the limits.

    pynetdicom believes the length a PDU declares, and gathers a message in memory whatever its
    size; it takes an `OSError` for a closed connection.
    """

    def __init__(self, read: Callable[[int], bytearray], rules: Rules) -> None:
        self._read, self._rules, self.pending = read, rules, 0

    def __call__(self, num_bytes: int) -> bytearray:
        self.pending += num_bytes
        if num_bytes > max(self._rules.max_pdu_bytes, _OTHER_PDU_BYTES):
            raise OSError("a PDU larger than allowed")
        if self.pending > self._rules.max_instance_bytes:
            raise OSError("an object larger than allowed")
        return self._read(num_bytes)


class _Handler(RequestHandler):
    def handle(self) -> None:
        """An association, after TLS is agreed upon; who cannot do that takes no place of one."""
        if isinstance(self.request, SSLSocket):
            try:
                self.request.do_handshake()
            except OSError:
                self.request.close()
                return
        super().handle()

    def _create_association(self) -> Any:
        association = super()._create_association()
        socket: Any = association.dul.socket
        socket.meter = _Meter(socket.recv, self.server.rules)  # type: ignore[attr-defined]
        socket.recv = socket.meter
        return association


class _Server(ThreadedAssociationServer):
    rules: Rules
    tls: SSLContext | None = None
    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        """A caller; TLS is agreed upon in its own thread, so that none holds up the others."""
        caller, address = super().get_request()
        if self.tls is None:
            return caller, address
        caller.settimeout(self.rules.timeout_s)
        wrapped = self.tls.wrap_socket(caller, server_side=True, do_handshake_on_connect=False)
        return wrapped, address

    def shutdown(self) -> None:
        """As of every socket server; pynetdicom's own looks for it in a list it never joined."""
        BaseServer.shutdown(self)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to talk to an address at all, before it has said anything."""
        known = client_address[0] in self.rules.peers.values()
        return known and len(self.active_associations) < self.rules.max_associations
