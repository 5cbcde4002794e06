"""The server as a process: it drains when told to stop, and ends with the right code."""

from __future__ import annotations

import gc
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.server.process import run_server, settle
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[3]


@contextmanager
def process(gate: Path, **limits: Any) -> Iterator[tuple[subprocess.Popen[str], Running]]:
    command = [sys.executable, "-m", "tests.pipelines.server.served", str(gate), json.dumps(limits)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            with ExitStack() as clients:
                server = Running(None, int(child.stdout.readline()), clients)  # type: ignore[arg-type]
                http = server.http()
                wait_until(lambda: http.get("/readyz").is_success, "the server is ready")
                yield child, server
        finally:
            child.kill()


def test_on_sigterm_accepted_requests_end_and_new_ones_get_503(tmp_path: Path):
    """S9: none accepted is lost, waiting ones included."""
    gate = tmp_path / "gate"
    with process(gate, max_running=2) as (child, server), ThreadPoolExecutor(5) as pool:
        http = server.http()
        body = server.chat(stream=True)
        answers = [pool.submit(http.post, "/v1/chat/completions", json=body) for _ in range(5)]
        server.wait_until_inside(running=2, waiting=3)
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: http.get("/readyz").status_code == 503, "it drains")
        refused = http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "Retry-After" in refused.headers
        assert http.get("/healthz").status_code == 200
        gate.touch()
        done = [answer.result() for answer in answers]
        assert [answer.status_code for answer in done] == [200] * 5
        assert all(answer.text.endswith("data: [DONE]\n\n") for answer in done)
        assert child.wait(PATIENCE_S) == 0


def test_what_does_not_end_in_time_is_given_up(tmp_path: Path):
    with process(tmp_path / "gate", drain_s=0.2) as (child, server), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.http().post, "/v1/chat/completions", json=server.chat())
        wait_until(lambda: server.metric("num_requests_running") == 1, "it runs")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0
        with pytest.raises(httpx.HTTPError):
            answer.result().raise_for_status()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error():
    from encoders.errors import ModelNotFound

    def load() -> Gated:
        raise ModelNotFound("no model in 'nowhere'")

    told: list[str] = []
    with pytest.raises(ModelNotFound, match="no model in 'nowhere'"):
        run_server(
            load, Settings(), port=0,
            listening=lambda _: told.append("loading"), ready=lambda _: told.append("ready"),
        )  # fmt: skip
    assert told == ["loading"]  # never that it is ready


def test_it_says_that_it_is_ready_once_the_model_is_there(tmp_path: Path):
    with process(tmp_path / "gate") as (child, _):
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"


def test_a_port_that_is_taken_is_told():
    from encoders.errors import InvalidOption

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidOption, match="choose another --port"):
            run_server(Gated, Settings(), port=taken.getsockname()[1])


def test_answers_are_not_held_back_by_the_network():
    """Head and body of an answer are two packets; Nagle's algorithm kept the second for 40 ms."""
    import asyncio

    from pipelines.server import process as module

    async def check() -> None:
        answered = asyncio.get_running_loop().create_future()

        def connected(_: Any, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            answered.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with module._bound("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(connected, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                assert await answered
                writer.close()
                await writer.wait_closed()

    asyncio.run(check())


def test_what_stands_for_good_is_not_looked_through_for_garbage_again():
    """A full look at all modules held everybody up for 0.3 s, mostly when a crowd came."""
    assert len(gc.get_objects()) > 100_000
    settle()
    try:
        assert len(gc.get_objects()) < 10_000
    finally:
        gc.unfreeze()


def test_an_idle_connection_outlives_the_clients_patience(tmp_path: Path):
    """Closed by the server first, one that a client still counts on fails its next request."""
    gate = tmp_path / "gate"
    gate.touch()
    with process(gate) as (_, server), closing(HTTPConnection("127.0.0.1", server.port)) as kept:
        kept.connect()
        connection = kept.sock
        for idle_s in (0.0, (httpx.Limits().keepalive_expiry or 0.0) + 0.5):
            time.sleep(idle_s)
            kept.request("GET", "/healthz")
            assert kept.getresponse().read()
        assert kept.sock is connection
