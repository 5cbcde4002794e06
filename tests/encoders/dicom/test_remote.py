"""DICOMweb against a small server of our own that misbehaves on request; Orthanc: test_pacs."""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.encaps import generate_frames

from encoders.dicom import load_volume, scan
from encoders.dicom.framewise import first_part
from encoders.dicom.guarded import Access, GuardedSession, check_url
from encoders.dicom.remote import fetch, find, is_url, on_disk, store
from encoders.errors import BadAnswer, InputError, NotFound, Refused, TimedOut, Unreachable
from tests.archive import make_certificate
from tests.served import free_port
from tests.waiting import PATIENCE_S

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Server:
    """A DICOMweb server of one study; `routes` overrides what a path that ends so gets."""

    files: dict[str, Path]
    study: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    routes: dict[str, Callable[[], Answer]] = field(default_factory=dict)
    port: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @property
    def url(self) -> str:
        return f"{self.base}/studies/{self.study}"

    @property
    def access(self) -> Access:
        return Access(frozenset({f"127.0.0.1:{self.port}"}), timeout_s=PATIENCE_S)

    def instances_asked(self) -> list[str]:
        return [p.rpartition("/")[2] for p, _ in self.asked if "/instances/" in p]

    def answer(self, path: str) -> Answer:
        for end, route in self.routes.items():
            if path.endswith(end):
                return route()
        if path.endswith("/metadata"):
            headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in self.files.values()]
            listed = [h.to_json_dict() for h in headers]
            return 200, {"Content-Type": "application/dicom+json"}, json.dumps(listed).encode()
        if "/frames/" in path:
            return self.frame(path.split("/")[-3], int(path.rpartition("/")[2]))
        return self.instance(path.rpartition("/")[2])

    def frame(self, uid: str, number: int) -> Answer:
        header = pydicom.dcmread(self.files[uid])
        syntax, count = header.file_meta.TransferSyntaxUID, int(header.NumberOfFrames)
        if syntax.is_compressed:
            data = list(generate_frames(header.PixelData, number_of_frames=count))[number - 1]
        else:
            size = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
            data = header.PixelData[(number - 1) * size : number * size]
        kind = f'"application/octet-stream; transfer-syntax={syntax}"'
        body = b"--XX\r\nContent-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--XX--"
        return 200, {"Content-Type": f"multipart/related; type={kind}; boundary=XX"}, body

    def instance(self, uid: str) -> Answer:
        if uid not in self.files:
            return 404, {}, b""
        body = b"--XX\r\nContent-Type: application/dicom\r\n\r\n"
        body += self.files[uid].read_bytes() + b"\r\n--XX--"
        return (
            200,
            {"Content-Type": 'multipart/related; type="application/dicom"; boundary=XX'},
            body,
        )


@pytest.fixture
def server(phantom_series: Path) -> Iterator[Server]:
    with serving(phantom_series.iterdir()) as archive:
        yield archive


@contextmanager
def serving(paths: Iterable[Path]) -> Iterator[Server]:
    """A server of the one study that these files make up."""
    files = {str(pydicom.dcmread(f).SOPInstanceUID): f for f in paths}
    first = pydicom.dcmread(next(iter(files.values())))
    archive = Server(files, str(first.StudyInstanceUID))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            archive.asked.append((self.path, dict(self.headers)))
            code, headers, body = archive.answer(self.path.partition("?")[0])
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *a: None  # type: ignore[method-assign]  # clients that hang up
    archive.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield archive
    http.shutdown()
    http.server_close()
    thread.join()


def test_fetched_study_is_voxel_for_voxel_the_one_on_disk(
    server: Server, phantom_series: Path, tmp_path: Path
) -> None:
    assert fetch(server.url, tmp_path / "study", server.access) == []
    assert load_volume(tmp_path / "study").digest == load_volume(phantom_series).digest
    fetched = {f.read_bytes() for f in (tmp_path / "study").iterdir()}
    assert fetched == {f.read_bytes() for f in server.files.values()}
    assert server.asked[0][0].endswith("/metadata")  # before any object


