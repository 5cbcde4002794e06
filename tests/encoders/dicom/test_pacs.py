"""A real PACS (Orthanc, started here on loopback), and our own node against hostile senders."""

from __future__ import annotations

import os
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pydicom
import pytest
from pynetdicom.acse import ACSE

from encoders.dicom import load_volume, scan
from encoders.dicom.dimse import Peer, echo, find, get, move, send
from encoders.dicom.receiver import Receiver, Rules
from encoders.dicom.remote import fetch, store
from encoders.dicom.remote import find as qido
from encoders.errors import InputError, Refused, TimedOut, Unreachable
from encoders.features import Source
from multimodal.backends import Region
from pipelines import pipeline
from tests import makers
from tests.archive import SOCKETS_LEFT_OPEN, Orthanc
from tests.makers import FakeBackend
from tests.served import free_port
from tests.waiting import PATIENCE_S, wait_until

pytestmark = [*SOCKETS_LEFT_OPEN, pytest.mark.usefixtures("collected")]
LOCAL = {"ORTHANC": "127.0.0.1", "SENDER": "127.0.0.1"}


def test_study_stored_in_orthanc_is_found_and_comes_back_with_equal_voxels(
    orthanc: Orthanc, stored: str, phantom_series: Path, tmp_path: Path
) -> None:
    found = qido(orthanc.base, {"PatientID": "GENERATED"}, orthanc.access)
    assert (stored, "CT", 24) in [(m.url, m.modality[:2], m.num_instances) for m in found]
    (series,) = qido(stored, {"Modality": "CT"}, orthanc.access)
    assert fetch(stored, tmp_path / "study", orthanc.access) == []
    assert fetch(series.url, tmp_path / "series", orthanc.access) == []
    wanted = load_volume(phantom_series).digest
    assert load_volume(tmp_path / "study").digest == wanted
    assert load_volume(tmp_path / "series").digest == wanted


def test_reading_of_an_address_is_stored_and_found_as_a_structured_report(
    orthanc: Orthanc, stored: str, phantom_series: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CROSSREAD_DICOMWEB_HOSTS", "127.0.0.1")
    monkeypatch.delenv("CROSSREAD_DICOM_CACHE", raising=False)
    source = Source(
        "dicom", slice_index=7, position_mm=float(load_volume(phantom_series).positions_mm[7])
    )
    backend = FakeBackend(
        chances={"a right nodule": 0.9},
        regions=(Region("nodule", "right", 0.8, source, (4.0, 5.0, 9.0, 11.0)),),
    )  # fmt: skip
    reading = pipeline("ct-report", backend)(stored)
    assert [(f.name, f.side) for f in reading.findings] == [("nodule", "right")]
    files = reading.to_dicom(stored, tmp_path)
    assert store(orthanc.base, files, orthanc.access) == 3
    (report,) = qido(stored, {"Modality": "SR"}, orthanc.access)
    fetch(report.url, tmp_path / "back", orthanc.access)
    (file,) = (tmp_path / "back").iterdir()
    assert pydicom.dcmread(file).ContentSequence == pydicom.dcmread(files[0]).ContentSequence
    assert (
        load_volume(phantom_series).digest == _volume_of(stored, orthanc, tmp_path / "all").digest
    )


def _volume_of(url: str, orthanc: Orthanc, folder: Path) -> Any:
    fetch(url, folder, orthanc.access)
    return load_volume(scan(folder).default())


def test_echo_store_find_get_and_move_against_orthanc(orthanc: Orthanc, tmp_path: Path) -> None:
    echo(orthanc.peer)
    study = tmp_path / "study"
    makers.write_blocks(study, shape=(16, 48, 40))
    files = sorted(study.glob("*.dcm"))
    uid = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    assert send(orthanc.peer, files) == 16
    (found,) = find(orthanc.peer, {"StudyInstanceUID": uid})
    assert (found.modality, found.num_instances) == ("CT", 16)
    wanted = load_volume(study).digest
    assert get(orthanc.peer, uid, tmp_path / "got") == 16
    assert load_volume(tmp_path / "got").digest == wanted
    complete: SimpleQueue[Path] = SimpleQueue()
    rules = Rules(LOCAL, port=orthanc.our_port, study_timeout_s=5.0)
    with Receiver(tmp_path / "moved", rules, complete.put):
        assert move(orthanc.peer, uid, "CROSSREAD") == 16
        folder = complete.get(timeout=120)
    assert complete.empty()  # announced once, when nothing new had come for a while
    assert load_volume(folder).digest == wanted
    assert not [p for p in folder.iterdir() if uid in p.name]


def test_node_that_is_absent_or_does_not_know_us_is_told_apart(orthanc: Orthanc) -> None:
    with pytest.raises(Unreachable, match="ORTHANC cannot be reached"):
        echo(replace(orthanc.peer, port=free_port()))
    with pytest.raises(Refused, match="NOBODY rejects CROSSREAD"):
        echo(replace(orthanc.peer, ae_title="NOBODY"))
    with pytest.raises((Refused, Unreachable), match="ORTHANC"):
        echo(replace(orthanc.peer, our_title="STRANGER"))
    with pytest.raises(InputError, match="ORTHANC@127"):
        Peer.parse("127.0.0.1:4242")
    assert Peer.parse("A@[::1]:104") == Peer("A", "::1", 104)


def test_node_that_rejects_before_we_look_is_not_taken_for_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ACSE.send_request

    def request_and_be_late(acse: ACSE) -> None:
        request(acse)
        wait_until(lambda: not acse.dul.is_alive(), "the answer has come and the line is closed")

    with Receiver(tmp_path, Rules(LOCAL, port=0)) as receiver:
        monkeypatch.setattr(ACSE, "send_request", request_and_be_late)
        with pytest.raises(Refused, match="OTHER rejects SENDER"):
            echo(_sender(receiver, called="OTHER"))


# --- our own node ------------------------------------------------------------------------------


@pytest.fixture
def one_file(phantom_series: Path) -> Path:
    return sorted(phantom_series.iterdir())[0]


def _sender(receiver: Receiver, title: str = "SENDER", called: str = "CROSSREAD") -> Peer:
    return Peer(called, "127.0.0.1", receiver.port, title, timeout_s=PATIENCE_S)


def test_node_listens_on_this_machine_only_and_takes_from_nobody_unless_told(
    one_file: Path, tmp_path: Path
) -> None:
    assert (Rules().host, Rules().peers) == ("127.0.0.1", {})
    with Receiver(tmp_path, replace(Rules(), port=0)) as receiver, pytest.raises(Unreachable):
        send(_sender(receiver), [one_file])
    with Receiver(tmp_path, Rules({"SENDER": "127.0.0.1"}, port=0)) as receiver:
        with pytest.raises(Refused, match="rejects STRANGER"):
            send(_sender(receiver, "STRANGER"), [one_file])
        with pytest.raises(Refused, match="OTHER rejects"):
            send(_sender(receiver, called="OTHER"), [one_file])
        assert send(_sender(receiver), [one_file]) == 1
    elsewhere = {"SENDER": "10.0.0.9", "X": "127.0.0.1"}
    with (
        Receiver(tmp_path, Rules(elsewhere, port=0)) as receiver,
        pytest.raises(Refused, match="0x0124"),  # the right title from the wrong address
    ):
        send(_sender(receiver), [one_file])


def test_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Unreachable, match="can't be listened on"):
            Receiver(tmp_path, Rules(port=taken.getsockname()[1]))


