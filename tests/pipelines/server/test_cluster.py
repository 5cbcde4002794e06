"""Replicas under Ray Serve on one machine: one of them killed under load, and what may be configured."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from encoders.errors import InvalidOption
from pipelines.server.settings import Settings
from tests.pipelines.server.running import gated_by
from tests.served import free_port
from tests.waiting import PATIENCE_S, wait_until

pytest.importorskip("ray.serve", reason="needs Ray Serve; pip install 'crossread[ray]'")
BODY = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"depth": 3}, "depth is no argument"),
        ({}, "need a folder that all of them see"),
        ({"folder": "x", "min_replicas": 3, "max_replicas": 2}, "between 3 and 2 replicas"),
        ({"folder": "x", "max_body_mib": 0}, "max_body_mib is 0"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(arguments: Any, match: str):
    from pipelines.server.cluster import build

    with pytest.raises(InvalidOption, match=match):
        build(arguments)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two replicas behind Ray's proxy, whose answers wait for the file `gate`."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from pipelines.server.cluster import deploy

    port = free_port()
    settings = Settings(max_running=16, folder=tmp_path / "shared")
    load = partial(gated_by, tmp_path / "gate")
    application = deploy(load, settings, replicas=(2, 2), actor={"num_cpus": 1})
    ray.init(include_dashboard=False, num_cpus=4, logging_level="ERROR", log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def asked_of(root: str) -> AbstractContextManager[httpx.Response]:
    """An answer as it comes."""
    limits = httpx.Timeout(PATIENCE_S)
    body = {**BODY, "stream": True}
    return httpx.stream("POST", f"{root}/v1/chat/completions", json=body, timeout=limits)


def server_in(line: str) -> int:
    """The process that wrote this part of an answer; 0 of a part without a word."""
    _, said, word = line.partition('"content": "')
    return int(word.split()[0]) if said else 0


def server_of(root: str) -> int:
    """The process that begins an answer, which is given up then."""
    with asked_of(root) as response:
        return next(filter(None, map(server_in, response.iter_lines())))


def streamed(root: str, begun: list[int]) -> tuple[int, str]:
    """The process that answered, and how its answer ended: whole, with an error, or broken off."""
    server, text = 0, ""
    try:
        with asked_of(root) as response:
            for line in response.iter_lines():
                text += line
                if not server and (server := server_in(line)):
                    begun.append(server)
    except httpx.HTTPError:
        return server, "broken off"
    return server, "whole" if text.endswith("[DONE]") else "error"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_replica_killed_under_load_costs_its_own_requests_and_none_silently(
    cluster: str, tmp_path: Path
):
    begun: list[int] = []
    known: set[int] = set()  # Ray's proxy hears of the second one a little after it is there
    wait_until(lambda: known.add(server_of(cluster)) or len(known) == 2, "both are asked")
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(streamed, cluster, begun) for _ in range(12)]
        wait_until(lambda: len(begun) == 12, "all twelve have begun")
        assert len(set(begun)) == 2  # the load is on both
        victim = begun[0]
        os.kill(victim, signal.SIGKILL)
        (tmp_path / "gate").touch()
        ends = [answer.result() for answer in asked]
    assert {end for server, end in ends if server != victim} == {"whole"}
    assert {end for server, end in ends if server == victim} <= {"error", "broken off"}
    assert len(ends) == 12
    seen: list[int] = []
    wait_until(lambda: streamed(cluster, seen)[1] == "whole" and len(set(seen)) == 2, "two again")
    assert victim not in seen


def test_an_application_for_a_kubernetes_cluster_can_be_built(tmp_path: Path):
    from pipelines.server.cluster import build

    app = build({"folder": str(tmp_path), "max_running": 4, "min_replicas": 1, "max_replicas": 25})
    config = app._bound_deployment._deployment_config  # type: ignore[attr-defined]
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (
        1,
        25,
    )
    assert config.max_ongoing_requests > 4 + 16  # the replica itself refuses what is too much
    assert not list(tmp_path.iterdir())
