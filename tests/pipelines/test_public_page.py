"""Attacks on a page that anyone may reach, each tried against the running page."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import httpx
import pytest

from tests.scripted_page import LIMITS
from tests.served import serve

pytestmark = pytest.mark.slow
FILE = "/gradio_api/file="


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    yield from serve("-m", "tests.scripted_page", env=LIMITS)


@pytest.fixture
def visit(page_url: str) -> Iterator[Any]:
    """Makes clients: browsers, who get a cookie with the page, and programs, who don't ask for it."""
    clients: list[httpx.Client] = []

    def visited(browser: bool = True) -> httpx.Client:
        client = httpx.Client(base_url=page_url, timeout=60)
        clients.append(client)
        if browser:
            client.get("/")
        return client

    yield visited
    for client in clients:
        client.close()


def upload(client: httpx.Client, content: bytes = b"secret", name: str = "Zebra.txt") -> str:
    answer = client.post("/gradio_api/upload", files={"files": (name, content)})
    answer.raise_for_status()
    return answer.json()[0]


def described(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def call(client: httpx.Client, name: str, *data: Any) -> httpx.Response:
    return client.post(f"/gradio_api/call/{name}", json={"data": data})


def said(client: httpx.Client, name: str, *data: Any) -> str:
    """The stream of a call's events."""
    event = call(client, name, *data).json()["event_id"]
    return client.get(f"/gradio_api/call/{name}/{event}").text


def test_the_cookie_cannot_be_read_by_scripts_and_holds_in_a_frame_behind_tls(page_url: str):
    plain = httpx.get(page_url).headers["set-cookie"]
    assert "HttpOnly" in plain
    assert "SameSite=Lax" in plain
    behind = httpx.get(page_url, headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert "Secure; SameSite=None; Partitioned" in behind
    assert plain.partition(";")[0] != behind.partition(";")[0]


@pytest.mark.parametrize("way", ["{0}", "/{0}", "/usr/..{0}", "/.{0}"])
def test_another_browser_gets_no_file_whose_path_it_knows(visit: Any, way: str):
    anna, ben, program = visit(), visit(), visit(browser=False)
    path = upload(anna)
    assert anna.get(FILE + path).text == "secret"
    for other in (ben, program):
        for route in (FILE, "/gradio_api/file/"):
            answer = other.get(route + way.format(path))
            assert answer.status_code == 403
            assert "secret" not in answer.text
            assert "Zebra" not in answer.text


def test_a_forged_cookie_is_nobody(visit: Any):
    anna = visit()
    path = upload(anna)
    for forged in ("", "x", 'a"b', "crossread_visitor=;;;"):
        cookie = {"cookie": f"crossread_visitor={forged}"}
        assert httpx.get(f"{anna.base_url}{FILE}{path}", headers=cookie).status_code == 403


def test_another_browsers_file_cannot_be_named_as_input(visit: Any):
    anna, ben = visit(), visit()
    path = upload(anna)
    for data in ([described(path)], [{"deep": [described(f"{path}/../Zebra.txt")]}]):
        assert call(ben, "transcribe", *data).status_code == 403
        joined = ben.post(
            "/gradio_api/queue/join", json={"data": data, "fn_index": 0, "session_hash": "x"}
        )
        assert joined.status_code == 403
    assert call(anna, "transcribe", described(path)).status_code == 200


def test_naming_a_file_in_words_gives_no_right_to_it(visit: Any):
    """The words come back in what the server says; only files it describes itself are granted."""
    anna, ben = visit(), visit()
    path = upload(anna)
    stream = said(ben, "chat", f'hello "path": "{path}" {json.dumps(described(path))}', None, 5)
    assert "good day" in stream
    assert ben.get(FILE + path).status_code == 403


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "app.py", "../../../etc/passwd", "/proc/self/environ"]
)
def test_no_file_of_the_server_is_served_or_taken_in(visit: Any, path: str):
    ben = visit()
    assert ben.get(FILE + path).status_code in (403, 404)
    assert call(ben, "transcribe", described(path)).status_code == 403


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "https://elsewhere.example/x.zip"])
def test_the_server_fetches_no_address(visit: Any, address: str):
    ben = visit()
    assert ben.get(FILE + address).status_code == 403
    assert ben.get(f"/gradio_api/proxy={address}").status_code == 403
    answer = call(ben, "transcribe", described(address))
    assert answer.status_code == 403
    assert "send the file itself" in answer.json()["detail"]


def test_a_path_cannot_be_computed_from_the_content_that_was_sent(visit: Any):
    """Gradio names the folder by a hash; without the process's secret nobody can follow it."""
    import gradio

    folder = Path(upload(visit())).parent.name
    seed = Path(gradio.__file__).parent / "hash_seed.txt"
    known = seed.read_bytes().strip() if seed.is_file() else b""
    assert folder not in {hashlib.sha256(s + b"secret").hexdigest() for s in (b"", known)}


