"""A reading room's server half: what is shown at each step, kept per tab, and given back."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from encoders.dicom.identifiers import identifiers_of
from encoders.errors import BurnedInText, InputError, MissingInput, NotDicom, UnreadableAudio
from multimodal.review import ReviewWeights
from pipelines.ct_report import CtReportPipeline
from pipelines.dictation import Listening
from pipelines.ui import flows
from pipelines.ui.rooms import MAX_ROOMS, Room, Rooms, thumbnail
from pipelines.ui.settings import Settings
from pipelines.ui.viewer import shelf
from tests.makers import FakeBackend, write_blocks, write_sr

REPORT = "Left effusion. No nodule."


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(
        answers={"Why?": "because of it", "Left eff": "insertion: remove"},
        chances={"images? Left eff": 0.1},
    )


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.close()


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def opened(room: Room, folder: Path) -> list[flows.Opened]:
    return list(flows.open_study(room, files_of(folder)))


def test_a_study_is_listed_first_then_one_slice_then_all(room: Room, phantom_series: Path):
    steps = opened(room, phantom_series)
    shapes = [step.volume["shape"][0] if step.volume else None for step in steps]
    assert shapes == [None, 1, None, 24]
    (series,) = steps[0].study["series"]
    assert (series["modality"], series["num_slices"], series["slice_gaps_mm"]) == ("CT", 24, [4.0])
    (series,) = steps[-1].study["series"]
    assert series["thumbnail"].startswith("data:image/png;base64,")
    json.dumps([step.study for step in steps], allow_nan=False)


def test_what_is_not_used_is_told_with_its_reason(room: Room, phantom_series: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    room.open([*files_of(phantom_series), tmp_path / "notes.txt"])
    (problem,) = room.describe()["problems"]
    assert problem[2].endswith(".txt")
    assert problem[1]


def test_only_dicom_opens(room: Room, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NotDicom, match="no DICOM image found"):
        list(flows.open_study(room, [tmp_path / "notes.txt"]))
    with pytest.raises(MissingInput, match="Give a study first"):
        list(flows.open_study(room, []))


def test_a_study_too_large_for_the_page_is_refused_before_it_is_decoded(
    room: Room, phantom_series: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.ui.guards.page_settings", lambda: Settings(max_pixels=10_000))
    steps = flows.open_study(room, files_of(phantom_series))
    assert next(steps).volume is None
    with pytest.raises(InputError, match="decodes to"):
        next(steps)


def test_another_series_can_be_chosen_and_one_that_is_gone_cannot(room: Room, tmp_path: Path):
    write_blocks(tmp_path / "axial")
    write_blocks(tmp_path / "coronal", (1, 0, 0), (0, 0, -1))
    room.open([*files_of(tmp_path / "axial"), *files_of(tmp_path / "coronal")])
    planes = {s["key"]: s["plane"] for s in room.describe()["series"]}
    assert sorted(planes.values()) == ["axial", "coronal"]
    assert room.describe()["why"] == ("axial",)
    key = next(k for k, plane in planes.items() if plane == "coronal")
    steps = list(flows.choose_series(room, key, False))
    assert steps[-1].study["chosen"] == key
    assert steps[-1].volume is not None
    with pytest.raises(MissingInput, match="no longer open"):
        list(flows.choose_series(room, "none", False))


def test_pictures_that_may_name_the_patient_are_shown_only_where_asked_for(
    room: Room, tmp_path: Path
):
    write_blocks(tmp_path)
    for file in files_of(tmp_path):
        header = pydicom.dcmread(file)
        header.BurnedInAnnotation = "YES"
        header.save_as(file)
    steps = opened(room, tmp_path)
    assert [step.volume for step in steps] == [None, {"note": "risky"}]
    (series,) = steps[-1].study["series"]
    assert (series["risky"], series["thumbnail"]) == (True, "")
    steps = list(flows.choose_series(room, series["key"], True))
    assert steps[-1].volume is not None
    assert steps[-1].volume["shape"][0] == 24
    room.choose(series["key"])
    with pytest.raises(BurnedInText, match="nothing was shown"):
        room.let_through(False)


def test_identifiers_are_in_nothing_but_their_own_answer(room: Room, phantom_series: Path):
    steps = opened(room, phantom_series)
    told = json.dumps([[s.study, s.volume] for s in steps])
    assert "Phantom^Generated" not in told
    assert "GENERATED" not in told
    assert room.series is not None
    named = identifiers_of(room.series)
    assert (named["PatientName"], named["PatientID"]) == ("Phantom^Generated", "GENERATED")
    assert named["AccessionNumber"] == ""


def test_a_review_tells_its_steps_and_ends_with_the_marked_report(
    room: Room, phantom_series: Path, backend: FakeBackend
):
    opened(room, phantom_series)
    values = list(flows.review(room, backend, REPORT))
    assert [v["state"] for v in values] == ["running"] * (len(values) - 1) + ["done"]
    stages = list(dict.fromkeys(v["step"]["stage"] for v in values[:-1]))
    assert stages == ["read", "look", "findings", "review", "pictures"]
    reading = values[-1]["reading"]
    assert reading["agreement"] == "disagrees"
    assert reading["passages"] == [
        {"text": "Left effusion.", "point": 0},
        {"text": " No nodule.", "point": None},
    ]
    json.dumps(values, allow_nan=False)


def test_what_was_dictated_on_the_page_is_judged_as_dictated(
    room: Room, phantom_series: Path, backend: FakeBackend
):
    opened(room, phantom_series)
    words = "A left noddle."
    backend.answers = {words: "typo: A left nodule."} | backend.answers
    backend.chances = {words: 0.1} | backend.chances
    list(flows.review(room, backend, REPORT, f" {words} "))
    reading = room.judged()
    assert reading.transcript == words
    assert reading.report == f"{REPORT}\n\n{words}"
    assert [w.code for w in reading.warnings] == ["MISHEARD"]
    assert words not in [point.sentence for point in reading.discrepancies]


def test_what_was_heard_with_doubt_on_the_page_is_warned_of_unless_a_person_changes_it(
    room: Room, phantom_series: Path, backend: FakeBackend, tmp_path: Path, speech: Any
):
    import wave

    opened(room, phantom_series)
    words, changed = "A right nodule.", "A small right nodule."
    backend.answers = {"right nodule.": "direction: A left nodule.", "Transcribe": words}
    backend.chances, backend.sure = {"right nodule.": 0.1}, {"right": 0.4}
    backend.review = ReviewWeights(1.0, 0.0, {}, (1.0, 0.0, 0.0))
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "NONE"))
        file.writeframes((speech * 3e4).astype("<i2").tobytes())
    (said,) = flows.hear(room, backend, tmp_path / "said.wav")
    room.listen(Listening(backend, said))  # a microphone goes on after it
    tone = (9000 * np.sin(np.arange(48000) / 20)).astype("<i2").tobytes()
    flows.listen(room.ear, base64.b64encode(tone).decode(), 48000)  # type: ignore[arg-type]
    for dictated, told, warned in ((words, [], 1), (f"{words} {words}", [], 2),
                                   (changed, [changed], 0), (f"{words} {changed}", [changed], 1)):  # fmt: skip
        list(flows.review(room, backend, "", dictated))
        reading = room.judged()
        assert [point.sentence for point in reading.discrepancies] == told
        assert [w.code for w in reading.warnings] == ["DOUBTFUL"] * warned
    opened(room, phantom_series)  # the page keeps its words
    list(flows.review(room, backend, "", words))
    assert room.judged().agreement == "abstained"
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UnreadableAudio):
        list(flows.hear(room, backend, tmp_path / "broken.wav"))
    assert room.transcript(words).segments  # type: ignore[union-attr]
    list(flows.hear(room, backend, tmp_path / "said.wav"))  # in the place of all heard before
    assert len(room.transcript(words).segments) == 1  # type: ignore[union-attr]
    room.close()
    assert not room.transcript(words).segments  # type: ignore[union-attr]


def test_the_room_gives_the_reading_that_the_pipeline_gives(
    room: Room, phantom_series: Path, backend: FakeBackend
):
    opened(room, phantom_series)
    list(flows.review(room, backend, REPORT))
    whole = CtReportPipeline(backend)(phantom_series, REPORT)
    assert {**room.judged().to_dict(), "timings_s": 0} == {**whole.to_dict(), "timings_s": 0}


def test_a_stop_stops_before_the_next_question(
    room: Room, phantom_series: Path, backend: FakeBackend
):
    opened(room, phantom_series)
    values = flows.review(room, backend, REPORT)
    next(v for v in values if v["step"]["stage"] == "findings")
    asked = len(backend.asked)
    room.choose(room.series.key if room.series else "")  # as the stop button does, and closing
    assert room.stopped.is_set()
    assert [v["state"] for v in values] == ["stopped"]
    assert len(backend.asked) <= asked + 1
    assert room.reading is None


def test_leaving_the_page_stops_the_work_and_gives_the_study_back(
    phantom_series: Path, backend: FakeBackend
):
    rooms = Rooms()
    room = rooms.of("one")
    volume = opened(room, phantom_series)[-1].volume
    assert volume is not None
    values = flows.review(room, backend, REPORT)
    next(values)
    rooms.leave("one")
    assert [v["state"] for v in values] == ["stopped"]
    assert shelf().get(volume["token"]) is None
    assert rooms.of("one") is not room


def test_a_follow_up_goes_beside_the_reading(
    room: Room, phantom_series: Path, backend: FakeBackend
):
    opened(room, phantom_series)
    with pytest.raises(MissingInput, match="no reading yet"):
        list(flows.ask(room, backend, "Why?"))
    list(flows.review(room, backend, REPORT))
    room.decisions[0] = "accepted"
    values = list(flows.ask(room, backend, "Why?"))
    assert values[0]["decisions"] == {"0": "accepted"}  # the browser is sent no other keys
    assert values[0]["asked"][0] == {"question": "Why?", "answer": "", "num_encoded": None}
    assert values[-1]["asked"][0]["answer"] == "because of it"
    with pytest.raises(MissingInput, match="Type a question"):
        list(flows.ask(room, backend, " "))


def test_what_was_decided_is_in_every_file_taken_away(
    room: Room, phantom_series: Path, backend: FakeBackend, tmp_path: Path
):
    opened(room, phantom_series)
    list(flows.review(room, backend, REPORT))
    room.decisions[0] = "rejected"
    page, told, pdf, archive = (f.name for f in sorted(room.save(), key=lambda f: f.suffix))
    assert {page, told, pdf, archive} == {
        "reading.html", "reading.json", "reading.pdf", "reading_dicom.zip"
    }  # fmt: skip
    files = {f.name: f for f in room.save()}
    written = json.loads(files["reading.json"].read_text(encoding="utf-8"))
    assert written["discrepancies"][0]["decision"] == "rejected"
    assert written["reviewed"] == {"by": "", "at": ""}
    assert "<td>rejected</td>" in files["reading.html"].read_text(encoding="utf-8")
    with zipfile.ZipFile(files["reading_dicom.zip"]) as names:
        names.extract("sr.dcm", tmp_path)
    assert "Left effusion" not in str(pydicom.dcmread(tmp_path / "sr.dcm"))
    room.close()
    assert not files["reading.json"].exists()


def test_the_studys_own_report_is_offered(room: Room, phantom_series: Path, tmp_path: Path):
    write_sr(tmp_path / "report.dcm", "No nodule.")
    room.open([*files_of(phantom_series), tmp_path / "report.dcm"])
    assert room.describe()["documents"] == ["SR"]


def test_tabs_have_rooms_of_their_own_and_the_oldest_makes_room(
    phantom_series: Path, monkeypatch: pytest.MonkeyPatch
):
    rooms = Rooms()
    first = rooms.of("0")
    volume = opened(first, phantom_series)[-1].volume
    assert volume is not None
    assert len({id(rooms.of(str(n))) for n in range(MAX_ROOMS)}) == MAX_ROOMS
    assert rooms.of("0") is first
    for n in range(1, MAX_ROOMS + 1):
        rooms.of(str(n))
    assert shelf().get(volume["token"]) is None
    monkeypatch.setattr("pipelines.ui.rooms.MAX_HELD_BYTES", 1)
    large = [rooms.of(name) for name in ("large", "larger")]
    for room in large:
        opened(room, phantom_series)
    assert rooms.of("larger") is large[1]
    assert large[0].volume is None
    assert rooms.of(None) is not rooms.of(None)


def test_a_thumbnail_is_upright_and_of_the_middle(tmp_path: Path):
    from PIL import Image

    write_blocks(tmp_path, (-1, 0, 0), (0, -1, 0))  # feet first, face down as stored
    room = Room()
    room.open(files_of(tmp_path))
    assert room.series is not None
    data = base64.b64decode(thumbnail(room.series).partition(",")[2])
    image = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    left, right = image[:, : image.shape[1] // 2], image[:, image.shape[1] // 2 :]
    assert right.sum() > left.sum()  # the bright block of the patient's left
    room.close()


def test_a_recording_is_heard_piece_by_piece(backend: FakeBackend, tmp_path: Path, speech: Any):
    import wave

    backend = FakeBackend(answers={"Transcribe": "No nodule."})
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "NONE"))
        file.writeframes((np.tile(speech, 6) * 3e4).astype("<i2").tobytes())
    said = list(flows.hear(Room(), backend, tmp_path / "said.wav"))
    assert said == ["No nodule.", "No nodule. No nodule."]


def test_a_reading_replaced_keeps_its_decisions_apart(
    room: Room, phantom_series: Path, backend: FakeBackend
):
    opened(room, phantom_series)
    list(flows.review(room, backend, REPORT))
    room.decisions[0] = "accepted"
    assert room.judged().discrepancies[0].decision == "accepted"
    assert room.reading is not None
    assert replace(room.judged(), discrepancies=room.reading.discrepancies) == room.reading
    list(flows.review(room, backend, REPORT))
    assert room.judged().discrepancies[0].decision == ""


def test_sound_of_a_microphone_is_heard_and_what_is_none_is_refused():
    ear = Listening(FakeBackend(answers={"Transcribe": "No nodule."}), "CT of the chest.")
    tone = (9000 * np.sin(np.arange(48000) / 20)).astype("<i2").tobytes()
    assert (
        flows.listen(ear, base64.b64encode(tone).decode(), 48000) == "CT of the chest. No nodule."
    )
    for sound, rate in (("no sound", 48000), ("AAAA" * 99, 1), ("AAAA", 48000)):
        with pytest.raises(UnreadableAudio, match="the microphone sent"):
            flows.listen(ear, sound, rate)
