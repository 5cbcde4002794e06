"""A folder of studies becomes one line each: whatever is killed or torn, nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encoders.errors import InputError, InvalidOption, MissingInput, Unreachable, UnsafeOutput
from pipelines import overnight
from pipelines.casebook import find_cases
from pipelines.cli import app
from pipelines.ct_report import CtReportPipeline
from pipelines.overnight import Terms, read_folder
from tests.makers import FakeBackend
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


@pytest.fixture
def night(phantom_series: Path, tmp_path: Path) -> Path:
    """Four studies, one of them broken: two folders, a zip with report and recording, no DICOM."""
    folder = tmp_path / "night"
    for name in ("alpha", "beta"):
        shutil.copytree(phantom_series, folder / name)
    (folder / "alpha" / "report.txt").write_text("There is a nodule in the left lung.")
    with zipfile.ZipFile(folder / "gamma.zip", "w") as archive:
        for file in phantom_series.iterdir():
            archive.write(file, file.name)
    (folder / "gamma.txt").write_text("No nodule.")
    (folder / "omega").mkdir()
    (folder / "omega" / "readme.txt").write_text("no DICOM here")
    (folder / "notes.md").write_text("belongs to nobody")
    return folder


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def names_of(file: Path) -> list[str]:
    return sorted(line["case"] for line in lines_of(file)[1:])


def test_every_study_gets_one_line_and_a_broken_one_an_error(night: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    done = read_folder(CtReportPipeline(FakeBackend()), night, out, terms=Terms(question="Why?"))
    assert names_of(out) == ["alpha", "beta", "gamma.zip", "omega"]
    by_name = {line["case"]: line for line in lines_of(out)[1:]}
    assert by_name["omega"]["error"]["type"] == "NotDicom"
    assert by_name["alpha"]["reading"]["report"] == "There is a nodule in the left lung."
    assert by_name["gamma.zip"]["reading"]["report"] == "No nodule."
    assert not [w for w in by_name["alpha"]["reading"]["warnings"] if w["code"] == "NOT_DICOM"]
    assert by_name["beta"]["reading"]["agreement"] == "no report"
    assert by_name["beta"]["reading"]["answer"] == "no findings"
    assert (done.studies, done.read, done.failed, done.ignored_files) == (4, 4, 1, 1)
    assert sum(done.agreement.values()) == 3
    settings = lines_of(out)[0]["settings"]
    assert (settings["model"], settings["question"]) == ("fake", "Why?")


def test_a_second_run_reads_nothing_again(night: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    read_folder(CtReportPipeline(FakeBackend()), night, out)
    before, fake = out.read_bytes(), FakeBackend()
    done = read_folder(CtReportPipeline(fake), night, out)
    assert (done.read, done.done_before, done.studies, done.failed) == (0, 4, 4, 1)
    assert fake.asked == []
    assert out.read_bytes() == before


def test_a_reading_that_json_cannot_hold_costs_its_own_line(night: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    nan = FakeBackend(answers={"leave out": "omission: X."}, chances={"leave out": float("nan")})
    done = read_folder(CtReportPipeline(nan), night, out)
    by_name = {line["case"]: line for line in lines_of(out)[1:]}
    assert by_name["alpha"]["error"]["type"] == "ValueError"
    assert by_name["beta"]["reading"]["agreement"] == "no report"
    assert done.failed == 3


def test_results_of_other_settings_are_not_mixed(night: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    read_folder(CtReportPipeline(FakeBackend()), night, out)
    with pytest.raises(InvalidOption, match="begun with another question; go on as"):
        read_folder(CtReportPipeline(FakeBackend()), night, out, terms=Terms(question="Why?"))


def test_wherever_the_file_is_cut_it_is_healed(phantom_series: Path, tmp_path: Path) -> None:
    """Every byte at which a power cut could have ended it, in a file of two short lines."""
    from pipelines.journal import Journal

    file = tmp_path / "journal.jsonl"
    with Journal(file, {"model": "é"}, "case") as journal:
        journal.add({"case": "a", "value": "ß"})
        journal.add({"case": "b", "value": 1})
    whole = file.read_bytes()
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        with Journal(file, {"model": "é"}, "case") as journal:
            for line in ({"case": "a", "value": "ß"}, {"case": "b", "value": 1}):
                if line["case"] not in journal.done:
                    journal.add(line)
        assert file.read_bytes() == whole, cut


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    from pipelines.journal import Journal

    for text in ("precious", "precious\n", '{"a": 1}\n', "[1]\n"):
        file = tmp_path / "file"
        file.write_text(text)
        with pytest.raises(UnsafeOutput, match="not a file of results and is left as it is"):
            Journal(file, {}, "case")
        assert file.read_text() == text


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    from pipelines.journal import Journal

    file = tmp_path / "journal.jsonl"
    with (
        Journal(file, {}, "case"),
        pytest.raises(UnsafeOutput, match="another run is writing"),
    ):
        Journal(file, {}, "case")


KILLED = """
    import os, sys
    from pathlib import Path
    from pipelines.ct_report import CtReportPipeline
    from pipelines.overnight import read_folder
    from tests.makers import FakeBackend

    class Stuck(FakeBackend):
        studies = 0
        def novelty(self, study):
            Stuck.studies += 1
            if Stuck.studies == 3:
                os.write(1, b"third\\n")
                sys.stdin.read()  # until it is killed
            return super().novelty(study)

    read_folder(CtReportPipeline(Stuck()), Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
"""


def test_a_run_that_is_killed_goes_on_with_nothing_lost_and_nothing_twice(
    night: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(night), str(out)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"third\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert names_of(out) == ["alpha", "beta"]
    with out.open("ab") as file:
        file.write(b'{"case": "gamma.zip", "reading": {"find')  # as if killed while it wrote
    fake = FakeBackend()
    done = read_folder(CtReportPipeline(fake), night, out)
    assert (done.done_before, done.read) == (2, 2)
    assert names_of(out) == ["alpha", "beta", "gamma.zip", "omega"]
    fresh = tmp_path / "fresh.jsonl"
    read_folder(CtReportPipeline(FakeBackend()), night, fresh)
    assert timeless_lines(out) == timeless_lines(fresh)


def timeless_lines(file: Path) -> list[dict[str, Any]]:
    lines = sorted(lines_of(file), key=lambda line: line.get("case", ""))
    return [timeless(line) for line in lines]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    if "reading" in line:
        line["reading"].pop("timings_s")
    return line


def test_a_model_that_runs_one_by_one_gets_one_study_at_a_time(
    night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    kept = overnight.run_at_once

    def noted(inputs: Any, run: Any, what: str, workers: int) -> Any:
        asked.append(workers)
        return kept(inputs, run, what, workers)

    monkeypatch.setattr(overnight, "run_at_once", noted)
    for number, why in enumerate(("", "it has recurrent states")):
        fake = FakeBackend()
        able = replace(fake.capabilities(), one_by_one=why)
        monkeypatch.setattr(fake, "capabilities", lambda able=able: able)
        read_folder(CtReportPipeline(fake), night, tmp_path / f"{number}.jsonl")
    assert asked == [4, 1]


class Meeting(FakeBackend):
    """Answers only once two studies are under way at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2)

    def novelty(self, study: Any) -> Any:
        self.both.wait(timeout=PATIENCE_S)
        return super().novelty(study)


