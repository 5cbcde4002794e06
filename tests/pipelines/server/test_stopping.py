"""Requests that end early: clients that hang up, read slowly or were waited for too long."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from multimodal.backends import Finished, Token, Usage
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running, serving
from tests.waiting import PATIENCE_S, wait_until


def connect(server: Running, **more: Any) -> socket.socket:
    """A raw connection with a request sent, so that it can be broken off."""
    body = json.dumps(server.chat("hello", **more)).encode()
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    return raw


def test_a_body_that_does_not_come_in_time_gives_its_place_back():
    """408; a client that sends half of it and waits would hold a place for ever."""
    backend = Gated().open()
    with serving(backend, Settings(queue_s=0.2)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 500\r\n\r\n{"
            )
            answer = b""
            while b"body_timeout" not in answer:
                piece = raw.recv(4096)
                assert piece, answer
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: server.metric("num_requests_waiting") == 0, "its place is free")
        assert server.metric("request_errors_total", stage="input") == 1
        assert backend.begun == 0


@pytest.mark.parametrize("stream", [True, False])
def test_eighty_who_hang_up_give_all_places_back(stream: bool):
    """S7, streaming or not, waiting or running."""
    backend = Gated(num_tokens=1000)
    with serving(backend, Settings(max_running=8, max_waiting=72)) as server:
        clients = [connect(server, stream=stream) for _ in range(80)]
        wait_until(lambda: backend.begun == 8, "eight run")
        wait_until(lambda: server.metric("num_requests_waiting") == 72, "all others wait")
        for client in clients:
            client.close()
        wait_until(lambda: server.metric("num_requests_waiting") == 0, "nobody waits")
        backend.open()  # the thread of a running one ends at its next event
        wait_until(lambda: server.metric("num_requests_running") == 0, "nobody runs")
        assert (backend.begun, backend.ended) == (8, 8)
        assert server.metric("cancelled_total", where="waiting") == 72
        assert server.metric("cancelled_total", where="running") == 8
        with server.http() as http:
            assert http.post("/v1/chat/completions", json=server.chat()).status_code == 200


def test_a_running_answer_stops_at_its_next_event_when_its_client_hangs_up():
    class Endless(Gated):
        def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
            try:
                while True:
                    yield Token("on ")
            finally:
                self.ended += 1

    backend = Endless()
    with serving(backend, Settings(max_buffered=4)) as server:
        client = connect(server, stream=True)
        assert b"on " in client.recv(65536) + client.recv(65536)
        client.close()
        wait_until(lambda: backend.ended == 1, "the answer is left")
        wait_until(lambda: server.metric("num_requests_running") == 0, "its place is free")


def test_who_goes_with_the_whole_answer_leaves_nothing_undone():
    """Tidying up after an answer went wrong when its client closed the connection at once."""
    backend = Gated().open()
    with serving(backend) as server:
        for number in range(1, 21):
            with server.http() as http:
                assert http.post("/v1/chat/completions", json=server.chat()).status_code == 200
            wait_until(
                lambda n=number: server.metric("request_success_total") == n, "it is counted"
            )
        assert server.metric("cancelled_total") == 0


def test_a_client_that_reads_nothing_is_cut_off_and_its_place_freed():
    backend = Gated(num_tokens=10**6, word="x" * 10000).open()
    settings = Settings(max_buffered=8, slow_reader_s=0.2)
    with serving(backend, settings) as server:
        client = connect(server, stream=True, max_tokens=10**6)
        wait_until(lambda: backend.ended == 1, "the answer is left")
        wait_until(lambda: server.metric("num_requests_running") == 0, "its place is free")
        assert server.metric("request_errors_total", stage="slow_reader") == 1
        client.close()


def test_the_first_token_has_its_limit():
    class Silent(Gated):
        def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
            self.gate.wait()
            yield from super().generate(messages, options)

    backend = Silent()
    with serving(backend, Settings(first_token_s=0.1)) as server, server.http() as http:
        answer = http.post("/v1/chat/completions", json=server.chat(stream=True))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert server.metric("num_requests_running") == 1  # the model still works on it
        backend.open()
        wait_until(lambda: server.metric("num_requests_running") == 0, "its place is free")


def test_the_model_is_told_whose_request_it_is_and_how_long_it_may_take():
    """An answer that the model cuts off for that says so."""
    from pipelines.server.keys import Keys

    class Slow(Gated):
        def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
            self.seen.append(options)
            yield Token("as far as ")
            yield Finished("as far as", "timeout", Usage(3, 3, 0))

    backend = Slow()
    keys = Keys((("clinic", bytes.fromhex(sha256("secret"))),))
    with serving(backend, Settings(total_s=77), keys) as server, server.http("secret") as http:
        answer = http.post("/v1/chat/completions", json=server.chat()).json()
    assert answer["choices"][0]["finish_reason"] == "timeout"
    (options,) = backend.seen
    assert options.tenant == "clinic"
    assert 0 < options.deadline_s <= 77


def sha256(key: str) -> str:
    import hashlib

    return hashlib.sha256(key.encode()).hexdigest()


def test_a_server_that_loads_or_stalls_is_not_ready_but_alive():
    import threading

    loaded = threading.Event()
    backend = Gated()

    def load() -> Gated:
        loaded.wait()
        return backend

    with serving(load, Settings(stalled_s=0.1), wait=False) as server, server.http() as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 503
        refused = http.post("/v1/chat/completions", json=server.chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        loaded.set()
        wait_until(lambda: http.get("/readyz").status_code == 200, "it is ready")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(http.post, "/v1/chat/completions", json=server.chat())
            wait_until(lambda: http.get("/readyz").status_code == 503, "it has stalled")
            assert http.get("/readyz").json()["error"]["code"] == "stalled"
            backend.open()
            assert answer.result().status_code == 200
        assert http.get("/readyz").status_code == 200


def test_a_model_that_does_not_say_how_busy_it_is_is_down():
    import threading

    answers = threading.Event()
    answers.set()

    class Hanging(Gated):
        def load(self) -> Any:
            answers.wait(PATIENCE_S)
            return super().load()

    with serving(Hanging()) as server, server.http() as http:
        answers.clear()
        assert http.get("/readyz").json()["error"]["code"] == "engine_down"
        assert http.get("/readyz").status_code == 503
        assert b"num_requests_running" in http.get("/metrics").content
        answers.set()
        wait_until(lambda: http.get("/readyz").status_code == 200, "it answers again")
