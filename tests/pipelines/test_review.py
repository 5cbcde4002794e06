"""The report against the study, with a checkpoint that weighs what it says and what it sees."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.dicom import Volume, load_volume
from encoders.features import Source
from multimodal.backends import Region
from multimodal.measuring import Measuring
from multimodal.prompts import CHECK_SENTENCE
from multimodal.review import MAX_OMISSIONS, ReviewWeights
from pipelines.ct_report import CtReportPipeline
from pipelines.evidence import Reading
from tests.makers import FakeBackend

BOTH = ReviewWeights(1.0, 1.0, {}, (1.0, 1.0, 0.0))
FINDINGS = (("nodule", True), ("cardiomegaly", False), ("liver lesion", False))
AGREED = "There is a 14 mm nodule in the left lung."


@pytest.fixture
def volume(phantom_series: Path) -> Volume:
    return load_volume(phantom_series)


def read(backend: FakeBackend, volume: Volume, report: str) -> Reading:
    return CtReportPipeline(backend)(volume, report)


def fake(answers: dict[str, str], **seen: float) -> FakeBackend:
    """Sees what is named with that probability and nothing else; torn about every sentence."""
    chances = {f"a {name.replace('_', ' ')}?": chance for name, chance in seen.items()}
    return FakeBackend(answers, chances, FINDINGS, review=BOTH)


def test_a_side_that_only_the_images_contradict_is_told_and_mended(volume: Volume) -> None:
    backend = fake({"How large": "14 mm"}, right_nodule=0.99, left_nodule=0.01)
    backend.chances[CHECK_SENTENCE.format(sentence=AGREED)] = 0.6  # what it says: rather right
    (point,) = read(backend, volume, AGREED).discrepancies
    assert (point.type, point.correction) == ("direction", AGREED.replace("left", "right"))
    assert point.probability is not None
    assert point.probability > 0.8


def test_a_size_that_only_the_measurement_contradicts_is_told_and_mended(volume: Volume) -> None:
    backend = fake({"How large": "31 mm"}, left_nodule=0.99)
    backend.chances[CHECK_SENTENCE.format(sentence=AGREED)] = 0.6
    (point,) = read(backend, volume, AGREED).discrepancies
    assert (point.type, point.correction) == ("size", AGREED.replace("14", "31"))


@pytest.mark.parametrize(("measured_mm", "agreement"), [(14.0, "agrees"), (31.0, "disagrees")])
def test_where_the_words_leave_a_size_open_the_measure_of_its_region_decides(
    volume: Volume, measured_mm: float, agreement: str
) -> None:
    region = Region(
        "nodule", "left", 0.9, Source("dicom", slice_index=3), (1, 1, 4, 4), measured_mm
    )
    backend = fake({}, left_nodule=0.99)  # every size is as likely
    backend.regions, backend.review = (
        (region,),
        replace(BOTH, measure=Measuring(1.0, {"nodule": 0.1})),
    )
    backend.chances[CHECK_SENTENCE.format(sentence=AGREED)] = 0.6
    reading = read(backend, volume, AGREED)
    assert reading.agreement == agreement
    assert reading.findings[0].size_mm == pytest.approx(measured_mm, abs=1.0)
    for point in reading.discrepancies:
        assert point.type == "size"
        assert abs(float(re.findall(r"\d+", point.correction or "")[0]) - measured_mm) <= 1.0


@pytest.mark.parametrize(("seen", "agreement"), [(0.9, "agrees"), (0.01, "disagrees")])
def test_what_the_regions_tell_counts_beside_what_the_model_answers(
    volume: Volume, seen: float, agreement: str
) -> None:
    """Asked, it is torn; a reading states the probability by which it judges the report."""
    region = Region("nodule", "left", 0.9, Source("dicom", slice_index=3), (1, 1, 4, 4), 14.0, seen)
    backend = fake({"How large": "14 mm"}, left_nodule=0.5)
    backend.regions, backend.review = (region,), replace(BOTH, presence=(1.0, 1.0, 0.0))
    backend.chances[CHECK_SENTENCE.format(sentence=AGREED)] = 0.6
    reading = read(backend, volume, AGREED)
    assert reading.agreement == agreement
    assert [f.probability for f in reading.findings] == (
        [pytest.approx(seen)] if seen > 0.5 else []
    )


def test_what_is_seen_overrules_a_doubt_about_a_right_sentence(volume: Volume) -> None:
    backend = fake({"How large": "14 mm"}, left_nodule=0.99)
    backend.chances[CHECK_SENTENCE.format(sentence=AGREED)] = 0.3
    assert read(backend, volume, AGREED).agreement == "agrees"
    alone = FakeBackend({}, dict(backend.chances), FINDINGS)
    assert read(alone, volume, AGREED).agreement == "disagrees"


def test_a_model_that_goes_on_naming_what_is_missing_is_heeded_once(volume: Volume) -> None:
    """It is sure that something is missing whatever the report says, and sees one thing only."""
    answers = {"leave out?": "omission: There is a liver lesion."}
    backend = fake(answers, liver_lesion=0.98)
    backend.chances["leave out?"] = 0.001
    (point,) = read(backend, volume, "No cardiomegaly.").discrepancies
    assert (point.type, point.correction) == ("omission", "There is a liver lesion.")
    assert sum("leave out?" in asked for asked in backend.asked) < MAX_OMISSIONS


def test_a_finding_that_is_seen_is_named_whatever_the_model_writes(volume: Volume) -> None:
    backend = fake({"leave out?": "er"}, right_nodule=0.95)
    backend.chances["leave out?"] = 0.4
    (point,) = read(backend, volume, "No cardiomegaly.").discrepancies
    assert (point.type, point.correction) == ("omission", "Right nodule.")


@pytest.mark.parametrize(
    ("report", "denial", "wording"),
    [("No cardiomegaly.", "No right nodule.", "There is a 9 mm nodule in the right lung."),
     ("心影不大。", "右肺未见结节。", "右肺见9 mm结节。")],
)  # fmt: skip
def test_a_finding_that_is_seen_is_worded_as_the_model_corrects_its_denial(
    volume: Volume, report: str, denial: str, wording: str
) -> None:
    answers = {denial: f"omission: {wording}", "leave out?": "omission: There is a liver lesion."}
    backend = fake(answers, right_nodule=0.95)
    backend.chances["leave out?"] = 0.4
    (point,) = read(backend, volume, report).discrepancies
    assert (point.type, point.correction) == ("omission", wording)


def test_a_missing_finding_is_worded_in_the_language_of_the_report(volume: Volume) -> None:
    wording = "There is a 9 mm nodule in the right lung."
    answers = {
        "No right nodule.": f"omission: {wording}",
        "leave out?": "omission: 右肺见9 mm结节。",
    }
    backend = fake(answers, right_nodule=0.95)
    backend.chances["leave out?"] = 0.4
    (point,) = read(backend, volume, "No cardiomegaly.").discrepancies
    assert (point.type, point.correction) == ("omission", wording)


@pytest.mark.parametrize(
    ("report", "kind"),
    [("Right nodule.", "direction"), ("Right nodule. Left nodule.", "insertion"),
     ("Right nodule. Nodules in both lungs.", "insertion"),
     ("Right nodule. No left nodule.", "direction")],
)  # fmt: skip
def test_a_side_is_no_mistake_where_the_report_tells_of_the_other_too(
    volume: Volume, report: str, kind: str
) -> None:
    backend = fake({}, left_nodule=0.98)
    backend.chances[CHECK_SENTENCE.format(sentence="Right nodule.")] = 0.3
    points = read(backend, volume, report).discrepancies
    assert kind in [p.type for p in points if p.sentence == "Right nodule."]


@pytest.mark.parametrize(("sure", "told"), [(0.95, ["direction"]), (0.4, [])])
def test_what_was_hardly_said_so_is_warned_of_instead(
    volume: Volume, speech: np.ndarray, sure: float, told: list[str]
) -> None:
    """Of two sentences in one recording the model doubts one; what it meant is told beside it."""
    said, meant = "There is a right nodule.", "There is a left nodule."
    backend = FakeBackend(
        answers={"Transcribe": f"No cardiomegaly. {said}", said: f"direction: {meant}"},
        chances={f"images? {said}": 0.02}, sure={"right": sure, "No": 0.1},
        review=ReviewWeights(1.0, 0.0, {}, (1.0, 0.0, 0.0)),
    )  # fmt: skip
    reading = CtReportPipeline(backend)(volume, dictation=(speech, 16000))
    assert [(p.type, p.sentence) for p in reading.discrepancies] == [(kind, said) for kind in told]
    assert reading.agreement == ("disagrees" if told else "abstained")
    misheard = [w for w in reading.warnings if w.code == "DOUBTFUL"]
    assert [(said in w.subject, meant in w.message) for w in misheard] == [(True, True)][
        len(told) :
    ]
    for point in reading.discrepancies:
        assert point.probability == pytest.approx(0.98 * sure)
    unfitted = CtReportPipeline(replace(backend, review=None))(volume, dictation=(speech, 16000))
    assert unfitted.agreement == "disagrees"  # what its probabilities are worth nobody knows


@pytest.mark.parametrize(
    "report", ["Right and left nodules.", "Nodules in both lungs.", "双肺结节。"]
)
def test_both_sides_named_together_are_spoken_of(volume: Volume, report: str) -> None:
    backend = fake({}, right_nodule=0.99, left_nodule=0.99)
    backend.chances["leave out?"] = 0.7
    assert read(backend, volume, report).agreement == "agrees"
