"""A real HTTP server on loopback that speaks the OpenAI protocol by a script, and keeps what it saw."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DONE = b"data: [DONE]\n\n"
Play = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: str | None, **more: Any) -> bytes:
    """One chunk of a streamed answer; `finish_reason` and `logprobs` by name."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, **more}]})


def whole(text: str, *, top: dict[str, float] | None = None, reason: str = "stop") -> bytes:
    """A whole streamed answer; `top` are the log-probabilities of its first token."""
    logprobs = None
    if top is not None:
        tokens = [{"token": t, "logprob": p} for t, p in top.items()]
        logprobs = {"content": [{"token": "", "logprob": 0.0, "top_logprobs": tokens}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}
    return b"".join([
        event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
        *(piece(word, logprobs=logprobs) for word in text.split("|")),
        piece(None, finish_reason=reason), event(usage), DONE,
    ])  # fmt: skip


def stream(handler: BaseHTTPRequestHandler, *packets: bytes) -> None:
    """An answer of status 200 in these packets, ended by hanging up."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for packet in packets:
        handler.wfile.write(packet)
        handler.wfile.flush()


def says(text: str, **more: Any) -> Play:
    return lambda handler, _: stream(handler, whole(text, **more))


def sends(*packets: bytes) -> Play:
    return lambda handler, _: stream(handler, *packets)


def fails(code: int, body: bytes = b"", **headers: str) -> Play:
    """Answers with a status; header names with _ for -."""

    def play(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return play


@dataclass
class ScriptedServer:
    """Plays `script` in order, its last entry ever after; lists `models`."""

    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "tiny"}])
    script: list[Play] = field(default_factory=lambda: [says("yes")])
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    played: int = 0

    @property
    def prompts(self) -> list[str]:
        """The words of the last turn of every request."""
        return [words_of(body["messages"][-1]["content"]) for body in self.seen]

    def play(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.seen.append(body)
        step = self.script[min(self.played, len(self.script) - 1)]
        self.played += 1
        step(handler, body)


def words_of(content: str | Sequence[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


@contextmanager
def running() -> Iterator[ScriptedServer]:
    """A server that runs until the block ends."""
    scripted = ScriptedServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scripted.headers.append(self.headers)
            found = self.path == "/v1/models"
            fails(200 if found else 404, json.dumps({"data": scripted.models}).encode())(self, {})

        def do_POST(self) -> None:
            scripted.headers.append(self.headers)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            try:
                scripted.play(self, body)
            except OSError:  # the client hung up
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        scripted.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield scripted
        finally:
            http.shutdown()
            thread.join()
