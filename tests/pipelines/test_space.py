"""The Space: what is built is whole, fits its front matter, starts, and is what is pushed."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
import venv
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import metadata_load
from huggingface_hub.errors import HfHubHTTPError

from encoders.errors import Refused, UnsafeOutput
from pipelines.space import ROOMS, _sources, build, push
from pipelines.ui.settings import Settings
from tests.served import ROOT, serve_in

CONFIG = ROOT / "spaces_config" / "space"


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "space"
    build(folder)
    return folder


def names_in(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(line.partition("==")[0]): line for line in lines if "==" in line}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def test_a_checkout_in_a_hidden_folder_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One under a folder with a dot gave a Space of three files."""
    root = tmp_path / ".cache" / "crossread"
    kept = ("encoders/a.py", "multimodal/demo/model.safetensors")
    for name in (*kept, "pipelines/.b/c.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    monkeypatch.setattr("pipelines.space.ROOT", root)
    found = {f.relative_to(root).as_posix() for f in _sources()}
    assert found == {"app.py", "LICENSE", "CHANGELOG.md", *kept}


def test_the_front_matter_says_what_a_space_needs_and_agrees_with_the_project(space: Path):
    said = metadata_load(space / "README.md")
    assert {"title", "license", "models", "tags", "suggested_hardware"} <= set(said)
    assert said["sdk"] == "gradio"
    assert f"gradio=={said['sdk_version']}" == pins()["gradio"]
    assert said["python_version"] == "3.11"
    assert said["startup_duration_timeout"] == "30m"
    assert (space / said["app_file"]).is_file()
    assert len(said["short_description"]) <= 60  # the Hub's own limit


def test_the_spaces_page_tells_every_variable():
    told = set(re.findall(r"CROSSREAD_[A-Z_]+", (CONFIG / "README.md").read_text("utf-8")))
    assert told == {f"CROSSREAD_{field.name.upper()}" for field in fields(Settings)}


def test_the_requirements_are_the_projects_at_the_versions_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["mcp"]]
    names = [re.match(r"[\w.-]+", line)[0] for line in wanted]  # type: ignore[index]
    listed = (CONFIG / "requirements.txt").read_text("utf-8").splitlines()
    assert listed == [pins()[normal(name)] for name in names]


def test_every_tracked_file_of_the_rooms_is_built_unchanged_and_nothing_else(space: Path):
    listed = subprocess.run(
        ["git", "ls-files", *ROOMS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if listed.returncode:
        pytest.skip("needs a git checkout to know which files are ours")
    tracked = set(listed.stdout.split())
    built = {name for name in names_in(space) if name.split("/")[0] in ROOMS}
    assert tracked - built == set()
    assert not [name for name in built if "__pycache__" in name or "/." in name]
    assert not [n for n in built & tracked if (space / n).read_bytes() != (ROOT / n).read_bytes()]
    beside = {name.split("/")[0] for name in names_in(space)} - set(ROOMS)
    assert beside == {
        "app.py", "LICENSE", "CHANGELOG.md", "README.md", "requirements.txt", "packages.txt",
        "Dockerfile", ".gitattributes",
    }  # fmt: skip


def test_every_binary_file_goes_by_lfs(space: Path):
    lines = (space / ".gitattributes").read_text("utf-8").splitlines()
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    binary = [f for f in space.rglob("*") if f.is_file() and b"\0" in f.read_bytes()]
    assert any(f.name == "model.safetensors" for f in binary)
    assert not [f for f in binary if not any(fnmatch.fnmatch(f.name, p) for p in patterns)]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UnsafeOutput, match="is not empty"):
        build(tmp_path)
    assert names_in(tmp_path) == {"mine.txt"}


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`; remembers what it was asked."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.pushed: set[str] = set()
        self.upload: dict[str, Any] = {}

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.made = {"repo_id": repo_id, **options}
        return f"https://hub.example/spaces/{repo_id}"

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        self.pushed, self.upload = names_in(folder_path), options


def test_what_is_pushed_is_what_is_built(space: Path, tmp_path: Path):
    hub = FakeHub()
    address = push("someone/crossread", tmp_path / "space", private=True, api=hub)
    assert address == "https://hub.example/spaces/someone/crossread"
    assert hub.made == {
        "repo_id": "someone/crossread", "repo_type": "space", "space_sdk": "gradio",
        "private": True, "exist_ok": True,
    }  # fmt: skip
    assert hub.pushed == names_in(space)
    assert hub.upload["repo_type"] == "space"
    assert hub.upload["delete_patterns"] == "*"


def test_the_calls_of_the_hub_are_ones_that_it_knows():
    """The stand-in takes anything; the real signatures do not."""
    import inspect

    from huggingface_hub import HfApi

    for name, options in (
        ("create_repo", ("repo_type", "space_sdk", "private", "exist_ok")),
        ("upload_folder", ("repo_id", "repo_type", "folder_path", "delete_patterns")),
    ):
        assert set(options) <= set(inspect.signature(getattr(HfApi, name)).parameters)


def test_a_hub_that_refuses_is_told_with_what_to_do(tmp_path: Path):
    def refuse(*_: Any, **__: Any) -> None:
        request = httpx.Request("POST", "https://hub.example")
        raise HfHubHTTPError("no", response=httpx.Response(401, request=request))

    hub = SimpleNamespace(create_repo=refuse)
    with pytest.raises(Refused, match="status 401; log in with `hf auth login`"):
        push("someone/crossread", tmp_path / "space", api=hub)


def opens(url: str) -> str:
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert answer.status == 200
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_the_built_folder_alone_starts_as_a_space_starts_it(space: Path):
    """By its environment, with nothing of the checkout on the path."""
    for url in serve_in(space, sys.executable):
        assert "CrossRead" in opens(url)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not os.environ.get("CROSSREAD_TEST_SPACE"),
    reason="installs torch afresh: make test-space",
)
def test_the_space_starts_in_a_fresh_environment_of_its_own_requirements(
    space: Path, tmp_path: Path
):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = ["-m", "pip", "install", "-q", "-r", str(space / "requirements.txt")]
    subprocess.run([str(python), *install], check=True)
    subprocess.run([str(python), "-m", "pip", "check"], check=True)
    for url in serve_in(space, str(python)):
        assert "CrossRead" in opens(url)