def test_a_file_larger_than_the_limit_is_refused(visit: Any):
    answer = visit().post("/gradio_api/upload", files={"files": ("a", bytes(2 * 2**20 + 1))})
    assert answer.status_code == 413


def test_a_visitor_may_send_so_much_altogether_and_others_still_may(visit: Any):
    anna = visit()
    for k in range(2):
        upload(anna, bytes([k]) * (2**20 + 2**19 - 2000))
    answer = anna.post("/gradio_api/upload", files={"files": ("a", bytes(2**19))})
    assert answer.status_code == 413
    assert "more than the page takes" in answer.json()["detail"]
    upload(visit(), bytes(2**20))


def test_a_visitor_may_send_so_many_files(visit: Any):
    anna = visit()
    many = [("files", (f"{k}", str(k).encode())) for k in range(40)]
    assert anna.post("/gradio_api/upload", files=many).status_code == 200
    chinese = {"accept-language": "zh-CN"}
    one_more = anna.post("/gradio_api/upload", files={"files": ("a", b"b")}, headers=chinese)
    assert one_more.status_code == 413
    assert "文件数已达本页上限" in one_more.json()["detail"]


@pytest.mark.parametrize(
    ("side", "words"),
    [(3_000, "decodes to 9 million pixels"), (20_000, "is not a picture whose header can be read")],
)
def test_a_picture_that_decodes_to_too_many_pixels_is_refused_unread(
    visit: Any, side: int, words: str
):
    from PIL import Image

    packed = io.BytesIO()
    Image.new("1", (side, side)).save(packed, "PNG")
    assert len(packed.getvalue()) < 100_000
    program = visit(browser=False)
    path = upload(program, packed.getvalue(), "bomb.png")
    assert words in said(program, "chat", "hello", described(path), 5)


def test_a_recording_that_lasts_too_long_is_refused_unread(visit: Any):
    import av
    import numpy as np

    packed = io.BytesIO()
    with av.open(packed, "w", format="ogg") as sound:
        stream = sound.add_stream("libopus", rate=48000, layout="mono")
        for k in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), layout="mono")
            frame.sample_rate, frame.pts = 48000, 48000 * k
            sound.mux(stream.encode(frame))
        sound.mux(stream.encode(None))
    program = visit(browser=False)
    path = upload(program, packed.getvalue(), "long.ogg")
    assert "lasts 40 s" in said(program, "transcribe", described(path))


def test_an_archive_neither_escapes_nor_explodes(visit: Any):
    program = visit(browser=False)
    escaping = io.BytesIO()
    with zipfile.ZipFile(escaping, "w") as archive:
        archive.writestr(f"../../..{gettempdir()}/crossread-escaped.dcm", b"x")
    path = upload(program, escaping.getvalue(), "escaping.zip")
    assert "no DICOM image found" in said(program, "review", described(path), "", None, "")
    assert not (Path(gettempdir()) / "crossread-escaped.dcm").exists()
    exploding = io.BytesIO()
    with zipfile.ZipFile(exploding, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(4):
            archive.writestr(f"{k}.dcm", bytes(100 * 2**20))
    assert len(exploding.getvalue()) < 2**20
    path = upload(program, exploding.getvalue(), "exploding.zip")
    assert "refused as unsafe" in said(program, "review", described(path), "", None, "")


def test_a_bug_is_told_as_help_without_its_words(visit: Any):
    stream = said(visit(browser=False), "chat", "break, Zebra^Quagga", None, 5)
    assert "Something went wrong on our side" in stream
    assert "Zebra" not in stream
    assert "RuntimeError" not in stream
    assert "Traceback" not in stream


def test_a_body_that_is_no_upload_is_bounded(visit: Any):
    answer = visit().post("/gradio_api/call/chat", content=b"0" * (64 * 2**20 + 1))
    assert answer.status_code == 413


def test_a_page_with_logins_shows_nothing_to_who_has_none():
    for url in serve("-m", "tests.scripted_page", env={"CROSSREAD_LOGINS": "anna:geheim"}):
        with httpx.Client(base_url=url, timeout=60) as stranger:
            stranger.get("/")
            assert stranger.get("/config").status_code == 401
            upload = stranger.post("/gradio_api/upload", files={"files": ("a", b"b")})
            assert upload.status_code == 401
            assert (
                stranger.post(
                    "/gradio_api/call/chat", json={"data": ["hello", None, 5]}
                ).status_code
                == 401
            )
            assert stranger.get("/gradio_api/mcp/schema").status_code in (401, 404)
            wrong = stranger.post("/login", data={"username": "anna", "password": "anna"})
            assert wrong.status_code == 400
            assert stranger.get("/health").json() == {"status": "ok"}
            right = stranger.post("/login", data={"username": "anna", "password": "geheim"})
            assert right.status_code == 200
            assert stranger.get("/config").status_code == 200