def test_fetched_files_are_named_by_no_identifier_and_readable_by_us_alone(
    server: Server, tmp_path: Path
) -> None:
    fetch(server.url, tmp_path / "study", server.access)
    assert (tmp_path / "study").stat().st_mode & 0o077 == 0
    for file in (tmp_path / "study").iterdir():
        assert file.stat().st_mode & 0o077 == 0
        assert not any(uid in file.name for uid in [server.study, *server.files])


def test_interrupted_fetch_goes_on_and_asks_for_nothing_twice(
    server: Server, tmp_path: Path
) -> None:
    last = list(server.files)[-1]
    server.routes[last] = lambda: (503, {}, b"")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 failed to answer \(503\)"):
        fetch(server.url, tmp_path, server.access)
    had = {f.name for f in tmp_path.glob("*.dcm")}
    assert len(had) == len(server.files) - 1
    assert {f.name for f in tmp_path.iterdir()} == had  # nothing half fetched beside them
    server.routes.clear()
    server.asked.clear()
    assert fetch(server.url, tmp_path, server.access) == []
    assert server.instances_asked() == [last]


def test_connection_that_breaks_in_an_object_is_tried_again(server: Server, tmp_path: Path) -> None:
    first = next(iter(server.files))
    code, headers, body = server.instance(first)
    answers = iter([(code, headers, body[:900]), (code, headers, body)])
    server.routes[first] = lambda: next(answers)
    assert fetch(server.url, tmp_path, server.access) == []
    assert server.instances_asked().count(first) == 2


@pytest.mark.parametrize("broken", ["missing", "another", "not dicom", "no multipart"])
def test_object_the_server_cannot_give_is_told_and_costs_only_itself(
    server: Server, tmp_path: Path, broken: str
) -> None:
    first, second = list(server.files)[:2]
    code, headers, body = server.instance(second)
    server.routes[first] = {
        "missing": lambda: (404, {}, b""),
        "another": lambda: (code, headers, body),
        "not dicom": lambda: (code, headers, b"--XX\r\n\r\nhello\r\n--XX--"),
        "no multipart": lambda: (code, headers, b"hello"),
    }[broken]
    (problem,) = fetch(server.url, tmp_path, server.access)
    assert problem.code == "NOT_FETCHED"
    assert first not in problem.message + problem.subject
    assert len(list(tmp_path.iterdir())) == len(server.files) - 1


def test_too_much_is_refused_before_or_while_it_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadAnswer, match="larger than"):
        fetch(server.url, tmp_path, replace(server.access, max_study_bytes=10_000))
    assert server.instances_asked() == []
    with pytest.raises(BadAnswer, match="sends more than"):
        fetch(server.url, tmp_path, replace(server.access, max_answer_bytes=1000))
    problems = fetch(server.url, tmp_path, replace(server.access, max_instance_bytes=1000))
    assert {p.code for p in problems} == {"NOT_FETCHED"}
    assert list(tmp_path.iterdir()) == []


def test_redirects_are_not_followed(server: Server, tmp_path: Path) -> None:
    server.routes["/metadata"] = lambda: (302, {"Location": f"{server.base}/elsewhere"}, b"")
    with pytest.raises(Refused, match="redirects elsewhere"):
        fetch(server.url, tmp_path, server.access)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [(401, Refused, "CROSSREAD_DICOMWEB_TOKEN"), (404, NotFound, "check the UIDs"),
     (500, Unreachable, "try again later"), (400, Refused, "does not accept")],
)  # fmt: skip
def test_every_refusal_has_its_class_and_names_no_identifier(
    server: Server, tmp_path: Path, code: int, error: type[Exception], words: str
) -> None:
    server.routes["/metadata"] = lambda: (code, {}, b"")
    with pytest.raises(error, match=words) as caught:
        fetch(server.url, tmp_path, server.access)
    assert server.study not in str(caught.value)
    assert caught.value.__cause__ is None


