"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dicom import load_volume
from encoders.errors import ContextOverflow, ModelNotFound, RemoteError
from encoders.features import Source
from multimodal.backends import Region
from multimodal.messages import Image, Study
from pipelines.ct_report import CtReportPipeline
from tests.makers import FakeBackend
from tests.pipelines.cli_page import command_names, help_of, page

ROOT = Path(__file__).parent.parent.parent


class Recorder(FakeBackend):
    """Keeps whole conversations."""

    talks: Any = ()

    def generate(self, messages: Any, options: Any = None) -> Any:
        self.talks = (*self.talks, tuple(messages))
        return super().generate(messages, options)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The model behind every command."""
    source = Source("dicom", slice_index=11, position_mm=44.0)
    backend = Recorder(
        answers={"hello": "good day", "Transcribe": "No nodule.", "How large": "14 mm", "Why": "so",
                 "Left eff": "insertion: remove"},
        chances={"a right nodule": 0.87, "images? Left eff": 0.1},
        regions=(Region("nodule", "right", 0.9, source, (4.0, 6.0, 12.0, 20.0)),),
    )  # fmt: skip
    monkeypatch.setattr("multimodal.backends.load_backend", lambda *a, **k: backend)
    return backend


@pytest.fixture
def recording(tmp_path: Path, speech: np.ndarray) -> Path:
    file = tmp_path / "dictation.wav"
    with wave.open(str(file), "wb") as sound:
        sound.setparams((1, 2, 16000, len(speech), "NONE", ""))
        sound.writeframes((speech * 32767).astype("<i2").tobytes())
    return file


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report.txt"
    file.write_bytes("\ufeffFINDINGS: Left effusion.\r\n".encode())
    return file


def test_read_prints_the_verdict_for_people(
    run: Any, backend: Recorder, phantom_series: Path, report: Path
):
    code, out, err = run("read", phantom_series, "--report", report, "--ask", "Why?")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "The report and the images differ in 1 point."
    assert '     report     "Left effusion."' in lines
    assert "  right nodule, 14 mm, slice 12 of 24 (87% sure)" in lines
    assert lines[lines.index("Answer") + 1] == "  so"
    assert "not a medical device" in lines[-1]


def test_read_prints_the_reading_of_the_api_as_json(
    run: Any, backend: Recorder, phantom_series: Path, report: Path
):
    code, out, _ = run("read", phantom_series, "--report", report, "--json")
    told = json.loads(out)
    wanted = CtReportPipeline(backend)(phantom_series, "FINDINGS: Left effusion.").to_dict()
    assert code == 0
    assert {**told, "timings_s": 0} == {**wanted, "timings_s": 0}


def test_read_takes_the_report_from_stdin(run: Any, backend: Recorder, phantom_series: Path):
    code, out, _ = run("read", phantom_series, "--report", "-", "--json", stdin=b"No nodule.\n")
    assert code == 0
    assert json.loads(out)["report"] == "No nodule."


def test_read_takes_a_dictation(run: Any, backend: Recorder, phantom_series: Path, recording: Path):
    _, out, _ = run("read", phantom_series, "--dictation", recording, "--json")
    assert json.loads(out)["transcript"] == json.loads(out)["report"] == "No nodule."


def test_read_writes_the_same_reading_into_a_folder(
    run: Any, backend: Recorder, phantom_series: Path, tmp_path: Path
):
    folder = tmp_path / "new" / "out"
    code, out, err = run("read", phantom_series, "--out", folder, "--json")
    assert code == 0
    assert json.loads((folder / "reading.json").read_text(encoding="utf-8")) == json.loads(out)
    assert (folder / "reading.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "reading.json" in err


def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    run: Any, backend: Recorder, phantom_series: Path, report: Path
):
    code, out, err = run("read", phantom_series, "--out", report / "sub")
    assert (code, out) == (3, "")
    assert "output folder 'sub' cannot be made" in err
    assert backend.talks == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("read", "nowhere"), "'nowhere' does not exist"),
        (("read", "broken.zip"), "broken"),
        (("read", "notes.txt"), "no DICOM image found"),
        (("read", "empty"), "no DICOM image found"),
        (("read", "STUDY", "--report", "none.txt"), "report 'none.txt' does not exist"),
        (("read", "STUDY", "--report", "latin.txt"), "'latin.txt' is not UTF-8"),
        (("read", "STUDY", "--report", "empty"), "report 'empty' cannot be read"),
        (("read", "STUDY", "--dictation", "none.wav"), "'none.wav' does not exist"),
        (("read", "STUDY", "--dictation", "notes.txt"), "'notes.txt' cannot be decoded as audio"),
        (("transcribe", "none.wav"), "'none.wav' does not exist"),
        (("transcribe", "silent.wav"), "holds no sound"),
        (("info", "nowhere"), "'nowhere' does not exist"),
    ],
)
def test_bad_input_ends_with_3_and_one_line_that_names_it(
    run: Any, backend: Recorder, phantom_series: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    Path("broken.zip").write_bytes(b"PK\x03\x04 and no more")
    Path("latin.txt").write_bytes("Erguß links".encode("latin-1"))
    with wave.open("silent.wav", "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
    given = [phantom_series if a == "STUDY" else a for a in arguments]
    code, out, err = run(*given)
    assert (code, out) == (3, "")
    assert message in err
    assert err.startswith("crossread: ")
    assert len(err.splitlines()) == 1
    assert str(tmp_path) not in err


def test_a_report_on_stdin_that_is_no_text_is_bad_input(
    run: Any, backend: Recorder, phantom_series: Path
):
    code, _, err = run("read", phantom_series, "--report", "-", stdin=b"\xff\xfe\x00")
    assert code == 3
    assert "stdin is not UTF-8" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("read",), ("read", "x", "--nonsense"), ("nonsense",), ("chat", "--max-new-tokens", "many"),
        ("read", "x", "--sparsity", "1.5"), ("transcribe",), ("info",),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2(run: Any, arguments: tuple[str, ...]):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: crossread" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFound("no model at 'x'"), 4),
        (ContextOverflow("the prompt takes 9000 tokens"), 4),
        (RemoteError("'pacs' did not answer"), 5),
    ],
)
def test_model_and_remote_trouble_have_codes_of_their_own(
    run: Any, monkeypatch: pytest.MonkeyPatch, phantom_series: Path, error: Exception, code: int
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("multimodal.backends.load_backend", fail)
    for arguments in (("read", phantom_series), ("chat", "hello"), ("transcribe", "a.wav")):
        assert run(*arguments) == (code, "", f"crossread: {error}\n")


def test_chat_answers_one_prompt(run: Any, backend: Recorder, phantom_series: Path, tmp_path: Path):
    picture = tmp_path / "a.png"
    code, out, _ = run("chat", "hello", "--dicom", phantom_series, "--image", picture)
    assert (code, out.strip()) == (0, "good day")
    (talk,) = backend.talks
    assert talk[-1].parts[:2] == (Image(picture), Study(phantom_series))


def test_chat_prints_json(run: Any, backend: Recorder):
    _, out, _ = run("chat", "hello", "--json")
    told = json.loads(out)
    assert (told["text"], told["reason"], told["new_tokens"]) == ("good day", "stop", 1)


def test_a_conversation_remembers_its_turns_and_outlives_an_error(run: Any, backend: Recorder):
    heard = backend.generate

    def generate(messages: Any, options: Any = None) -> Any:
        if messages[-1].text == "long":
            raise ContextOverflow("the prompt takes 9000 tokens")
        return heard(messages, options)

    backend.generate = generate  # type: ignore[method-assign]
    code, out, err = run("chat", stdin=b"hello\n\nlong\nWhy?\n")
    assert code == 0
    assert [line.strip() for line in out.splitlines()] == ["good day", "so"]
    assert err == "crossread: the prompt takes 9000 tokens\n"
    assert [m.text for m in backend.talks[-1]] == ["hello", "good day", "Why?"]


def test_transcribe_prints_text_or_json(run: Any, backend: Recorder, recording: Path):
    assert run("transcribe", recording)[:2] == (0, "No nodule.\n")
    told = json.loads(run("transcribe", recording, "--json")[1])
    assert told["text"] == "No nodule."
    assert told["segments"] == [
        {"start_s": 0.0, "end_s": 2.0, "text": "No nodule.", "probability": None}
    ]


def test_info_tells_series_and_problems(run: Any, phantom_series: Path, tmp_path: Path):
    code, out, _ = run("info", phantom_series)
    assert code == 0
    assert out.startswith("* 1. CT chest, 24 x 64 x 48")
    told = json.loads(run("info", phantom_series, "--json")[1])
    volume = load_volume(phantom_series)
    assert told["series"][0]["num_slices"] == len(volume.voxels)
    (tmp_path / "notes.txt").write_text("hello")
    code, out, _ = run("info", tmp_path)
    assert code == 3
    assert "notes.txt" in out


def test_doctor_tells_what_the_engine_chose_and_why(run: Any, tiny_composite: Any, tmp_path: Path):
    for part in tiny_composite:
        part.save_pretrained(tmp_path)
    code, out, _ = run("doctor", "--model", tmp_path, "--objective", "ttft")
    assert code == 0
    assert "batching   continuous" in out
    told = json.loads(run("doctor", "--model", tmp_path, "--json")[1])
    assert {"objective", "slots", "chunk", "threads"} <= {c["what"] for c in told["choices"]}
    code, _, error = run("doctor", "--model", tmp_path, "--objective", "speed")
    assert code == 3
    assert "ttft, throughput, even" in error


def test_doctor_tells_that_a_server_is_not_its_to_judge(run: Any, model_server: Any):
    code, _, error = run("doctor", "--model", model_server.url)
    assert code == 2
    assert "run doctor beside the model" in error


def test_info_shows_no_identifier(run: Any, tmp_path: Path, phantom_series: Path):
    import pydicom

    secrets = {
        "PatientName": "Quux^Zelda", "PatientID": "MRN-778899", "PatientBirthDate": "19330211",
        "AccessionNumber": "ACC-4711", "ReferringPhysicianName": "Grault^Dr",
        "InstitutionName": "Waldo Clinic", "StudyID": "SID-31337", "StudyDate": "20190317",
        "SeriesDescription": "Plugh protocol", "StudyDescription": "Xyzzy study",
        "PatientAge": "086Y", "OtherPatientIDs": "OLD-1",
    }  # fmt: skip
    for file in list(phantom_series.iterdir())[:3]:
        data = pydicom.dcmread(file)
        for name, value in secrets.items():
            setattr(data, name, value)
        data.save_as(tmp_path / file.name)
    for options in ((), ("--json",)):
        _, out, err = run("--verbose", "info", tmp_path, *options)
        words = (out + err).lower()
        found = [v for v in secrets.values() if any(part.lower() in words for part in v.split("^"))]
        assert found == []
        assert str(pydicom.dcmread(file).SeriesInstanceUID) not in words


def test_every_option_tells_what_it_is_for():
    for name in command_names():
        text = help_of(name)
        options = re.findall(r"^  (--[a-z-]+)(?: <\S+>)?(.*)$", text, re.M)
        assert options
        bare = [option for option, rest in options if not rest.strip() and option not in text[-40:]]
        # click sets a help text that does not fit on the next line, further in
        assert not [o for o in bare if not re.search(rf"{o}[^\n]*\n {{10,}}\w", text)]


def test_the_documented_help_is_what_the_commands_say():
    wanted = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page() == wanted, "run: python -m tests.pipelines.cli_page > docs/cli.md"


@pytest.mark.slow
def test_a_saved_composite_reads_a_study_offline_in_a_process_of_its_own(
    tiny_composite: Any, phantom_series: Path, tmp_path: Path
):
    model, processor = tiny_composite
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    command = [
        sys.executable, "-m", "pipelines.cli", "read", str(phantom_series), "--report", "-",
        "--model", str(tmp_path / "model"), "--json",
    ]  # fmt: skip
    done = subprocess.run(
        command, input="There is a right nodule.", capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "model"
    assert done.stderr == ""
