"""Every example runs: on tiny random parts always, on the shipped sample where it is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from multimodal.backends import DEMO

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
needs_demo = pytest.mark.skipif(
    not (DEMO / "model.safetensors").is_file() or not (DEMO / "sample").is_dir(),
    reason="needs the demo checkpoint and its sample (make train-demo)",
)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def saved(tiny_composite: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random composite in a folder."""
    folder = tmp_path_factory.mktemp("saved")
    for part in tiny_composite:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What examples write goes to a folder of the test."""
    monkeypatch.chdir(tmp_path)


def test_every_example_tells_how_to_run_it_and_stays_short():
    assert len(EXAMPLES) >= 4
    for file in EXAMPLES:
        text = file.read_text(encoding="utf-8")
        assert f"python examples/{file.name}" in text
        assert len(text.splitlines()) <= 90


def test_read_one_study(saved: str, phantom_series: Path, capsys: pytest.CaptureFixture[str]):
    Path("report.txt").write_text("No nodule.", encoding="utf-8")
    load("read_one_study").main(phantom_series, Path("report.txt"), saved)
    printed = capsys.readouterr().out
    assert "report" in printed.splitlines()[0].lower()
    assert Path("reading.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_read_many(saved: str, phantom_series: Path, capsys: pytest.CaptureFixture[str]):
    studies = Path("studies")
    studies.mkdir()
    (studies / "a").symlink_to(phantom_series)
    (studies / "a.txt").write_text("No nodule.", encoding="utf-8")
    (studies / "b.zip").write_bytes(b"PK\x03\x04 and no more")
    (studies / "c").symlink_to(phantom_series)
    load("read_many").main(studies, saved)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(line) for line in lines] == [
        ["agreement", "discrepancies"], ["failed", "why"], ["agreement", "discrepancies"],
    ]  # fmt: skip
    assert lines[0]["agreement"] in ("agrees", "disagrees")
    assert lines[2]["agreement"] == "no report"


def test_compose_your_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    load("compose_your_own").main(tmp_path / "parts")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("weights")
    assert printed[1].startswith("answer:")


def test_chat_with_everything_encodes_once(
    saved: str, phantom_series: Path, capsys: pytest.CaptureFixture[str]
):
    load("chat_with_everything").main(phantom_series, saved)
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "media encoded" in line] == [
        "3 media encoded", "0 media encoded",
    ]  # fmt: skip


@needs_demo
@pytest.mark.slow
@pytest.mark.parametrize("name", ["read_one_study", "chat_with_everything"])
def test_examples_run_on_the_shipped_sample_as_they_stand(name: str):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
