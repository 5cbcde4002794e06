"""`crossread pacs` against Orthanc and against our own node."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encoders.dicom import load_volume
from tests import makers
from tests.archive import Orthanc
from tests.served import free_port
from tests.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSREAD_DICOMWEB_HOSTS", "127.0.0.1")


def test_study_goes_to_the_archive_is_found_and_comes_back_over_the_web(
    run: Any, orthanc: Orthanc, tmp_path: Path
) -> None:
    makers.write_blocks(tmp_path / "study", shape=(9, 40, 40))
    files = sorted((tmp_path / "study").iterdir())
    code, _, err = run("pacs", "send", orthanc.base, *files)
    assert (code, err) == (0, "9 objects stored\n")
    code, out, _ = run("pacs", "find", orthanc.base, "PatientID=GENERATED", "ModalitiesInStudy=CT")
    (study,) = [m for m in map(json.loads, out.splitlines()) if m["num_instances"] == 9]
    assert (code, study["modality"]) == (0, "CT")
    code, _, err = run("pacs", "fetch", study["url"], tmp_path / "back")
    assert (code, err.partition(" in ")[0]) == (0, "9 objects")
    assert load_volume(tmp_path / "back").digest == load_volume(tmp_path / "study").digest


def test_the_same_by_a_dicom_node(run: Any, orthanc: Orthanc, tmp_path: Path) -> None:
    node = f"ORTHANC@127.0.0.1:{orthanc.peer.port}"
    makers.write_blocks(tmp_path / "study", shape=(10, 40, 40))
    assert run("pacs", "echo", node) == (0, "", "it answers\n")
    files = sorted((tmp_path / "study").iterdir())
    assert run("pacs", "send", node, *files)[0] == 0
    _, out, _ = run("pacs", "find", node, "PatientID=GENERATED")
    (study,) = [m for m in map(json.loads, out.splitlines()) if m["num_instances"] == 10]
    assert run("pacs", "fetch", node, tmp_path / "back", "--study", study["study_uid"])[0] == 0
    assert load_volume(tmp_path / "back").digest == load_volume(tmp_path / "study").digest


def test_what_cannot_be_done_is_said_in_a_line_and_an_exit_code(run: Any, tmp_path: Path) -> None:
    gone = free_port()
    for arguments, exit_code, words in (
        (("find", f"http://127.0.0.1:{gone}/dicom-web"), 5, "cannot be reached"),
        (("find", "https://pacs.example.org/dicom-web"), 5, "CROSSREAD_DICOMWEB_HOSTS"),
        (("find", "http://127.0.0.1/dicom-web", "Patient=1"), 3, "no DICOM attribute"),
        (("find", "http://127.0.0.1/dicom-web", "PatientID"), 3, "NAME=VALUE"),
        (("echo", "nowhere"), 3, "ORTHANC@127.0.0.1:4242"),
        (("fetch", "X@127.0.0.1:1", tmp_path), 2, "--study"),
        (("echo", "X@127.0.0.1:1", "--tls"), 3, "CROSSREAD_DICOM_TLS_CA"),
        (("find", "http://127.0.0.1/dicom-web", "--tls"), 2, "says https itself"),
    ):
        code, out, err = run("pacs", *arguments)
        assert (code, out) == (exit_code, "")
        assert words in err


def test_node_without_pynetdicom_names_the_extra(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "encoders.dicom.dimse", None)
    monkeypatch.delattr("encoders.dicom.dimse", raising=False)
    code, _, err = run("pacs", "echo", "X@127.0.0.1:1")
    assert (code, "crossread[pacs]" in err) == (3, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_listening_prints_a_complete_study_and_ends_when_interrupted(
    phantom_series: Path, tmp_path: Path, number: int
) -> None:
    """Also as a background job of a shell, which starts with SIGINT ignored."""
    from encoders.dicom.dimse import Peer, send

    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "pacs", "listen", str(tmp_path / "in"),
               "--peer", "SENDER@127.0.0.1", "--port", str(port)]  # fmt: skip
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert node.stderr is not None
        assert node.stderr.readline() == f"listening on 127.0.0.1:{port}\n"
        send(Peer("CROSSREAD", "127.0.0.1", port, "SENDER"), sorted(phantom_series.iterdir()))
        node.send_signal(number)
        out, err = node.communicate(timeout=PATIENCE_S)
    finally:
        node.kill()
    assert (node.returncode, err) == (0, "stopped\n")
    (study,) = out.split()
    assert load_volume(study).digest == load_volume(phantom_series).digest
