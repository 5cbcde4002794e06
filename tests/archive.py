"""A real PACS for tests: Orthanc with its DICOMweb plugin, on loopback, with ports of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from encoders.dicom.dimse import Peer
from encoders.dicom.guarded import Access
from tests.served import await_answer, free_port
from tests.waiting import PATIENCE_S

# pynetdicom drops a socket whose peer is gone without closing it; see the fixture `collected`
SOCKETS_LEFT_OPEN = [
    pytest.mark.filterwarnings(text)
    for text in (
        "ignore:Exception ignored in. <(socket|ssl):pytest.PytestUnraisableExceptionWarning",
        "ignore:unclosed <(socket|ssl):ResourceWarning",
    )
]
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Orthanc:
    base: str
    peer: Peer
    our_port: int

    @property
    def access(self) -> Access:
        return Access(frozenset({"127.0.0.1"}))


def make_certificate(file: Path) -> Path:
    """A certificate of this machine's loopback address that signs itself, and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key = file.with_suffix(".key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out",
         str(file), "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
        check=True, capture_output=True,
    )  # fmt: skip
    with file.open("ab") as both:
        both.write(key.read_bytes())
    return file


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Orthanc while the block runs; skips the test where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.is_file():
        pytest.skip("needs Orthanc with DICOMweb (apt-get install orthanc orthanc-dicomweb)")
    http, dicom, ours = free_port(), free_port(), free_port()
    (folder / "orthanc.json").write_text(
        json.dumps({
            "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "HttpPort": http, "HttpBindAddresses": ["127.0.0.1"], "RemoteAccessAllowed": False,
            "DicomPort": dicom, "DicomAet": "ORTHANC", "DicomCheckCalledAet": True,
            "DicomModalities": {"us": ["CROSSREAD", "127.0.0.1", ours]},
            "DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False,
            "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        })
    )  # fmt: skip
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        await_answer(f"http://127.0.0.1:{http}/system", process)
        yield Orthanc(
            f"http://127.0.0.1:{http}/dicom-web", Peer("ORTHANC", "127.0.0.1", dicom), ours
        )
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        log.close()
