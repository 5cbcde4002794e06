"""The model in its own process: what waiting clients hear when that process dies or hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from multimodal.process import BackendProcess
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running, serving
from tests.waiting import wait_until


@pytest.fixture
def backend() -> Iterator[BackendProcess]:
    process = BackendProcess(Gated, silent_s=1.0)
    yield process
    process.close()


@pytest.fixture
def server(backend: BackendProcess) -> Iterator[Running]:
    with serving(backend, Settings(max_running=2, max_waiting=4)) as running:
        yield running


def test_a_killed_process_costs_every_client_an_error_and_is_started_again(
    backend: BackendProcess, server: Running
):
    """S9: three stream, wait or ask at once; nobody is left without an answer."""
    http = server.http()

    def ask(stream: bool) -> Any:
        return http.post("/v1/chat/completions", json=server.chat(stream=stream))

    with ThreadPoolExecutor(3) as pool:
        streamed = pool.submit(ask, True)
        whole = pool.submit(ask, False)
        wait_until(lambda: server.metric("num_requests_running") == 2, "two run")
        first_pid = backend.pid
        assert first_pid is not None
        # the first token has reached the client: what follows can only be an event
        wait_until(lambda: server.metric("time_to_first_token_seconds_count") == 2, "tokens came")
        os.kill(first_pid, signal.SIGKILL)
        assert streamed.result().status_code == 200
        assert '"code": "model_unavailable"' in streamed.result().text
        assert "[DONE]" not in streamed.result().text
        assert whole.result().status_code == 503
        assert whole.result().headers["Retry-After"]
    wait_until(lambda: http.get("/readyz").is_success, "it is ready again")
    assert backend.pid != first_pid
    wait_until(lambda: server.metric("engine_restarts_total") >= 1, "the restart is counted")
    assert server.metric("num_requests_running") == 0


def test_a_process_that_hangs_makes_the_server_unready_while_it_answers(
    backend: BackendProcess, server: Running
):
    http = server.http()
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: http.get("/readyz").status_code == 503, "it is not ready")
        assert http.get("/readyz").json()["error"]["code"] == "engine_down"
        assert http.get("/healthz").status_code == 200
    finally:
        os.kill(backend.pid, signal.SIGCONT)
    wait_until(lambda: http.get("/readyz").is_success, "it is ready again")


def test_hanging_up_wakes_a_thread_that_waits_for_the_other_process(
    backend: BackendProcess, server: Running
):
    """The gate in the other process never opens, so no event ever comes."""
    from tests.pipelines.server.test_stopping import connect

    clients = [connect(server, stream=stream) for stream in (True, False)]
    wait_until(lambda: server.metric("num_requests_running") == 2, "both run")
    for client in clients:
        client.close()
    wait_until(lambda: server.metric("num_requests_running") == 0, "both places are free")
