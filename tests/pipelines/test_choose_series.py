"""Another series than the default, by number, key or UID, at every door that opens a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest

from encoders.dicom import load_volume, scan
from encoders.errors import InvalidMessage, MissingInput
from encoders.features import Source
from multimodal.backends import Region
from multimodal.messages import Study
from pipelines.ct_report import Case, CtReportPipeline
from tests import makers
from tests.archive import Orthanc
from tests.pipelines.test_cli import Recorder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One study of two series: the larger opens by default."""
    for name, size in (("large", 20), ("small", 12)):
        makers.write_blocks(tmp_path / "study" / name, shape=(size, 48, 40))
    uid = pydicom.dcmread(next((tmp_path / "study/large").iterdir())).StudyInstanceUID
    for file in (tmp_path / "study/small").iterdir():
        header = pydicom.dcmread(file)
        header.StudyInstanceUID, header.SeriesNumber = uid, 2
        header.save_as(file)
    return tmp_path / "study"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    source = Source("dicom", slice_index=3, position_mm=0.0)
    backend = Recorder(
        answers={"hello": "good day"}, chances={"a right nodule": 0.9},
        regions=(Region("nodule", "right", 0.9, source, (4.0, 6.0, 12.0, 20.0)),),
    )  # fmt: skip
    monkeypatch.setattr("multimodal.backends.load_backend", lambda *a, **k: backend)
    return backend


def _small(study: Path) -> Any:
    return next(s for s in scan(study).series if len(s.files) == 12)


def test_a_series_is_chosen_by_number_key_or_uid(study: Path) -> None:
    found = scan(study)
    small = _small(study)
    number = found.series.index(small) + 1
    assert found.choose() is found.default() is not small
    for wanted in (number, str(number), small.key, small.files[0].series_uid):
        assert found.choose(wanted) == small
    for wanted in (0, 3, "-1", "1.2.3", "", "none"):
        with pytest.raises(MissingInput, match=r"no such series; choose by number, 1 to 2"):
            found.choose(wanted)


def test_a_uid_of_several_stacks_is_not_guessed_at(study: Path) -> None:
    uid = _small(study).files[0].series_uid
    for file in sorted((study / "small").iterdir())[:6]:
        header = pydicom.dcmread(file)
        header.ConvolutionKernel = "B70f"
        header.save_as(file)
    with pytest.raises(MissingInput, match="that UID holds 2 stacks") as caught:
        scan(study).choose(uid)
    assert uid not in str(caught.value)


def test_the_pipeline_reads_the_series_asked_for_and_writes_its_results_there(
    study: Path, backend: Recorder, tmp_path: Path
) -> None:
    small, task = _small(study), CtReportPipeline(backend)
    reading = task(study, series=small.key)
    assert reading.study["num_slices"] == 12
    assert "as asked; 1 left unread" in " ".join(w.message for w in reading.warnings)
    files = reading.to_dicom(study, tmp_path)
    report = pydicom.dcmread(next(f for f in files if f.name == "sr.dcm"))
    referenced = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert small.files[0].series_uid in [item.SeriesInstanceUID for item in referenced]
    (same,) = task(iter([Case(study, series=small.key)]))
    assert same.study == reading.study
    with pytest.raises(InvalidMessage, match="no series to choose from"):
        task(load_volume(small), series=1)
    with pytest.raises(InvalidMessage, match="series or stream"):
        task(iter([study]), series=1)


def test_read_and_chat_take_a_series(study: Path, backend: Recorder, run: Any) -> None:
    key = _small(study).key
    code, out, _ = run("read", study, "--series", key, "--json")
    assert (code, json.loads(out)["study"]["num_slices"]) == (0, 12)
    code, _, err = run("read", study, "--series", "9")
    assert (code, "choose by number, 1 to 2" in err) == (3, True)
    assert run("chat", "hello", "--dicom", study, "--series", key)[:2] == (0, "good day \n")
    (shown,) = [p for m in backend.talks[-1] for p in m.parts if isinstance(p, Study)]
    assert len(shown.study.files) == 12  # type: ignore[union-attr]
    assert run("chat", "hello", "--series", key)[0] == 2
    assert run("read", "--batch", study, "--series", key, "--out", study / "x")[0] == 2


def test_info_numbers_the_series_as_they_are_chosen(study: Path, run: Any) -> None:
    _, out, _ = run("info", study)
    lines = [line for line in out.splitlines() if "48 x 40" in line]
    number = scan(study).series.index(_small(study)) + 1
    assert f"{number}. CT" in next(line for line in lines if "12 x 48" in line)
    assert [line.startswith("*") for line in lines].count(True) == 1


def test_files_without_preamble_are_read_only_if_lenient(
    study: Path, backend: Recorder, run: Any
) -> None:
    for file in study.rglob("*.dcm"):
        file.write_bytes(file.read_bytes()[132:])
    assert run("read", study)[0] == 3
    code, out, _ = run("read", study, "--lenient", "--json")
    assert (code, json.loads(out)["study"]["num_slices"]) == (0, 20)
    assert run("chat", "hello", "--dicom", study, "--lenient")[0] == 0


def test_chat_takes_the_address_of_a_study(
    orthanc: Orthanc, stored: str, backend: Recorder, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSREAD_DICOMWEB_HOSTS", "127.0.0.1")
    assert run("chat", "hello", "--dicom", stored, "--series", "1")[:2] == (0, "good day \n")


def test_results_that_cannot_be_filed_are_refused_before_the_model_is_asked(
    study: Path, backend: Recorder, run: Any, tmp_path: Path
) -> None:
    for file in study.rglob("*.dcm"):
        header = pydicom.dcmread(file)
        del header.StudyInstanceUID
        header.save_as(file)
    code, _, err = run("read", study, "--dicom", "--out", tmp_path / "out")
    assert (code, backend.asked) == (3, [])
    assert "no StudyInstanceUID (0020,000D)" in err
    assert "read it without writing DICOM" in err
    assert run("read", study)[0] == 0
