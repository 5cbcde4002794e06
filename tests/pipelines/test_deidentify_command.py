"""`crossread deidentify`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from typer.testing import CliRunner

from encoders.errors import InvalidOption, MissingInput, UnsafeOutput
from pipelines.cli import app
from tests.makers import write_blocks


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, ["deidentify", *map(str, arguments)])
    return done.exit_code, done.stdout, done.exception


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_blocks(tmp_path / "in", shape=(3, 8, 8))
    return tmp_path / "in"


def test_a_study_is_copied_under_a_key_and_the_report_is_json(study: Path, tmp_path: Path):
    (tmp_path / "key").write_bytes(b"0123456789abcdef0123456789abcdef\n")
    key = ("--key-file", tmp_path / "key")
    code, out, _ = run(study, tmp_path / "a", *key, "--json", "--retain", "device")
    assert code == 0
    assert json.loads(out)["num_written"] == 3
    assert json.loads(out)["options"] == ["device"]
    run(study, tmp_path / "b", *key)
    names = [sorted(f.name for f in (tmp_path / d).rglob("*.dcm")) for d in "ab"]
    assert names[0] == names[1]
    assert pydicom.dcmread(next((tmp_path / "a").rglob("*.dcm"))).PatientIdentityRemoved == "YES"


def test_nothing_written_is_told_by_the_exit_code(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    code, out, _ = run(tmp_path / "in", tmp_path / "out")
    assert code == 3
    assert "0 files written, 1 left out" in out
    assert "NOT_DICOM" in out


def test_wrong_use_is_refused_before_anything_is_written(study: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert isinstance(run(study, study / "out")[2], UnsafeOutput)
    assert isinstance(run(study, out, "--retain", "everything")[2], InvalidOption)
    assert isinstance(run(study, out, "--key-file", tmp_path / "lost")[2], MissingInput)
    assert not out.exists()
