"""Asking another DICOM node: C-ECHO, C-FIND, C-MOVE, C-GET and C-STORE as SCU (PS3.4 B, C).

Needs the extra `pacs` (pynetdicom). Errors name the peer's AE title, never what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom import AE, build_role, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from encoders.dicom.receiver import Rules, Shelf, storage_contexts
from encoders.dicom.remote import require_keywords
from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.tls import Tls
from encoders.errors import InputError, Refused, TimedOut, Unreachable

_PENDING = (0xFF00, 0xFF01)
_MAX_CONTEXTS = 127  # 128 in one association (PS3.8 9.3.2.2), one of them for the query


@dataclass(frozen=True)
class Peer:
    """A DICOM node, and how we call ourselves."""

    ae_title: str
    host: str
    port: int
    our_title: str = "CROSSREAD"
    timeout_s: float = 30.0
    tls: Tls | None = None

    @classmethod
    def parse(cls, text: str) -> Peer:
        """`ORTHANC@127.0.0.1:4242`.

        Raises:
            InputError: it looks otherwise.
        """
        title, _, place = text.partition("@")
        host, _, port = place.rpartition(":")
        if not (0 < len(title) <= 16 and host and port.isdigit()):
            raise InputError(f"{text!r} names no DICOM node; write it like ORTHANC@127.0.0.1:4242")
        return cls(title, host.strip("[]"), int(port))


@dataclass(frozen=True)
class Found:
    """A study that a node has. `study_uid` is an identifier."""

    study_uid: str
    modality: str
    num_instances: int


def echo(peer: Peer) -> None:
    """C-ECHO: is it there, and does it talk to us?

    Raises:
        Unreachable, Refused, TimedOut: it is not, or does not.
    """
    with _association(peer, [build_context(Verification)]) as association:
        _require(association.send_c_echo(), peer)


@quiet_pydicom()
def find(peer: Peer, filters: Mapping[str, str] | None = None) -> list[Found]:
    """C-FIND: the studies that fit filters, attributes by keyword such as `{"PatientID": "..."}`."""
    from pydicom.dataset import Dataset

    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = query.ModalitiesInStudy = ""
    query.NumberOfStudyRelatedInstances = None
    for name, value in require_keywords(filters or {}).items():
        setattr(query, name, value)
    model = StudyRootQueryRetrieveInformationModelFind
    found = []
    with _association(peer, [build_context(model)]) as association:
        for status, item in association.send_c_find(query, model):
            _require(status, peer)
            if item is not None:
                kinds = item.get("ModalitiesInStudy") or ""
                kind = kinds if isinstance(kinds, str) else "/".join(kinds)
                count = int(item.get("NumberOfStudyRelatedInstances") or 0)
                found.append(Found(str(item.get("StudyInstanceUID", "")), kind, count))
    return found


def move(peer: Peer, study_uid: str, destination: str) -> int:
    """C-MOVE: have a study sent to the node called `destination`; how many objects were.

    That node is a `Receiver` of ours as a rule; the peer has to know its address.
    """
    model = StudyRootQueryRetrieveInformationModelMove
    with _association(peer, [build_context(model)]) as association:
        return _retrieved(association.send_c_move(_study(study_uid), destination, model), peer)


def get(peer: Peer, study_uid: str, folder: Path) -> int:
    """C-GET: a study over the same connection, so that no port has to be open; how many objects."""
    model = StudyRootQueryRetrieveInformationModelGet
    shelf = Shelf(folder, Rules().max_bytes)
    contexts = storage_contexts()[:_MAX_CONTEXTS]
    roles = [build_role(c.abstract_syntax, scp_role=True) for c in contexts if c.abstract_syntax]

    def keep(event: Any) -> int:
        return shelf.put(event.encoded_dataset(), str(event.request.AffectedSOPInstanceUID))[0]

    with _association(
        peer, [build_context(model), *contexts], roles, [(evt.EVT_C_STORE, keep)]
    ) as association:  # fmt: skip
        return _retrieved(association.send_c_get(_study(study_uid), model), peer)


@quiet_pydicom()
def send(peer: Peer, files: Sequence[Path]) -> int:
    """C-STORE: send DICOM files as they are; how many.

    Raises:
        Refused: the peer does not take one of them.
    """
    import pydicom

    objects = [pydicom.dcmread(file) for file in files]
    kinds = {(o.SOPClassUID, o.file_meta.TransferSyntaxUID) for o in objects}
    contexts = [build_context(kind, [syntax]) for kind, syntax in sorted(kinds)]
    with _association(peer, contexts[:_MAX_CONTEXTS]) as association:
        for item in objects:
            try:
                _require(association.send_c_store(item), peer)
            except ValueError as error:  # no context was accepted for this kind
                raise Refused(f"{peer.ae_title} takes no {item.SOPClassUID.name}") from error
    return len(objects)


@contextmanager
def _association(
    peer: Peer, contexts: list[PresentationContext], roles: Any = None, handlers: Any = None
) -> Iterator[Any]:
    ae = AE(peer.our_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = peer.timeout_s
    ae.connection_timeout = peer.timeout_s
    # pynetdicom takes who rejects before it looks for somebody who is not there
    rejections: list[A_ASSOCIATE_RJ] = []
    noting = (evt.EVT_PDU_RECV, _note_rejection, [rejections])
    association = ae.associate(
        peer.host, peer.port, contexts, peer.ae_title, ext_neg=roles,
        evt_handlers=[noting, *(handlers or [])],
        tls_args=(peer.tls.client(), peer.host) if peer.tls else None,
    )  # fmt: skip
    if association.is_rejected or rejections:
        raise Refused(f"{peer.ae_title} rejects {peer.our_title}; is it known there?")
    if not association.is_established:
        raise Unreachable(f"{peer.ae_title} cannot be reached, or does not do what is asked of it")
    try:
        yield association
    finally:
        association.release()


def _note_rejection(event: evt.Event, rejections: list[A_ASSOCIATE_RJ]) -> None:
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        rejections.append(event.pdu)


def _require(status: Any, peer: Peer) -> None:
    """An answer that came, and is success, pending or a warning (PS3.7 C)."""
    if not status or "Status" not in status:
        raise TimedOut(f"{peer.ae_title} broke off, or did not answer in {peer.timeout_s:.0f} s")
    code = int(status.Status)
    if code not in (0, *_PENDING) and code & 0xF000 != 0xB000:
        raise Refused(f"{peer.ae_title} refuses (status {code:#06x})")


def _study(uid: str) -> Any:
    from pydicom.dataset import Dataset

    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", uid
    return query


def _retrieved(answers: Any, peer: Peer) -> int:
    done = 0
    for status, _ in answers:
        _require(status, peer)
        failed = int(status.get("NumberOfFailedSuboperations") or 0)
        if failed:
            raise Refused(f"{peer.ae_title} could not send {failed} objects of the study")
        done = int(status.get("NumberOfCompletedSuboperations") or done)
    return done