def test_received_uids_never_become_paths(one_file: Path, tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(one_file)
        data.StudyInstanceUID = data.SOPInstanceUID = "../../../escape"
        data.file_meta.MediaStorageSOPInstanceUID = "../../../escape"
        data.save_as(tmp_path / "evil.dcm")
        with Receiver(tmp_path / "a/b/c", Rules(LOCAL, port=0)) as receiver:
            send(_sender(receiver), [tmp_path / "evil.dcm"])
    (file,) = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "evil.dcm"]
    assert file.is_relative_to(tmp_path / "a/b/c")
    assert len(file.parent.name) == 32
    assert file.stat().st_mode & 0o077 == 0


def test_quota_and_mismatching_or_broken_objects_are_refused(
    one_file: Path, tmp_path: Path, phantom_series: Path
) -> None:
    size = one_file.stat().st_size
    with (
        Receiver(tmp_path / "q", Rules(LOCAL, port=0, max_bytes=2 * size)) as receiver,
        pytest.raises(Refused, match="0xa700"),
    ):
        send(_sender(receiver), sorted(phantom_series.iterdir()))
    assert 0 < sum(f.stat().st_size for f in (tmp_path / "q").rglob("*.dcm")) <= 2 * size
    broken = pydicom.dcmread(one_file)
    del broken.StudyInstanceUID
    broken.save_as(tmp_path / "broken.dcm")
    with Receiver(tmp_path / "r", Rules(LOCAL, port=0)) as receiver:
        with pytest.raises(Refused, match="0xc000"):
            send(_sender(receiver), [tmp_path / "broken.dcm"])
        assert send(_sender(receiver), [one_file]) == 1  # the next one is taken all the same


@pytest.mark.parametrize("claimed", [2**31, 2**20])
def test_pdu_that_claims_more_than_allowed_is_dropped_before_it_is_read(
    claimed: int, one_file: Path, tmp_path: Path
) -> None:
    """pynetdicom alone would gather what the header claims, up to 4 GiB, in memory."""
    with Receiver(tmp_path, Rules(LOCAL, port=0)) as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as hostile:
            hostile.sendall(struct.pack(">BBL", 1, 0, claimed) + b"x" * 1000)
            try:
                while hostile.recv(1000):
                    pass
            except ConnectionError:
                pass  # closed with our bytes unread
        assert send(_sender(receiver), [one_file]) == 1


def test_object_larger_than_allowed_ends_the_association(one_file: Path, tmp_path: Path) -> None:
    with (
        Receiver(tmp_path, Rules(LOCAL, port=0, max_instance_bytes=4000)) as receiver,
        pytest.raises(TimedOut, match="broke off"),
    ):
        send(_sender(receiver), [one_file])
    assert not list(tmp_path.rglob("*.dcm"))


def test_more_associations_than_allowed_are_turned_away(one_file: Path, tmp_path: Path) -> None:
    with (
        Receiver(tmp_path, Rules(LOCAL, port=0, max_associations=1)) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port)),
    ):
        wait_until(lambda: receiver._server.active_associations, "somebody is connected")
        with pytest.raises((Refused, Unreachable), match="CROSSREAD"):
            send(_sender(receiver), [one_file])


def test_nothing_keeps_running_when_the_node_ends(one_file: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    complete: list[Path] = []
    with Receiver(tmp_path, Rules(LOCAL, port=0), complete.append) as receiver:
        send(_sender(receiver), [one_file])
    assert len(complete) == 1  # announced at the end, though the timeout had not passed
    wait_until(lambda: threading.active_count() <= before, "its threads have ended")
    assert os.listdir(complete[0])  # noqa: PTH208
