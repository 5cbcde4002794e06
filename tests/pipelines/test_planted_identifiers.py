"""Identifiers planted in every attribute of a study are found behind no door: prompts, results,
pages, the server, its metrics, errors, logs, caches, DICOM results, de-identified copies."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from typer.testing import CliRunner

from encoders.dicom import deidentify, describe, load_volume, scan
from multimodal.messages import Study, user
from pipelines.chat import ChatPipeline
from pipelines.cli import app
from pipelines.ct_report import Case, CtReportPipeline
from pipelines.terminal import describe_reading
from tests.encoders.dicom.planting import NEEDLES, WORD, plant_study
from tests.makers import FakeBackend

REPORT = "There is a 14 mm nodule in the right lung."
DOORS = (
    "info", "info on the command line", "prompts of the fake", "prompts of a composite",
    "reading as JSON", "reading as page", "reading as text", "reading of a batch", "chat",
    "errors of cut files", "page of the app", "slices in the browser", "the server", "its metrics", "results in DICOM", "names of results",
    "odd attributes", "copy without identity", "report of the copy", "logs at DEBUG", "files left on disk",
)  # fmt: skip
# a structured report is filed under its patient: these come from the study, by design
FILED_UNDER = re.compile(
    r"Patient|Study|Accession|Referring|Clinical|Issuer|Admission|Visit|Ethnic|Occupation|Sex"
    r"|Identity|Deidentification|Medical|Pregnancy|Smoking|Service|Reason|Allerg|Responsible"
)


@dataclass
class Seen:
    """What a door showed."""

    texts: dict[str, str]

    def add(self, door: str, text: object) -> None:
        self.texts[door] = self.texts.get(door, "") + "\n" + str(text)


@contextlib.contextmanager
def everything_logged() -> Iterator[list[str]]:
    """Every record of every logger, at DEBUG, as it would be written."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logging.Formatter("%(name)s %(message)s").format(record))

    root, handler = logging.getLogger(), Keep(logging.DEBUG)
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_composite: Any) -> Seen:
    """Every door opened once on one planted study."""
    study = plant_study(tmp_path_factory.mktemp("in"))
    work, left = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("left")
    seen, patch = Seen(dict.fromkeys(DOORS, "")), pytest.MonkeyPatch()
    patch.setattr(tempfile, "tempdir", str(left))
    with everything_logged() as lines:
        _look(study, seen)
        _read(study, seen, work)
        _ask_a_composite(study, seen, tiny_composite, patch)
        _break(study, seen, work)
        _upload(study, seen)
        _serve(study, seen, work)
        _export(study, seen, work)
        _read_odd(plant_study(tmp_path_factory.mktemp("odd"), odd=True), seen)
    patch.undo()
    seen.add("logs at DEBUG", "\n".join(lines))
    for file in left.rglob("*"):
        content = file.read_bytes().decode("latin-1") if file.is_file() else ""
        seen.add("files left on disk", f"{file.relative_to(left)}\n{content}")
    return seen


def _look(study: Path, seen: Seen) -> None:
    seen.add("info", json.dumps(describe(scan(study))))
    for arguments in (["info", str(study)], ["info", str(study), "--json"]):
        seen.add("info on the command line", CliRunner().invoke(app, arguments).output)


def _read(study: Path, seen: Seen, work: Path) -> None:
    backend = FakeBackend(answers={"How large": "14 mm"}, chances={"a right nodule": 0.9})
    task = CtReportPipeline(backend)
    reading = task(study, REPORT, question="What is there?")
    seen.add("prompts of the fake", "\n".join(backend.asked))
    seen.add("reading as JSON", reading.to_json())
    seen.add("reading as page", reading.to_html())
    seen.add("reading as text", describe_reading(reading))
    failing = Case(study / f"{WORD}^JOHN 1907-07 1.2.3.4.777.0.dcm", "", question="?")
    seen.add("reading of a batch", list(task(iter([Case(study, REPORT), failing]))))
    for file in reading.to_dicom(study, work / "results"):
        seen.add("names of results", file.name)
        data = pydicom.dcmread(file)
        told = [e for e in data if not FILED_UNDER.search(e.keyword) and e.VR != "UI"]
        for element in told:
            nested = element.value if element.VR == "SQ" else ()
            texts = [v for item in nested for v in item.iterall() if v.VR not in ("SQ", "UI")]
            seen.add("results in DICOM", [str(v.value) for v in texts or [element] if v.VR != "SQ"])


def _read_odd(study: Path, seen: Seen) -> None:
    backend = FakeBackend()
    reading = CtReportPipeline(backend)(study, REPORT, allow_burned_in=True)
    page = [reading.to_json(), reading.to_html(), describe_reading(reading), *backend.asked]
    seen.add("odd attributes", "\n".join([json.dumps(describe(scan(study))), *page]))
    seen.add("odd attributes", load_volume(study).problems)


