"""How the server behaves when too many come, hang up at once, or kill its model.

    python -m benchmarks.server [--model FOLDER --rounds 3 --tokens 16]

Runs `crossread serve` as a process with 8 requests at work and 100 waiting, and asks it over HTTP
from this one. Overload: a burst of 300 beside one of 108, which just fits: latency of accepted
requests, of refusals and of /healthz meanwhile. Disconnects: 80 clients hang up; the time until all
places are free. Kill: SIGKILL of the model's process; the time until every client has heard and
until the server is ready. Wall clock, as clients see it: run it on an idle machine with two cores.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.sparse import machine

RUNNING, WAITING, BURST = 8, 100, 300
NO_LIMITS = httpx.Limits(max_connections=None)


def quantile(values: list[float], share: float) -> float:
    """The value that this share of all lie at or below."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


@contextmanager
def serving(model: str | None) -> Iterator[str]:
    """The root address of a server that runs until the block ends."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0"]
    command += ["--max-running", str(RUNNING), "--max-waiting", str(WAITING)]
    command += ["--model", model] if model else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        root = child.stderr.readline().split()[-1].removesuffix("/v1")
        try:
            wait_for(lambda: httpx.get(f"{root}/readyz").is_success)
            yield root
        finally:
            child.send_signal(signal.SIGTERM)


def wait_for(true: Any, limit_s: float = 120.0) -> float:
    """Seconds until something is true."""
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > limit_s:
            raise TimeoutError("the server did not get there")
        time.sleep(0.002)
    return time.monotonic() - started


def body(name: str, tokens: int, number: int) -> dict[str, Any]:
    """A chat request whose words differ from those of others."""
    content = f"Is there a nodule in study {number}?"
    return {"model": name, "max_tokens": tokens, "messages": [{"role": "user", "content": content}]}


def lasting(name: str, number: int, *, stream: bool = False) -> dict[str, Any]:
    """One whose answer takes a thousand tokens, so that nobody is through before all are there."""
    form = {"name": "long", "schema": {"type": "string", "minLength": 9000}}
    asked = {"type": "json_schema", "json_schema": form}
    return {**body(name, 1000, number), "stream": stream, "response_format": asked}


@dataclass
class Sent:
    """A request under way: what it is, its bytes, when it began, and what has come."""

    kind: str
    request: bytes
    began_s: float
    came: bytes = b""


def burst(root: str, name: str, tokens: int, size: int) -> dict[str, list[float]]:
    """Latencies of so many requests at once, and of /healthz every 50 ms meanwhile.

    On bare sockets: what a library takes for 300 connections would count as the server's.
    """
    path = "/v1/chat/completions"
    asked = [wire(path, body(name, tokens, number)) for number in range(size)]
    took: dict[str, list[float]] = {"200": [], "429": [], "health": []}
    next_s, left = 0.0, size
    with selectors.DefaultSelector() as waiting:
        for request in asked:
            begin(waiting, root, "work", request)
        while left:
            if time.monotonic() >= next_s:
                begin(waiting, root, "health", wire("/healthz"))
                next_s = time.monotonic() + 0.05
            for sent in went_on(waiting):
                status = sent.came.split(b" ", 2)[1].decode()
                took["health" if sent.kind == "health" else status].append(
                    time.monotonic() - sent.began_s
                )
                left -= sent.kind == "work"
        for key in list(waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return {"accepted": took["200"], "refused": took["429"], "health": took["health"]}


def wire(path: str, sent: dict[str, Any] | None = None) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(sent).encode() if sent else b""
    head = f"{'POST' if sent else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def begin(waiting: selectors.BaseSelector, root: str, kind: str, request: bytes) -> None:
    """Connect without waiting."""
    host, _, port = root.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setblocking(False)
    sent = Sent(kind, request, time.monotonic())
    connection.connect_ex((host, int(port)))
    waiting.register(connection, selectors.EVENT_WRITE, sent)


def went_on(waiting: selectors.BaseSelector) -> Iterator[Sent]:
    """Send and receive what can be; those that are through."""
    for key, event in waiting.select(0.01):
        connection: Any = key.fileobj
        if event & selectors.EVENT_WRITE:
            connection.send(key.data.request)
            waiting.modify(connection, selectors.EVENT_READ, key.data)
        elif came := connection.recv(65536):
            key.data.came += came
        else:
            waiting.unregister(connection)
            connection.close()
            yield key.data


def overload(root: str, name: str, tokens: int) -> dict[str, Any]:
    """S6: what 300 at once do to those who are let in."""
    calm = burst(root, name, tokens, RUNNING + WAITING)
    spent_s = cpu_s(server_pid())
    busy = burst(root, name, tokens, BURST)
    spent_s = cpu_s(server_pid()) - spent_s
    return {
        "accepted": len(busy["accepted"]), "refused": len(busy["refused"]),
        "slowest_ratio": max(busy["accepted"]) / max(calm["accepted"]),
        "mean_ratio": statistics.mean(busy["accepted"]) / statistics.mean(calm["accepted"]),
        "refusal_p99_s": quantile(busy["refused"], 0.99),
        "healthz_p99_s": quantile(busy["health"], 0.99),
        "server_cpu_ms_per_request": 1000 * spent_s / BURST,
    }  # fmt: skip


def metric(root: str, name: str) -> float:
    """The sum of a metric's values."""
    lines = httpx.get(f"{root}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"crossread_{name}{{"))


def is_free(root: str) -> bool:
    """Whether nobody is inside."""
    return metric(root, "num_requests_running") + metric(root, "num_requests_waiting") == 0


def disconnects(root: str, name: str, *, stream: bool) -> float:
    """S7: seconds until all places are free after 80 clients have hung up."""

    async def hang_up() -> None:
        async with httpx.AsyncClient(base_url=root, timeout=600, limits=NO_LIMITS) as http:
            asked = [
                asyncio.ensure_future(
                    http.post("/v1/chat/completions", json=lasting(name, n, stream=stream))
                )
                for n in range(80)
            ]
            inside = lambda: metric(root, "num_requests_waiting") >= 80 - RUNNING  # noqa: E731
            await asyncio.to_thread(wait_for, inside)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(hang_up())
    return wait_for(lambda: is_free(root))


def kill(root: str, name: str) -> dict[str, Any]:
    """S9: what clients hear when the model's process is killed, and when the server is back."""

    async def clients() -> list[int]:
        async with httpx.AsyncClient(base_url=root, timeout=600, limits=NO_LIMITS) as http:
            asked = [
                asyncio.ensure_future(http.post("/v1/chat/completions", json=lasting(name, n)))
                for n in range(40)
            ]
            await asyncio.to_thread(wait_for, lambda: metric(root, "num_requests_waiting") >= 32)
            os.kill(engine_pid(), signal.SIGKILL)
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    started = time.monotonic()
    statuses = asyncio.run(clients())
    heard_s = time.monotonic() - started
    ready_s = wait_for(lambda: httpx.get(f"{root}/readyz").is_success)
    told = {str(status): statuses.count(status) for status in sorted(set(statuses))}
    return {"statuses": told, "all_heard_s": heard_s, "ready_after_s": ready_s}


def processes() -> list[list[str]]:
    """Id, parent's id and command of all processes."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    return [line.split(None, 2) for line in listed.stdout.splitlines()[1:]]


def server_pid() -> int:
    """Our child that serves."""
    mine = str(os.getpid())
    (pid,) = [pid for pid, ppid, args in processes() if ppid == mine and "pipelines.cli" in args]
    return int(pid)


def engine_pid() -> int:
    """The process that runs the model: the server's child that was spawned."""
    server = str(server_pid())
    return next(int(p) for p, parent, a in processes() if parent == server and "spawn_main" in a)


def cpu_s(pid: int) -> float:
    """CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16)
    asked = parser.parse_args(arguments)
    with serving(asked.model) as root:
        name = httpx.get(f"{root}/v1/models").json()["data"][0]["id"]
        burst(root, name, asked.tokens, RUNNING)  # warm
        gc.freeze()  # or a look for garbage in here, 0.3 s, counts as the server's
        told = {
            "machine": machine(), "cores": os.cpu_count(), "model": name,
            "overload": [overload(root, name, asked.tokens) for _ in range(asked.rounds)],
            "disconnect_stream_s": [disconnects(root, name, stream=True) for _ in range(asked.rounds)],
            "disconnect_whole_s": [disconnects(root, name, stream=False) for _ in range(asked.rounds)],
            "kill": [kill(root, name) for _ in range(asked.rounds)],
        }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
