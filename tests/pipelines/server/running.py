"""Our server on loopback over a scripted backend, and ways to talk to it and to wait for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from multimodal.backends import Backend, Finished, GenerateOptions, Token, Usage
from multimodal.messages import Message
from pipelines.server.app import Life, create_app
from pipelines.server.keys import Keys
from pipelines.server.process import KEEP_ALIVE_S
from pipelines.server.settings import Settings
from tests.makers import FakeBackend
from tests.waiting import PATIENCE_S, wait_until


@dataclass
class Gated(FakeBackend):
    """Answers `num_tokens` words; each waits at `gate`, and whoever waits is counted.

    A prompt with "poison" fails. `ended` counts answers that were left, however they ended.
    """

    num_tokens: int = 3
    word: str = "word "
    gate: threading.Event = field(default_factory=threading.Event)
    begun: int = 0
    ended: int = 0
    seen: list[GenerateOptions] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def open(self) -> Gated:
        self.gate.set()
        return self

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        options = options or GenerateOptions()
        with self._lock:
            self.begun += 1
            self.asked.append(messages[-1].text)
            self.seen.append(options)
        try:
            if "poison" in messages[-1].text:
                raise RuntimeError("Mustermann^Erika")  # names of patients must not be told
            count = min(self.num_tokens, options.max_new_tokens)
            for _ in range(count):
                yield Token(self.word)  # so that a client sees that it has begun
                self.gate.wait(PATIENCE_S)
            yield Finished((self.word * count).strip(), "stop", Usage(5, count, 0))
        finally:
            with self._lock:
                self.ended += 1


def gated_by(gate: Path) -> Gated:
    """A backend that is made in another process and opens when a file appears.

    Every word of its answers is the id of that process's parent, the server.
    """
    backend = Gated(word=f"{os.getppid()} ")

    def watch() -> None:
        wait_until(gate.exists, "the gate opens")
        backend.open()

    threading.Thread(target=watch, daemon=True).start()
    return backend


@dataclass
class Running:
    """A server that runs."""

    life: Life
    port: int
    clients: ExitStack

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def client(self, key: str = "none") -> Any:
        """The official client of OpenAI, closed when the server ends."""
        from openai import OpenAI

        client = OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=PATIENCE_S)
        return self.clients.enter_context(client)

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)
        client = httpx.Client(
            base_url=self.root, headers=headers, timeout=PATIENCE_S, limits=limits, trust_env=False
        )
        self.clients.callback(client.close)
        return client

    def chat(self, text: str = "hello", **more: Any) -> dict[str, Any]:
        """A body for /v1/chat/completions."""
        return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}

    def metric(self, name: str, **labels: str) -> float:
        """A value by its name and some of its labels; 0 where it was never counted."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{self.root}/metrics", trust_env=False, timeout=PATIENCE_S).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"crossread_{name}" and labels.items() <= sample.labels.items()
        )

    def wait_until_inside(self, *, running: int, waiting: int) -> None:
        """Runners first: until all have come, one that will run may be counted as waiting."""
        wait_until(lambda: self.metric("num_requests_running") == running, f"{running} run")
        wait_until(lambda: self.metric("num_requests_waiting") == waiting, f"{waiting} wait")


@contextmanager
def serving(
    backend: Backend | Callable[[], Backend],
    settings: Settings | None = None,
    keys: Keys | None = None,
    *,
    wait: bool = True,
) -> Iterator[Running]:
    """A server until the block ends; `backend` may be what loads one."""
    load = backend if callable(backend) else lambda: backend
    life = Life(load, settings or Settings(), keys)
    config = uvicorn.Config(
        create_app(life), port=0, log_config=None, log_level="critical", lifespan="on",
        timeout_graceful_shutdown=1, timeout_keep_alive=KEEP_ALIVE_S,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server listens")
        port = server.servers[0].sockets[0].getsockname()[1]
        with ExitStack() as clients:
            running = Running(life, port, clients)
            if wait:
                with running.http() as http:
                    wait_until(lambda: http.get("/readyz").is_success, "the server is ready")
            yield running
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