def _ask_a_composite(study: Path, seen: Seen, tiny_composite: Any, patch: Any) -> None:
    from multimodal.local import LocalBackend
    from multimodal.processing import MultimodalProcessor

    prompts, ids_of = [], MultimodalProcessor.ids_of

    def recording(self: Any, text: str, media: Any) -> list[int]:
        prompts.append(text)
        return ids_of(self, text, media)

    patch.setattr(MultimodalProcessor, "ids_of", recording)
    backend = LocalBackend(*tiny_composite)
    seen.add("reading as JSON", CtReportPipeline(backend)(study, REPORT).to_json())
    seen.add("chat", ChatPipeline(backend)(user(Study(study), "list the findings")))
    assert len(prompts) > 3
    seen.add("prompts of a composite", "\n".join(prompts))


def _break(study: Path, seen: Seen, work: Path) -> None:
    whole = sorted(study.iterdir())[0].read_bytes()
    steps: tuple[Callable[[Path], Any], ...] = (
        lambda p: scan(p).problems,
        lambda p: scan(p).default(),
        load_volume,
        lambda p: CtReportPipeline(FakeBackend())(p),
        lambda p: deidentify(p, work / "never"),
    )
    for cut in (0, 64, 140, 400, 3000, len(whole) // 2, len(whole) - 700, len(whole) - 9):
        broken = work / f"{WORD} {cut}.dcm"
        broken.write_bytes(whole[:cut])
        for step in steps:
            try:
                seen.add("errors of cut files", step(broken) if cut < len(whole) // 2 else "")
            except Exception as error:
                found = traceback.format_exception_only(error)
                cause = traceback.format_exception_only(error.__cause__) if error.__cause__ else []
                seen.add("errors of cut files", "".join([*found, *cause]))


def _upload(study: Path, seen: Seen) -> None:
    from pipelines.ui.flows import open_study, review
    from pipelines.ui.rooms import Room

    room = Room()
    shown = [[step.study, step.volume] for step in open_study(room, sorted(study.iterdir()))]
    seen.add("page of the app", json.dumps([shown, list(review(room, FakeBackend(), REPORT))]))
    room.close()


def _serve(study: Path, seen: Seen, work: Path) -> None:
    """Readings and chat over the network, as an archive whose name tells too; and what breaks."""
    from pipelines.ui.viewer import Shelf
    from tests.pipelines.server.running import serving

    seen.add("slices in the browser", json.dumps(Shelf().put(load_volume(study))))
    archive = Path(shutil.make_archive(str(work / f"{WORD} JOHN"), "zip", study))
    cut = work / f"{WORD} cut.zip"
    cut.write_bytes(archive.read_bytes()[:5000])
    backend = FakeBackend(answers={"How large": "14 mm"}, chances={"a right nodule": 0.9})
    with serving(backend) as server, server.http() as http:
        for file in (archive, cut):
            stored = http.post("/v1/files", files={"file": (file.name, file.read_bytes())},
                               data={"purpose": "user_data"}).json()["id"]  # fmt: skip
            part = {"type": "dicom", "dicom": stored}
            body = server.chat(
                messages=[{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
            )
            seen.add(
                "the server",
                http.post("/v1/readings", json={"study": stored, "report": REPORT}).text,
            )
            seen.add("the server", http.post("/v1/chat/completions", json=body).text)
        assert seen.texts["the server"].count('"completed"') == 1
        seen.add("its metrics", http.get("/metrics").text)
    seen.add("the server", "\n".join(backend.asked))


def _export(study: Path, seen: Seen, work: Path) -> None:
    # of random stand-ins one in some ten thousand holds six planted digits
    done = deidentify(study, work / "copy", key=b"a key of tests only, 32 bytes long")
    assert done.num_written == 8
    seen.add("report of the copy", json.dumps(done.to_dict()))
    for file in (work / "copy").rglob("*.dcm"):
        content = file.read_bytes().decode("latin-1")
        seen.add("copy without identity", f"{file.relative_to(work)}\n{content}")
    arguments = ["deidentify", str(study), str(work / "second")]
    seen.add("report of the copy", CliRunner().invoke(app, arguments).output)


@pytest.mark.parametrize("door", DOORS)
def test_no_planted_identifier_is_behind(door: str, seen: Seen) -> None:
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", seen.texts[door])
    assert text.strip() or door in ("logs at DEBUG", "files left on disk")
    found = sorted({text[max(m.start() - 30, 0) : m.end() + 20] for n in NEEDLES
                    for m in re.finditer(re.escape(n), text)})  # fmt: skip
    assert not found, f"{len(found)} planted values behind {door}: {found[:5]}"
