"""The shipped model behind our own server, asked by our own client and from allowed hosts."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from multimodal.backends import DEMO, GenerateOptions, collect, load_backend
from multimodal.messages import user
from pipelines import pipeline
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running, serving
from tests.pipelines.server.test_admission import post_parts
from tests.pipelines.server.test_chat import png

SAMPLE = DEMO / "sample"


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with serving(load_backend()) as running:
        yield running


def test_the_demo_model_says_over_the_network_what_it_says_at_home(demo: Running):
    import shutil
    import tempfile

    report = (SAMPLE / "report.txt").read_text()
    here = pipeline("ct-report")(SAMPLE / "study", report)
    with tempfile.TemporaryDirectory() as folder, demo.http() as http:
        archive = shutil.make_archive(f"{folder}/study", "zip", SAMPLE / "study")
        name = demo.client().files.create(file=Path(archive), purpose="user_data").id
        answer = http.post("/v1/readings", json={"study": name, "report": report})
    there = answer.json()["reading"]
    expected = json.loads(here.to_json())
    for key in ("findings", "discrepancies", "agreement", "provenance", "study"):
        assert there[key] == expected[key]


def test_our_remote_backend_reads_our_own_server(demo: Running):
    """Two processes' worth of protocol between `pipeline` and the model."""
    remote = load_backend(demo.url)
    assert remote.capabilities().name == "demo"
    local = load_backend()
    asked = [user("Transcribe")]
    options = GenerateOptions(max_new_tokens=12)
    there, here = (collect(b.generate(asked, options)) for b in (remote, local))
    assert (there.text, there.reason) == (here.text, here.reason)
    assert there.usage.prompt_tokens == here.usage.prompt_tokens
    assert pipeline("chat", demo.url)("hello", options).text


def test_what_the_engine_measures_reaches_the_metrics(demo: Running):
    """A new picture, asked for twice: decoded twice, encoded once, in steps that took time."""
    names = (
        "media_decode_seconds_count", "encoder_time_seconds_count", "encoder_cache_hits_total",
        "prompt_tokens_total",
    )  # fmt: skip

    def told() -> dict[str, float]:
        seen = {name: demo.metric(name, modality="image") for name in names}
        return seen | {"steps": demo.metric("step_seconds_count")}

    before = told()
    part = {"type": "image_url", "image_url": {"url": png()}}
    for _ in range(2):
        demo.client().chat.completions.create(
            model="demo", messages=[{"role": "user", "content": [part]}], max_tokens=3  # type: ignore[misc,list-item]
        )  # fmt: skip
    more = {name: count - before[name] for name, count in told().items()}
    assert (more[names[0]], more[names[1]], more[names[2]]) == (2, 1, 1)
    assert more["prompt_tokens_total"] > 0
    assert more["prompt_tokens_total"] % 2 == 0
    assert more["steps"] >= 2
    assert demo.metric("step_seconds_sum") > 0
    ratios = [demo.metric("active_neuron_ratio", layer=str(layer)) for layer in range(2)]
    assert all(0 < ratio <= 1 for ratio in ratios)
    assert demo.metric("adaptive_chunk") >= 32


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        import base64

        data = base64.b64decode(png().partition(",")[2])
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            data = b""
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"localhost:{http.server_port}"
        http.shutdown()
        thread.join()


def picture_from(server: Running, url: str) -> Any:
    answer = post_parts(server, {"type": "image_url", "image_url": {"url": url}})
    return answer.status_code, (answer.json().get("error") or {}).get("code")


def test_only_allowed_hosts_are_asked_and_never_a_private_address(
    pictures: str, monkeypatch: pytest.MonkeyPatch
):
    settings = Settings(media_hosts=frozenset({pictures, "inside.example"}))
    with serving(Gated().open(), settings) as server:
        refused = (400, "remote_url_refused")
        assert picture_from(server, "https://elsewhere.example/a.png") == refused
        assert picture_from(server, f"http://{pictures}/a.png") == refused  # loopback is private
        looked_up: list[str] = []
        real = socket.getaddrinfo

        def lookup(host: Any, *more: Any, **names: Any) -> Any:
            if host != "inside.example":
                return real(host, *more, **names)
            looked_up.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 443))]

        with monkeypatch.context() as patched:
            patched.setattr("encoders.dicom.guarded.socket.getaddrinfo", lookup)
            assert picture_from(server, "https://inside.example/a.png") == refused
        assert looked_up == ["inside.example"]  # once: the address checked is the one asked
        monkeypatch.setattr("encoders.dicom.guarded._public_address", lambda host, _: "127.0.0.1")
        assert picture_from(server, f"http://{pictures}/a.png") == (200, None)
        assert picture_from(server, f"http://{pictures}/moved") == refused
