"""Keys and tenants: who is let in, and that nobody sees another's files and readings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from encoders.errors import InputError, InvalidOption, MissingInput
from pipelines.server.keys import Keys
from pipelines.server.process import run_server
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running, serving


def line(tenant: str, key: str) -> str:
    return f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{line('north', 'n1')}{line('north', 'n2')}{line('south', 's1')}")
    return Keys.read(file)


@pytest.fixture
def server(keys: Keys) -> Iterator[Running]:
    with serving(Gated().open(), keys=keys) as running:
        yield running


def test_each_key_leads_to_its_tenant(keys: Keys):
    assert [keys.tenant_of(k) for k in ("n1", "n2", "s1", "", "x")] == [
        "north", "north", "south", None, None
    ]  # fmt: skip
    assert keys.num_tenants == 2


@pytest.mark.parametrize("text", ["", "# nobody\n", "north:secret", f"a b:{'0' * 64}", "0" * 64])
def test_a_key_file_that_lets_in_nobody_or_holds_a_plain_key_is_refused(tmp_path: Path, text: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match=r"holds no key|is not tenant:sha256") as caught:
        Keys.read(tmp_path / "keys")
    assert "secret" not in str(caught.value)
    with pytest.raises(MissingInput, match="cannot be read"):
        Keys.read(tmp_path / "none")


def test_without_a_valid_key_only_the_state_is_told(server: Running):
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=server.chat())
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/v1/models", "/v1/files", "/openapi.json", "/none"):
            assert http.get(path).status_code == 401
        for path in ("/healthz", "/readyz", "/metrics"):
            assert http.get(path).status_code == 200
    with pytest.raises(openai.AuthenticationError, match="no valid key"):
        server.client("wrong").models.list()
    assert server.client("n2").models.list().data


def test_files_of_one_tenant_are_unknown_to_another(server: Running):
    north, south = server.client("n1"), server.client("s1")
    mine = north.files.create(file=("a.txt", b"hello"), purpose="user_data")
    assert [f.id for f in server.client("n2").files.list()] == [mine.id]
    assert list(south.files.list()) == []
    for act in (south.files.retrieve, south.files.delete):
        with pytest.raises(openai.NotFoundError, match="no such file"):
            act(mine.id)
    part = {"type": "file", "file": {"file_id": mine.id}}
    with pytest.raises(openai.NotFoundError, match="no such file"):
        south.chat.completions.create(model="fake", messages=[{"role": "user", "content": [part]}])
    assert north.files.retrieve(mine.id).id == mine.id


def test_a_server_without_keys_listens_to_this_machine_only():
    with pytest.raises(InvalidOption, match="give --keys"):
        run_server(Gated, Settings(), host="0.0.0.0")
