"""DICOM over TLS between two nodes of ours: verified both ways, and nobody holds up the others."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from encoders.dicom.dimse import Peer, echo, send
from encoders.dicom.receiver import Receiver, Rules
from encoders.dicom.tls import Tls
from encoders.errors import InputError, Unreachable
from tests.archive import SOCKETS_LEFT_OPEN, make_certificate
from tests.waiting import PATIENCE_S

pytestmark = [*SOCKETS_LEFT_OPEN, pytest.mark.usefixtures("collected")]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    certificate = make_certificate(tmp_path_factory.mktemp("tls") / "ours.pem")
    return Tls(certificate, certificate)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    certificate = make_certificate(tmp_path_factory.mktemp("tls") / "strange.pem")
    return Tls(certificate, certificate)


def rules(tls: Tls | None) -> Rules:
    return Rules({"SENDER": "127.0.0.1"}, port=0, timeout_s=PATIENCE_S, tls=tls)


def sender(receiver: Receiver, tls: Tls | None) -> Peer:
    return Peer("CROSSREAD", "127.0.0.1", receiver.port, "SENDER", timeout_s=PATIENCE_S, tls=tls)


def test_a_study_comes_over_tls_while_another_caller_says_nothing(
    ours: Tls, phantom_series: Path, tmp_path: Path
) -> None:
    with (
        Receiver(tmp_path, rules(ours)) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port)),  # and never shakes hands
    ):
        echo(sender(receiver, ours))
        assert send(sender(receiver, ours), sorted(phantom_series.iterdir())) == 24
    assert len(list(tmp_path.rglob("*.dcm"))) == 24


def test_who_is_not_signed_by_the_authority_is_not_talked_to(
    ours: Tls, strange: Tls, phantom_series: Path, tmp_path: Path
) -> None:
    file = next(phantom_series.iterdir())
    unknown_caller = Tls(ours.ca_bundle, strange.certificate)
    unknown_node = Tls(strange.ca_bundle, ours.certificate)
    with Receiver(tmp_path, rules(ours)) as receiver:
        for tls in (unknown_caller, unknown_node, strange, None):
            with pytest.raises(Unreachable, match="CROSSREAD cannot be reached"):
                send(sender(receiver, tls), [file])
        assert not receiver._server.active_associations  # nobody of them holds a place
        assert send(sender(receiver, ours), [file]) == 1
    assert len(list(tmp_path.rglob("*.dcm"))) == 1


def test_missing_and_broken_certificates_are_named(ours: Tls, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CROSSREAD_DICOM_TLS_CERTIFICATE"):
        Tls.from_environment({"CROSSREAD_DICOM_TLS_CA": "a.pem"})
    names = {"CROSSREAD_DICOM_TLS_CA": "a", "CROSSREAD_DICOM_TLS_CERTIFICATE": "b"}
    assert Tls.from_environment(names) == Tls(Path("a"), Path("b"))
    (tmp_path / "text.pem").write_text("no certificate")
    for broken in (tmp_path / "text.pem", tmp_path / "absent.pem"):
        with pytest.raises(InputError, match="no PEM certificates"):
            Tls(broken, ours.certificate).client()
        with pytest.raises(InputError, match="no PEM certificates"):
            Receiver(tmp_path / "in", rules(Tls(ours.ca_bundle, broken)))
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