def test_nonsense_silence_and_absence_have_their_classes(server: Server, tmp_path: Path) -> None:
    server.routes["/metadata"] = lambda: (200, {"Content-Type": "text/html"}, b"<html>")
    with pytest.raises(BadAnswer, match="not DICOM JSON"):
        fetch(server.url, tmp_path, server.access)
    server.routes["/metadata"] = lambda: (
        200,
        {},
        json.dumps([{"00080018": {"Value": ["../x"]}}]).encode(),
    )
    with pytest.raises(BadAnswer, match="without proper UIDs"):
        fetch(server.url, tmp_path, server.access)
    server.routes["/metadata"] = lambda: (200, {}, b"[]")
    with pytest.raises(NotFound, match="lists no object"):
        fetch(server.url, tmp_path, server.access)
    waiting = threading.Event()
    server.routes["/metadata"] = lambda: (waiting.wait(5), (200, {}, b"[]"))[1]
    with pytest.raises(TimedOut, match="in time"):
        fetch(server.url, tmp_path, replace(server.access, timeout_s=0.1))
    waiting.set()
    port = free_port()
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetch(f"http://127.0.0.1:{port}/studies/1.2", tmp_path, Access(frozenset({"127.0.0.1"})))


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://pacs.example.org/dicom-web", "https"), ("file:///etc/passwd", "https"),
     ("ftp://127.0.0.1/x", "https"), ("https://me:secret@pacs.example.org/", "user name"),
     ("https://evil.example.org/", "not among"), ("https://pacs.example.org.evil.net/", "not among"),
     ("https:///studies/1", "not among"), ("https://pacs.example.org:444/", "not among")],
)  # fmt: skip
def test_addresses_outside_the_rules_are_refused_unasked(url: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        check_url(url, Access(frozenset({"pacs.example.org:443"})))


def test_private_networks_are_closed_unless_the_host_is_listed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="private network"):
        fetch(server.url, tmp_path, Access())
    assert server.asked == []
    for address in ("10.1.2.3", "169.254.169.254", "::1", "::ffff:192.168.0.1", "100.64.0.1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        told = [(family, socket.SOCK_STREAM, 6, "", (address, 443))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, told=told, **k: told)
        with pytest.raises(Refused, match="private network"):
            fetch("https://pacs.example.org/studies/1.2", tmp_path, Access())


def test_name_is_looked_up_once_so_that_it_cannot_change_after_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = iter(["93.184.216.34", "127.0.0.1"])
    reached = []
    real_connect = socket.socket.connect

    def look_up(host: str, *args: Any, **kwargs: Any) -> Any:
        address = next(answers) if host == "pacs.example.org" else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    def connect(self: socket.socket, address: Any) -> None:
        if address[1] != 443:  # of another test's thread
            return real_connect(self, address)
        reached.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(Unreachable):
        fetch("https://pacs.example.org/studies/1.2", tmp_path, Access())
    assert reached == ["93.184.216.34"]


def test_token_goes_to_listed_hosts_only(server: Server, tmp_path: Path) -> None:
    fetch(server.url, tmp_path, replace(server.access, token="s3cret"))
    assert {headers.get("Authorization") for _, headers in server.asked} == {"Bearer s3cret"}
    session = GuardedSession("https://unlisted.example.org", Access(token="s3cret"))
    assert "Authorization" not in session.headers
    assert "s3cret" not in repr(Access(token="s3cret"))


def test_tls_is_verified_against_the_given_authority(server: Server, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "localhost.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    class Plain(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    http.daemon_threads = True
    http.handle_error = lambda *a: None  # type: ignore[method-assign]
    http.socket = context.wrap_socket(http.socket, server_side=True)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    url = f"https://127.0.0.1:{http.server_address[1]}/dicom-web"
    access = Access(frozenset({"127.0.0.1"}))
    try:
        with pytest.raises(Refused, match="certificate of 127"):
            find(url, access=access)
        assert find(url, access=replace(access, ca_bundle=certificate)) == []
    finally:
        http.shutdown()
        http.server_close()


def test_no_identifier_of_an_address_reaches_the_log(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fetch(server.url, tmp_path, server.access)
    assert "fetching 24 of 24 objects" in caplog.text
    assert server.study not in caplog.text
    assert not any(uid in caplog.text for uid in server.files)


def test_opened_study_is_gone_afterwards_unless_a_cache_was_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CROSSREAD_DICOM_CACHE", raising=False)
    with on_disk(server.url, server.access) as (folder, problems):
        assert (len(scan(folder).default().files), problems) == (24, [])
    assert not folder.exists()
    monkeypatch.setenv("CROSSREAD_DICOM_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        with on_disk(server.url, server.access) as (folder, _):
            pass
        assert folder.parent == tmp_path / "cache"
        assert server.study not in folder.name
    assert len(server.instances_asked()) == 48  # once for the temporary folder, once for the cache
    with on_disk(str(tmp_path)) as (path, _):
        assert path == str(tmp_path)


def test_environment_names_hosts_token_and_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access.from_environment({
        "CROSSREAD_DICOMWEB_HOSTS": "pacs.example.org, 10.0.0.7:8042 ,",
        "CROSSREAD_DICOMWEB_TOKEN": "t",
        "CROSSREAD_DICOMWEB_CA": "ca.pem",
    })  # fmt: skip
    assert access.hosts == {"pacs.example.org", "10.0.0.7:8042"}
    assert (access.token, access.ca_bundle) == ("t", Path("ca.pem"))
    assert Access.from_environment({}) == Access()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_part_of_a_message_is_found_however_it_is_cut(size: int) -> None:
    body = os.urandom(3000) + b"\r\n--X" + os.urandom(10)  # almost the boundary
    message = b"--XYZ\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n--XYZ--\r\n"
    pieces = (message[i : i + size] for i in range(0, len(message), size))
    assert b"".join(first_part(pieces, b"XYZ")) == body
    with pytest.raises(Unreachable, match="broke off"):
        list(first_part(iter([message[:2000]]), b"XYZ"))


@pytest.mark.parametrize(
    "body",
    [b"7", b"[7]", b'["x"]', b'[{"00080018": 7}]', b'[{"00080018": {"Value": 7}}]',
     b'[{"00080018": {"Value": ["1.2"]}, "0020000E": {"Value": ["1.3"]},'
     b' "00280010": {"Value": ["many"]}}]', b"[" * 100_000],
)  # fmt: skip
def test_json_of_another_shape_is_a_bad_answer(server: Server, tmp_path: Path, body: bytes) -> None:
    server.routes["/metadata"] = server.routes["/studies"] = lambda: (200, {}, body)
    with pytest.raises(BadAnswer):
        fetch(server.url, tmp_path, server.access)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["https://[::1/studies/1", "https://host:x/studies/1", "https:///a"]
)
def test_broken_addresses_are_refused_as_input(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the address of a DICOMweb server"):
        fetch(url, tmp_path)


def test_address_without_a_study_and_objects_not_taken_are_refused(
    server: Server, tmp_path: Path, phantom_series: Path
) -> None:
    with pytest.raises(InputError, match="names no study"):
        fetch(server.base, tmp_path, server.access)
    with pytest.raises(InputError, match="not the address of a DICOMweb server"):
        find("pacs.example.org", access=server.access)
    assert is_url(server.url)
    assert not is_url("study/folder")
    assert not is_url(tmp_path)
    failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}
    server.routes["/studies"] = lambda: (
        202, {"Content-Type": "application/dicom+json"}, json.dumps(failed).encode()
    )  # fmt: skip
    with pytest.raises(Refused, match=r"1 of 1 objects were not stored \(reason 0xa700\)"):
        store(server.base, [next(phantom_series.iterdir())], server.access)
