"""Uploaded files: in OpenAI's forms, for a while, and nowhere told by name."""

from __future__ import annotations

import io
import logging
import stat
from pathlib import Path
from typing import Any

import openai
import pytest

from pipelines.server.failures import ApiError
from pipelines.server.settings import Settings
from pipelines.server.storage import Store
from tests.pipelines.server.running import Gated, serving


def test_the_official_client_uploads_lists_gets_and_deletes():
    with serving(Gated().open()) as server:
        client = server.client()
        first = client.files.create(file=("one.dcm", b"1234"), purpose="user_data")
        second = client.files.create(
            file=("two.dcm", b"12"), purpose="vision",
            expires_after={"anchor": "created_at", "seconds": 60},
        )  # fmt: skip
        assert (first.bytes, first.filename, first.purpose) == (4, "one.dcm", "user_data")
        assert first.expires_at - first.created_at == pytest.approx(3600, abs=1)
        assert second.expires_at - second.created_at == pytest.approx(60, abs=1)
        assert [f.id for f in client.files.list()] == [second.id, first.id]
        assert [f.id for f in client.files.list(order="asc", limit=1).data] == [first.id]
        assert [f.id for f in client.files.list(after=second.id).data] == [first.id]
        assert [f.id for f in client.files.list(purpose="vision")] == [second.id]
        assert client.files.retrieve(first.id).bytes == 4
        assert client.files.delete(first.id).deleted
        with pytest.raises(openai.NotFoundError, match="it may have expired"):
            client.files.retrieve(first.id)
        with pytest.raises(openai.BadRequestError, match="purpose must be one of"):
            client.files.create(file=("a", b"1"), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError, match="note is not supported"):
            client.files.create(file=("a", b"1"), purpose="vision", extra_body={"note": "x"})


def test_files_expire_and_take_no_more_room_than_allowed(tmp_path: Path):
    now = [1000.0]
    store = Store(tmp_path, Settings(keep_s=10, max_stored_mib=0.001), clock=lambda: now[0])

    def add(size: int, tenant: str = "a", keep_s: float | None = None) -> Any:
        return store.add(io.BytesIO(bytes(size)), tenant, "x", purpose="vision", keep_s=keep_s)

    first, soon, capped = add(400), add(400, keep_s=2), add(100, keep_s=10**6)
    with pytest.raises(ApiError, match="your files may take") as caught:
        add(400)
    assert caught.value.status == 413
    assert add(400, "b").num_bytes == 400
    now[0] += 5
    with pytest.raises(ApiError, match="no such file"):
        store.get("a", soon.id)
    assert store.get("a", first.id) == first
    now[0] += 5
    assert store.of("a") == []
    with pytest.raises(ApiError, match="no such file"):
        store.get("a", capped.id)
    store.sweep()
    assert list(tmp_path.iterdir()) == []


def test_replicas_that_share_a_folder_see_the_same_files(tmp_path: Path):
    folder = tmp_path / "shared"
    one, other = (Store(folder, Settings()) for _ in range(2))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # nobody else on the machine may look
    mine = one.add(io.BytesIO(b"abc"), "a", "x", purpose="vision", keep_s=None)
    assert other.get("a", mine.id) == mine
    assert other.path("a", mine.id).read_bytes() == b"abc"
    other.delete("a", mine.id)
    assert one.of("a") == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "file-", "file-" + "z" * 24, "reading-" + "0" * 24]
)
def test_a_name_is_never_a_path(tmp_path: Path, name: str):
    with pytest.raises(ApiError, match="no such file"):
        Store(tmp_path / "shelf", Settings()).get("a", name)


def test_names_of_files_reach_no_log_and_no_error(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, "pipelines")
    with serving(Gated().open()) as server:
        client = server.client()
        name = client.files.create(file=("Mustermann_Erika.png", b"x"), purpose="user_data").id
        part = {"type": "file", "file": {"file_id": name}}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": [part]}]
            )
        with server.http() as http:
            told = http.get("/metrics").text
    assert "Mustermann" not in f"{caught.value}{told}{caplog.text}"
