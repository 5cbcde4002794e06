"""Who is let in: counted at once, told when to come back, and every place given back."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from multimodal.backends import Usage
from pipelines.server.admission import Admission
from pipelines.server.app import Life, create_app
from pipelines.server.failures import ApiError
from pipelines.server.middleware import WORK_PATHS
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running, serving
from tests.waiting import wait_until


def post(server: Running, text: str = "hello", **more: Any) -> Any:
    with server.http() as http:
        return http.post("/v1/chat/completions", json=server.chat(text, **more))


def settings(**limits: Any) -> Settings:
    return Settings(**limits).fitted(8)


def test_places_are_counted_at_once_and_given_back():
    async def check() -> None:
        refused: list[str] = []
        admission = Admission(settings(max_running=2, max_waiting=3), refuse=refused.append)
        tickets = [admission.enter("a") for _ in range(5)]
        with pytest.raises(ApiError, match="all places are taken") as caught:
            admission.enter("a")
        assert (caught.value.status, refused) == (429, ["queue_full"])
        assert (admission.waiting, admission.running) == (5, 0)
        await tickets[0].start()
        await tickets[1].start()
        assert (admission.waiting, admission.running) == (3, 2)
        for ticket in tickets:
            ticket.leave()
        assert (admission.waiting, admission.running, admission.waiting_tokens) == (0, 0, 0)
        await admission.until_empty()

    asyncio.run(check())


def test_turns_come_in_the_order_of_coming():
    async def check() -> None:
        admission = Admission(settings(max_running=1, max_waiting=9))
        order: list[int] = []

        async def one(number: int) -> None:
            ticket = admission.enter("a")
            await ticket.start()
            order.append(number)
            await asyncio.sleep(0)
            ticket.leave()

        await asyncio.gather(*(one(n) for n in range(8)))
        assert order == list(range(8))

    asyncio.run(check())


def test_retry_after_is_the_backlog_at_the_measured_rate(monkeypatch: pytest.MonkeyPatch):
    async def check() -> None:
        now = [0.0]
        monkeypatch.setattr("pipelines.server.admission.monotonic", lambda: now[0])
        admission = Admission(settings(max_running=2, max_waiting=6))
        first = admission.enter("a")
        now[0] = 1.0
        await first.start()
        now[0] = 5.0  # four seconds at work
        first.leave()
        waiting = [admission.enter("a") for _ in range(8)]
        with pytest.raises(ApiError) as caught:
            admission.enter("a")
        assert caught.value.headers["Retry-After"] == "18"  # (8 + 1) x 4 s on two places
        for ticket in waiting:
            ticket.leave()

    asyncio.run(check())


def test_prompts_that_take_too_long_to_read_are_refused_where_others_wait():
    async def check() -> None:
        admission = Admission(settings(max_prefill_s=10, max_waiting=9))
        first, second, third = (admission.enter("a") for _ in range(3))
        first.weigh(10**9)  # nothing was measured yet, and one alone must never be shut out
        first.leave()
        second.learn(Usage(1000, 1, 0, {"prefill": 10.0}))  # 100 tokens a second
        second.weigh(900)
        with pytest.raises(ApiError, match="take more than 10 s to read") as caught:
            third.weigh(200)
        assert caught.value.status == 429
        third.weigh(100)
        assert admission.waiting_tokens == 1000

    asyncio.run(check())


def test_a_tenant_gets_its_share_where_several_share_the_server():
    async def check() -> None:
        shared = Admission(settings(max_running=4, max_waiting=8), shared=True)
        mine = [shared.enter("a"), shared.enter("a")]  # a quarter of eight
        with pytest.raises(ApiError, match="this key has 2 requests in flight"):
            shared.enter("a")
        shared.enter("b")
        mine[0].leave()
        shared.enter("a")
        alone = Admission(settings(max_running=4, max_waiting=8))
        assert [alone.enter("") for _ in range(12)]

    asyncio.run(check())


def test_who_waits_too_long_gets_504():
    async def check() -> None:
        admission = Admission(settings(max_running=1, max_waiting=3, queue_s=0.01))
        first, second = admission.enter("a"), admission.enter("a")
        await first.start()
        with pytest.raises(ApiError, match=r"no turn within 0\.01 s") as caught:
            await second.start()
        assert caught.value.status == 504
        second.leave()
        assert (admission.running, admission.waiting) == (1, 0)

    asyncio.run(check())


def test_overload_is_refused_before_any_work_and_nobody_accepted_is_lost():
    """S6: 300 at once where 100 may wait; nothing of a refused request reaches the model."""
    backend = Gated()
    with (
        serving(backend, Settings(max_running=8, max_waiting=100)) as server,
        server.http() as http,
    ):
        with ThreadPoolExecutor(300) as pool:
            answers = [
                pool.submit(http.post, "/v1/chat/completions", json=server.chat(f"hello {i}"))
                for i in range(300)
            ]
            wait_until(lambda: sum(a.done() for a in answers) == 192, "192 are refused")
            assert http.get("/healthz").status_code == 200
            assert server.metric("num_requests_waiting") == 100
            assert backend.begun == 8
            backend.open()
            done = [answer.result() for answer in answers]
        statuses = [answer.status_code for answer in done]
        assert (statuses.count(200), statuses.count(429)) == (108, 192)
        assert backend.begun == 108  # nothing of a refused request was looked at
        refusal = next(a for a in done if a.status_code == 429)
        assert int(refusal.headers["Retry-After"]) >= 1
        assert refusal.json()["error"]["code"] == "queue_full"
        assert server.metric("admission_rejections_total", reason="queue_full") == 192
        assert server.metric("request_success_total") == 108


def test_a_probe_does_not_wait_for_a_crowd_that_came_before_it():
    """Of 300 in one turn of the loop each used to be looked at before `/healthz`: 0.1 s."""
    answered: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def ask(app: Any, path: str) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered.append(path)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        await app(scope, receive, send)

    async def check() -> None:
        app = create_app(Life(Gated, Settings()))
        await asyncio.gather(*(ask(app, path) for path in ["/v1/models"] * 300 + ["/healthz"]))

    asyncio.run(check())
    assert answered.count("/v1/models") == 300
    assert answered.index("/healthz") < 10


def test_all_work_is_refused_before_it_is_routed():
    """Whoever adds a route that takes a place adds it there; files and cancelling take none."""
    routes = create_app(Life(Gated, Settings())).routes
    posts = {r.path for r in routes if "POST" in (getattr(r, "methods", None) or ())}  # type: ignore[attr-defined]
    others = {"/v1/files", "/v1/embeddings", "/v1/readings/{name}/cancel"}
    assert set(WORK_PATHS) == posts - others


def test_a_full_server_refuses_before_the_body_is_read():
    backend = Gated()
    with (
        serving(backend, Settings(max_running=1, max_waiting=1)) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        inside = [pool.submit(post, server) for _ in range(2)]
        server.wait_until_inside(running=1, waiting=1)
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/json\r\nContent-Length: 60000000\r\n\r\n"
            )  # and not one byte of the body
            assert b"429" in raw.recv(4096)
        backend.open()
        assert [a.result().status_code for a in inside] == [200, 200]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_gets_413(chunked: bool):
    with serving(Gated().open(), Settings(max_body_mib=0.01)) as server, server.http() as http:
        body = json.dumps(server.chat("x" * 20000)).encode()
        given = iter([body[:9000], body[9000:]]) if chunked else body
        answer = http.post("/v1/chat/completions", content=given)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_media_over_a_limit_are_refused_by_their_headers(tmp_path: Any, phantom_series: Any):
    """A small file may claim a large picture; it is refused without being decoded."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def claims(size: int) -> bytes:
        head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        )

    backend = Gated().open()
    with serving(backend, Settings(max_frames=10, max_audio_s=5, max_item_mib=1)) as server:
        client = server.client()

        def refused(part: Any) -> str:
            answer = post_parts(server, part)
            assert answer.status_code == 413, answer.text
            return answer.json()["error"]["message"]

        for size in (8000, 30000):  # beyond our limit, and beyond PIL's own
            (tmp_path / "bomb.png").write_bytes(claims(size))
            name = client.files.create(file=tmp_path / "bomb.png", purpose="user_data").id
            assert "megapixels" in refused({"type": "file", "file": {"file_id": name}})
        import shutil

        shutil.make_archive(str(tmp_path / "study"), "zip", phantom_series)
        name = client.files.create(file=tmp_path / "study.zip", purpose="user_data").id
        assert "24 slices; at most 10" in refused({"type": "file", "file": {"file_id": name}})
        from scipy.io import wavfile

        wavfile.write(tmp_path / "long.wav", 8000, bytearray_to_silence(6))
        name = client.files.create(file=tmp_path / "long.wav", purpose="user_data").id
        assert "6 s; at most 5 s" in refused({"type": "file", "file": {"file_id": name}})
        heavy = {"data": "A" * 2_000_000, "format": "wav"}
        assert "more than 1 MiB" in refused({"type": "input_audio", "input_audio": heavy})
    assert backend.begun == 0


def bytearray_to_silence(seconds: int) -> Any:
    import numpy as np

    return np.zeros(8000 * seconds, np.int16)


def post_parts(server: Running, *parts: Any) -> Any:
    messages = [{"role": "user", "content": list(parts)}]
    with server.http() as http:
        return http.post("/v1/chat/completions", json={"model": "fake", "messages": messages})


def test_a_prompt_that_does_not_fit_gets_400_with_the_counted_tokens():
    from encoders.errors import ContextOverflow

    class Small(Gated):
        def estimate(self, messages: Any, options: Any = None) -> Any:
            raise ContextOverflow("the prompt takes 9000 tokens, but fake holds 4096")

    with serving(Small()) as server:
        answer = post(server)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], "9000 tokens" in error["message"]) == ("context_length_exceeded", True)
