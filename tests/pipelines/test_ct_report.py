"""The reading of CT and report: what is asked, what comes back, and when nothing is claimed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dicom import Volume, load_volume
from encoders.errors import ContextOverflow, IncompatibleModel, InvalidMessage, MissingInput
from encoders.features import Source
from multimodal.backends import DEMO, Finished, Novelty, Region
from multimodal.prompts import CHECK_SENTENCE, FIND_OMISSION, LIST_FINDINGS
from pipelines import pipeline
from pipelines.batch import Failed
from pipelines.ct_report import Case, CtReportPipeline
from pipelines.dictation import Transcript
from pipelines.evidence import Reading
from tests.makers import FakeBackend

RIGHT = Region(
    "nodule", "right", 0.9, Source("dicom", slice_index=5, position_mm=20.0), (4.0, 6.0, 12.0, 20.0)
)
LEFT = Region(
    "nodule", "left", 0.8, Source("dicom", slice_index=9, position_mm=36.0), (30.0, 6.0, 40.0, 20.0)
)


def read(backend: FakeBackend, study: Any, *words: Any) -> Reading:
    return CtReportPipeline(backend)(study, *words)


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(phantom_series)


def test_findings_carry_side_size_place_and_probability(volume: Volume):
    backend = FakeBackend(
        answers={"How large": "14 mm"}, chances={"a right nodule": 0.93}, regions=(RIGHT, LEFT)
    )
    reading = read(backend, volume)
    (finding,) = reading.findings
    assert (finding.name, finding.side, finding.size_mm) == ("nodule", "right", 14.0)
    assert (finding.slice_index, finding.box) == (5, (4.0, 6.0, 12.0, 20.0))
    assert finding.probability == pytest.approx(0.93)
    assert finding.evidence[0].position_mm == 20.0
    assert finding.evidence[0].score == 0.9
    assert reading.evidence == finding.evidence
    assert reading.agreement == "no report"
    assert [i for i, _ in reading.key_slices] == [5]


def test_every_known_finding_is_asked_on_both_sides(volume: Volume):
    backend = FakeBackend()
    read(backend, volume)
    assert backend.asked == [
        LIST_FINDINGS, "Is there a right nodule?", "Is there a left nodule?",
        "Is there a cardiomegaly?",
    ]  # fmt: skip


def test_a_model_without_a_list_of_findings_is_taken_at_its_word(volume: Volume):
    backend = FakeBackend(answers={"List": "right nodule 9 mm; cardiomegaly"}, findings=())
    reading = read(backend, volume)
    assert [(f.name, f.side, f.size_mm, f.probability) for f in reading.findings] == [
        ("nodule", "right", 9.0, None),
        ("cardiomegaly", None, None, None),
    ]
    assert json.loads(reading.to_json())["findings"][0]["probability"] is None


@pytest.mark.parametrize(
    ("kind", "sentence", "correction"),
    [
        ("omission", "No nodule.", "There is a right nodule."),
        ("insertion", "There is a left nodule.", None),
        ("direction", "There is a left nodule.", "There is a right nodule."),
        ("size", "The right nodule measures 30 mm.", "The right nodule measures 14 mm."),
        ("unit", "The right nodule measures 14 cm.", "The right nodule measures 14 mm."),
        ("typo", "There is a right nodlue.", "There is a right nodule."),
    ],
)
def test_each_type_of_mistake_is_told_with_its_sentence_and_correction(
    volume: Volume, kind: str, sentence: str, correction: str | None
):
    backend = FakeBackend(
        answers={sentence: f"{kind}: {correction or 'remove'}"},
        chances={CHECK_SENTENCE.format(sentence=sentence): 0.2},
        regions=(RIGHT, LEFT),
    )
    reading = read(backend, volume, f"FINDINGS: {sentence} The heart is normal in size.")
    (point,) = reading.discrepancies
    assert (point.type, point.sentence, point.correction) == (kind, sentence, correction)
    assert point.probability == pytest.approx(0.8)
    assert reading.agreement == "disagrees"
    texts = [e.sentence for e in point.evidence if e.kind == "text"]
    pictures = [e.slice_index for e in point.evidence if e.kind == "image"]
    assert texts == [sentence]
    assert pictures == ([] if kind == "insertion" else [RIGHT.source.slice_index])


def test_the_corrected_report_is_searched_for_omissions(volume: Volume):
    backend = FakeBackend(
        answers={"left nodule": "direction: There is a right nodule.", "effusion": "insertion: remove"},
        chances={"sentence agree with the images? There is a left": 0.1, "images? Right eff": 0.1},
    )  # fmt: skip
    read(backend, volume, "There is a left nodule. Right effusion. The heart is normal in size.")
    assert backend.asked[-1] == FIND_OMISSION.format(
        report="There is a right nodule. The heart is normal in size."
    )


def test_omissions_are_told_one_after_the_other_until_nothing_new_is_named(volume: Volume):
    missing = ["There is a right nodule.", "There is cardiomegaly."]
    backend = FakeBackend(
        answers={
            f"{missing[0]} {missing[1]}": "nothing",
            missing[0]: f"omission: {missing[1]}",
            "leave out?": f"omission: {missing[0]}",
        },
        chances={f"{missing[0]} {missing[1]}": 0.95, "leave out?": 0.1},
        regions=(RIGHT, LEFT),
    )
    reading = read(backend, volume, "No pneumothorax.")
    assert [(p.type, p.sentence, p.correction) for p in reading.discrepancies] == [
        ("omission", None, missing[0]),
        ("omission", None, missing[1]),
    ]
    assert reading.discrepancies[0].evidence[0].slice_index == 5


def test_a_model_that_repeats_itself_is_heard_once(volume: Volume):
    backend = FakeBackend(
        answers={"leave out?": "omission: There is a right nodule."}, chances={"leave out?": 0.1}
    )
    assert len(read(backend, volume, "No pneumothorax.").discrepancies) == 1


def test_a_sure_finding_that_no_sentence_speaks_of_is_an_omission(volume: Volume):
    """The model lists it and yet names nothing as left out; one it doubts is no omission."""
    backend = FakeBackend(chances={"a cardiomegaly": 0.97, "a left nodule": 0.8})
    quiet, told = (
        pipeline("ct-report", backend)(volume, report)
        for report in ("No pleural fluid.", "The heart is enlarged.")
    )
    assert [(p.type, p.sentence, p.correction, p.probability) for p in quiet.discrepancies] == [
        ("omission", None, "Cardiomegaly.", 0.97)
    ]
    assert quiet.agreement == "disagrees"
    assert told.discrepancies == ()


def test_an_omission_without_words_is_not_lost(volume: Volume):
    class Mumbling(FakeBackend):
        def generate(self, messages, options=None):
            for event in super().generate(messages, options):
                if options.choices[:1] == ("nothing",) and isinstance(event, Finished):
                    event = replace(event, choices={"nothing": 0.2, "omission": 0.8})
                yield event

    reading = read(Mumbling(answers={"leave out?": "er"}), volume, "No pneumothorax.")
    (point,) = reading.discrepancies
    assert (point.type, point.correction) == ("omission", None)
    assert reading.agreement == "disagrees"
    assert "no correction" in point.suggestion


def test_a_sentence_that_the_model_only_repeats_is_no_suggestion(volume: Volume):
    sentence = "There is a left nodule."
    backend = FakeBackend(
        answers={sentence: f"typo: {sentence}"},
        chances={CHECK_SENTENCE.format(sentence=sentence): 0.2},
        regions=(RIGHT, LEFT),
    )
    (point,) = read(backend, volume, f"FINDINGS: {sentence}").discrepancies
    assert (point.type, point.correction) == ("typo", None)
    assert "no correction" in point.suggestion


def test_a_report_that_fits_agrees(volume: Volume):
    reading = read(FakeBackend(), volume, "No nodule. The heart is normal in size.")
    assert reading.agreement == "agrees"
    assert reading.discrepancies == ()
    assert reading.verdict() == "The report agrees with the images."


def test_a_report_of_technique_alone_is_not_said_to_agree(volume: Volume):
    reading = read(FakeBackend(), volume, "TECHNIQUE: CT of the chest.\n\nCOMPARISON: None.")
    assert reading.agreement == "no report"
    assert [w.code for w in reading.warnings] == ["NO_STATEMENT"]
    assert reading.report == "TECHNIQUE: CT of the chest.\n\nCOMPARISON: None."


@pytest.mark.parametrize("report", ["", "  \n\t "])
def test_an_empty_report_is_no_report(volume: Volume, report: str):
    reading = read(FakeBackend(), volume, report)
    assert (reading.agreement, reading.report, reading.warnings) == ("no report", None, ())


def test_a_question_is_answered(volume: Volume):
    reading = read(
        FakeBackend(answers={"Where": "in the right lung"}), volume, None, None, "Where?"
    )
    assert reading.answer == "in the right lung"


def test_dictation_is_joined_to_the_report_and_told_apart(volume: Volume, speech: np.ndarray):
    heard = "There is a left nodule."
    backend = FakeBackend(answers={"Transcribe": heard, heard: "direction: There is a right nodule."},
                          chances={f"images? {heard}": 0.1})  # fmt: skip
    reading = read(backend, volume, "TECHNIQUE: CT of the chest.", (speech, 16000))
    assert reading.transcript == heard
    assert reading.report == f"TECHNIQUE: CT of the chest.\n\n{heard}"
    assert [p.sentence for p in reading.discrepancies] == [heard]
    assert reading.usage["questions"] == len(backend.asked)
    assert "dictation" in reading.timings_s


MISSPELT = "There is a left noddle."


@pytest.mark.parametrize(
    ("kind", "typed", "told"),
    [("typo", True, ["typo"]), ("typo", False, []), ("direction", False, ["direction"])],
)
def test_a_word_misheard_in_a_dictation_is_no_mistake_of_the_report(
    volume: Volume, speech: np.ndarray, kind: str, typed: bool, told: list[str]
):
    """Nor is what it was meant to say left out."""
    meant = "There is a left nodule."
    backend = FakeBackend(
        answers={"Transcribe": MISSPELT, MISSPELT: f"{kind}: {meant}"},
        chances={f"images? {MISSPELT}": 0.2, "a left nodule?": 0.97 if kind == "typo" else 0.01},
    )
    reading = read(backend, volume, *((MISSPELT,) if typed else (None, (speech, 16000))))
    assert [point.type for point in reading.discrepancies] == told
    assert reading.agreement == ("disagrees" if told else "agrees")
    misheard = [w for w in reading.warnings if w.code == "MISHEARD"]
    assert bool(misheard) == (not told)
    for warning in misheard:
        assert (MISSPELT in warning.subject, meant in warning.message) == (True, True)


def test_what_was_typed_and_dictated_in_the_same_words_is_judged_as_each(volume: Volume):
    backend = FakeBackend(answers={MISSPELT: "typo: There is a left nodule."},
                          chances={f"images? {MISSPELT}": 0.2})  # fmt: skip
    reading = read(backend, volume, MISSPELT, Transcript(MISSPELT, ()))
    assert [point.type for point in reading.discrepancies] == ["typo"]
    assert [w.code for w in reading.warnings] == ["MISHEARD"]
    assert reading.report_source == "given text and dictation"
    assert not any("Transcribe" in prompt for prompt in backend.asked)


def test_many_studies_come_one_by_one_and_a_bad_one_is_named(volume: Volume, tmp_path: Path):
    pulled = []

    def cases():
        for case in (volume, Case(tmp_path / "none"), Case(volume, "No nodule.")):
            pulled.append(case)
            yield case

    results = CtReportPipeline(FakeBackend())(cases())
    first = next(results)
    assert len(pulled) == 1, "studies must not be held all at once"
    second, third = results
    assert isinstance(first, Reading)
    assert isinstance(second, Failed)
    assert isinstance(third, Reading)
    assert (second.index, second.error) == (1, "MissingInput")
    assert "'none' does not exist" in second.message
    assert third.agreement == "agrees"


def test_words_given_beside_many_studies_are_refused(volume: Volume):
    with pytest.raises(InvalidMessage, match=r"pipelines.ct_report.Case"):
        CtReportPipeline(FakeBackend())([volume], report="No nodule.")


def test_what_is_no_study_is_refused():
    with pytest.raises(InvalidMessage, match="not a int"):
        CtReportPipeline(FakeBackend())(7)


def test_a_model_that_cannot_see_is_refused(volume: Volume):
    blind = FakeBackend(modalities=frozenset({"text"}))
    with pytest.raises(IncompatibleModel, match="cannot see"):
        read(blind, volume)


def test_dictation_needs_a_model_that_hears(volume: Volume, speech: np.ndarray):
    deaf = FakeBackend(modalities=frozenset({"text", "dicom"}))
    with pytest.raises(IncompatibleModel, match="cannot hear"):
        read(deaf, volume, None, (speech, 16000))


def away(volume: Volume, **changes: Any) -> Volume:
    return replace(volume, info=replace(volume.info, **changes))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda v: away(v, modality="MR"), "it is MR, not calibrated CT"),
        (lambda v: away(v, modality=""), "unknown modality"),
        (lambda v: replace(v, unit=""), "not calibrated CT"),
        (
            lambda v: replace(v, voxels=v.voxels[:7], positions_mm=v.positions_mm[:7]),
            "it has 7 slices, fewer than 8",
        ),
    ],
)
def test_what_is_no_calibrated_ct_volume_gets_no_claim(volume: Volume, change: Any, why: str):
    backend = FakeBackend(chances={"nodule": 0.99}, regions=(RIGHT, LEFT))
    reading = read(backend, change(volume), "No nodule.", None, "Is there a nodule?")
    assert reading.out_of_range
    assert reading.warnings[0].code == "OUT_OF_RANGE"
    assert why in reading.warnings[0].message
    assert (reading.findings, reading.discrepancies, reading.evidence) == ((), (), ())
    assert reading.agreement == "abstained"
    assert "outside" in str(reading.answer)
    assert "outside what this model was validated on" in reading.verdict()
    assert "Is there a nodule?" not in backend.asked


def test_a_study_unlike_the_validated_ones_gets_no_claim(volume: Volume):
    backend = FakeBackend(far=Novelty(6.0, 2.0), chances={"nodule": 0.99})
    reading = read(backend, volume, "No nodule.")
    assert "3.0 times farther" in reading.warnings[0].message
    assert reading.findings == ()
    assert reading.agreement == "abstained"
    assert not read(FakeBackend(far=Novelty(2.0, 2.0)), volume).out_of_range


def test_a_sentence_too_long_to_judge_is_named_and_forbids_agreement(volume: Volume):
    class Short(FakeBackend):
        def generate(self, messages, options=None):
            if len(messages[-1].text) > 200:
                raise ContextOverflow("the prompt takes 900 tokens")
            return super().generate(messages, options)

    reading = read(Short(), volume, f"No nodule. The heart is {'very ' * 60}large.")
    assert [(w.code, w.subject) for w in reading.warnings] == [
        ("NOT_JUDGED", "sentence 2"),
        ("NOT_JUDGED", "what the report leaves out"),
    ]
    assert reading.agreement == "abstained"
    assert reading.verdict() == "No verdict: part of the report could not be judged."


def test_problems_of_the_series_are_passed_on(volume: Volume, phantom_series: Path, tmp_path: Path):
    for file in sorted(phantom_series.iterdir()):
        if file.name != "slice_0011.dcm":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "notes.txt").write_text("hello")
    reading = read(FakeBackend(), tmp_path)
    assert {w.code for w in reading.warnings} >= {"MISSING_SLICE", "NOT_DICOM"}
    assert len(set(reading.warnings)) == len(reading.warnings)


def test_a_missing_study_is_named(tmp_path: Path):
    with pytest.raises(MissingInput, match="'nowhere' does not exist"):
        read(FakeBackend(), tmp_path / "nowhere")


def test_boxes_are_cut_to_the_slice(volume: Volume):
    rows, columns = volume.voxels.shape[1:]
    wide = replace(RIGHT, box=(-9.0, 3.0, columns + 9.0, rows + 9.0))
    beyond = replace(LEFT, box=(-9.0, 3.0, -2.0, 8.0))
    backend = FakeBackend(chances={"nodule": 0.9}, regions=(wide, beyond))
    right, left = read(backend, volume).findings
    assert right.box == (0.0, 3.0, float(columns), float(rows))
    assert (left.box, left.slice_index) == (None, 9)


def test_usage_and_timings_count_every_question(volume: Volume):
    backend = FakeBackend()
    reading = read(backend, volume, "No nodule.", None, "Why?")
    assert reading.usage["questions"] == len(backend.asked)
    assert reading.usage["prompt_tokens"] == sum(len(a.split()) for a in backend.asked)
    stages = {"read", "look", "findings", "review", "answer", "pictures", "total"}
    assert set(reading.timings_s) == stages
    parts = sum(s for name, s in reading.timings_s.items() if name != "total")
    assert parts <= reading.timings_s["total"] * 1.01 + 1e-3


def test_the_dictionary_is_json_and_holds_the_whole_reading(volume: Volume):
    backend = FakeBackend(chances={"a right nodule": 0.9}, regions=(RIGHT, LEFT))
    reading = read(backend, volume, "No nodule.")
    told = json.loads(reading.to_json())
    assert told == reading.to_dict()
    assert set(told) == set(Reading.__dataclass_fields__) - {"key_slices"}
    assert told["findings"][0]["box"] == [4.0, 6.0, 12.0, 20.0]
    assert told["study"]["modality"] == "CT"
    assert "medical device" in told["disclaimer"]


# --- a real composite: random weights, real everything else -----------------------------------


@pytest.fixture(scope="module")
def random_reader(tiny_composite: Any) -> CtReportPipeline:
    from multimodal.local import LocalBackend

    return pipeline("ct-report", LocalBackend(*tiny_composite, name="random"))


def test_evidence_of_a_real_model_lies_in_the_slice_and_leads_to_millimetres(
    random_reader: CtReportPipeline, volume: Volume
):
    regions = random_reader.backend.generate
    from multimodal.backends import GenerateOptions, collect
    from multimodal.messages import Study, user
    from pipelines.evidence import as_evidence

    options = GenerateOptions(ground=True, max_new_tokens=1)
    found = collect(regions([user(Study(volume), LIST_FINDINGS)], options)).regions
    assert len(found) == 3  # right and left nodule, cardiomegaly
    for region in found:
        proof = as_evidence(region, volume.voxels.shape[1:])
        assert proof.slice_index is not None
        assert proof.position_mm == pytest.approx(volume.positions_mm[proof.slice_index])
        if proof.box is None:
            continue
        x0, y0, x1, y1 = proof.box
        assert 0 <= x0 < x1 <= volume.voxels.shape[2]
        assert 0 <= y0 < y1 <= volume.voxels.shape[1]
        middle = volume.at((proof.slice_index, (y0 + y1 - 1) / 2, (x0 + x1 - 1) / 2))
        axis = {"right": -1, "left": 1}.get(str(region.side))
        centre_x = volume.at([(n - 1) / 2 for n in volume.voxels.shape])[0]
        assert axis is None or axis * (middle[0] - centre_x) > -30  # the box is around a peak there


@pytest.mark.parametrize(
    "series",
    [
        "chest_full_lowres", "chest_lidc_0001", "abdomen_j2k", "head_phantom_study", "oblique",
        "enhanced", "xray", "ultrasound", "missing_slice", "overlay",
    ],
)  # fmt: skip
def test_real_studies_are_read_to_the_end(
    random_reader: CtReportPipeline, shared_data: Path, series: str
):
    words = "There is a 14 mm nodule in the right lung."
    reading = random_reader(shared_data / series, words, allow_burned_in=True)
    assert json.loads(reading.to_json())["study"]["num_slices"] >= 1
    assert reading.key_slices
    assert reading.agreement in ("agrees", "disagrees", "abstained")
    if reading.study["modality"] != "CT":
        assert reading.out_of_range


def test_the_ct_slice_of_pydicom_is_read_and_too_little(random_reader: CtReportPipeline):
    from pydicom.data import get_testdata_file

    reading = random_reader(str(get_testdata_file("CT_small.dcm")), "No nodule.", None, "What?")
    assert reading.out_of_range
    assert reading.study["modality"] == "CT"
    assert "CompressedSamples" not in reading.to_json() + reading.to_html()


needs_demo = pytest.mark.skipif(
    not (DEMO / "model.safetensors").is_file(), reason="needs the demo checkpoint (make train-demo)"
)


@pytest.fixture(scope="module")
def demo_reader() -> CtReportPipeline:
    return pipeline("ct-report", device="cpu")


@needs_demo
@pytest.mark.parametrize("series", ["chest_full_lowres", "chest_lidc_0001", "abdomen_j2k"])
def test_the_demo_model_withholds_its_verdict_on_real_ct(
    demo_reader: CtReportPipeline, shared_data: Path, series: str
):
    reading = demo_reader(shared_data / series, "No nodule.", None, "What does this study show?")
    assert reading.out_of_range
    assert reading.agreement == "abstained"
    assert (reading.findings, reading.discrepancies) == ((), ())


@needs_demo
def test_the_demo_model_reads_its_sample(demo_reader: CtReportPipeline):
    report = (DEMO / "sample" / "report.txt").read_text(encoding="utf-8")
    reading = demo_reader(DEMO / "sample" / "study", report)
    assert not reading.out_of_range
    assert reading.findings
    assert reading.agreement == "disagrees"