def test_workers_read_several_studies_at_once(night: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    shutil.rmtree(night / "omega")
    (night / "gamma.zip").unlink()
    read_folder(CtReportPipeline(Meeting()), night, out, workers=2)
    assert [("reading" in line) for line in lines_of(out)[1:]] == [True, True]
    with pytest.raises(InvalidOption, match="workers is 0; use 1 or more"):
        read_folder(CtReportPipeline(FakeBackend()), night, out, workers=0)


class Gone(FakeBackend):
    """A server that goes away with the second study."""

    studies = 0

    def novelty(self, study: Any) -> Any:
        self.studies += 1
        if self.studies > 1:
            raise Unreachable("nobody answers at gpu.example.org; is it running?")
        return super().novelty(study)


def test_a_server_that_is_gone_stops_the_batch_instead_of_failing_every_study(
    night: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    with pytest.raises(Unreachable, match="nobody answers"):
        read_folder(CtReportPipeline(Gone()), night, out, workers=1)
    assert names_of(out) == ["alpha"]
    assert read_folder(CtReportPipeline(FakeBackend()), night, out).read == 3


def test_a_manifest_names_studies_reports_and_questions(night: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text(
        "study,report,report_file,question\n"
        'beta,"No nodule, no effusion.",,\n'
        "alpha,,alpha/report.txt,Is it large?\n"
        "nowhere,,,\n"
    )
    out = tmp_path / "results.jsonl"
    done = read_folder(CtReportPipeline(FakeBackend()), night, out, manifest=manifest)
    by_name = {line["case"]: line for line in lines_of(out)[1:]}
    assert by_name["beta"]["reading"]["report"] == "No nodule, no effusion."
    assert by_name["alpha"]["reading"]["answer"] == "no findings"
    assert by_name["nowhere"]["error"]["type"] == "MissingInput"
    assert (done.studies, done.failed) == (3, 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("folder\nalpha\n", "the columns of a manifest are study, .*'folder' is none of them"),
        ("report\nNo nodule.\n", "the study column is missing"),
        ("study\nalpha\nbeta\nalpha\n", "lines 2 and 4 of the manifest name the same study"),
        ("study\n../elsewhere\n", "line 2 of the manifest leads out of the folder"),
        ("study,report\nalpha,No nodule, no effusion.\n", "line 2 .* another number of fields"),
        ("study,report,report_file\nalpha,Fine.,a.txt\n", "line 2 of the manifest gives two"),
        ("study,report\n,Fine.\n", "line 2 of the manifest names no study"),
        ("study\n", "holds no studies"),
    ],
)
def test_a_manifest_that_cannot_be_followed_is_refused_with_its_line(
    night: Path, tmp_path: Path, text: str, why: str
) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text(text)
    with pytest.raises(InputError, match=why):
        find_cases(night, manifest)


def test_a_folder_without_studies_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no studies: each must be a sub-folder"):
        find_cases(tmp_path)
    with pytest.raises(MissingInput, match="'none' is no folder"):
        find_cases(tmp_path / "none")
    with pytest.raises(MissingInput, match=r"manifest 'x\.csv' cannot be read"):
        find_cases(tmp_path, tmp_path / "x.csv")


def test_a_recording_lies_in_the_folder_or_beside_the_archive(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "dictation.flac").touch()
    (tmp_path / "b.tar.gz").touch()
    (tmp_path / "b.mp3").touch()
    (tmp_path / ".hidden").mkdir()
    book = find_cases(tmp_path)
    assert [(e.name, e.dictation) for e in book.entries] == [
        ("a", tmp_path / "a" / "dictation.flac"), ("b.tar.gz", tmp_path / "b.mp3"),
    ]  # fmt: skip
    assert book.num_ignored == 0


def test_the_command_reads_a_folder_with_the_demo(tmp_path: Path) -> None:
    """The shipped sample twice, at once, beside a folder of nothing: exit code 3, a line each."""
    sample = ROOT / "multimodal" / "demo" / "sample"
    night, out = tmp_path / "night", tmp_path / "results.jsonl"
    for name in ("good", "same"):
        shutil.copytree(sample / "study", night / name)
        shutil.copy(sample / "report.txt", night / name / "report.txt")
    (night / "empty").mkdir()
    command = ["read", "--batch", str(night), "--out", str(out), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 3
    summary = json.loads(done.stdout)
    assert (summary["studies"], summary["read"], summary["failed"]) == (3, 3, 1)
    assert summary["agreement"] == {"disagrees": 2}
    by_name = {line["case"]: timeless(line) for line in lines_of(out)[1:]}
    good, same = by_name["good"]["reading"], by_name["same"]["reading"]
    assert len(good["discrepancies"]) == 2
    for reading in (good, same):
        reading.pop("usage")  # what one encoded, the other found
    assert good == same
    assert by_name["empty"]["error"]["type"] == "NotDicom"
    again = CliRunner().invoke(app, command[:-1])
    assert again.stdout.startswith("3 studies: 0 read now, 3 before\n  2 disagrees\n  1 could not")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["read"], "name a STUDY"),
        (["read", "x", "--workers", "2"], "name a STUDY, or a folder of studies with --batch"),
        (["read", "--batch", "x"], "--batch needs --out"),
        (["read", "x", "--batch", "y", "--out", "z"], "leave out STUDY"),
        (["read", "--batch", "y", "--out", "z", "--dicom"], "leave out --dicom"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], why: str) -> None:
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert why in done.stderr
