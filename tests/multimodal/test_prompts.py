"""Questions and answers survive being written and read; reports fall into their sentences."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.prompts import (
    ERROR_TYPES,
    FINDINGS_FORM,
    FORMS,
    SIZE_FORM,
    VERDICT_FORM,
    NamedFinding,
    Verdict,
    ask_presence,
    ask_size,
    format_findings,
    format_verdict,
    num_unread,
    parse_findings,
    parse_size_mm,
    parse_verdict,
    split_sentences,
    unquoted,
)

_names = st.sampled_from(
    ["nodule", "pleural effusion", "cardiomegaly", "rib fracture", "x-ray sign"]
)
_findings = st.builds(
    NamedFinding,
    _names,
    st.sampled_from(["right", "left", None]),
    st.none() | st.integers(1, 300).map(float),
)


@given(st.lists(_findings, max_size=6))
@settings(max_examples=100, deadline=None)
def test_findings_survive_being_written(findings: list[NamedFinding]) -> None:
    assert parse_findings(format_findings(findings)) == findings


_sentences = st.text("abc. 5", min_size=1).map(str.strip).filter(lambda s: s and s != "remove")
_verdicts = st.builds(Verdict, st.none()) | st.builds(
    Verdict, st.sampled_from(ERROR_TYPES), st.none() | _sentences
)


@given(_verdicts)
@settings(max_examples=100, deadline=None)
def test_verdicts_survive_being_written(verdict: Verdict) -> None:
    assert parse_verdict(format_verdict(verdict)) == verdict


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_answer_of_a_model_is_read_without_an_error(text: str) -> None:
    assert all(f.name for f in parse_findings(text))
    verdict, size = parse_verdict(text), parse_size_mm(text)
    assert verdict is None or verdict.error in (*ERROR_TYPES, None)
    assert size is None or size >= 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Right nodule 14 mm; left pleural effusion", [
            NamedFinding("nodule", "right", 14.0), NamedFinding("pleural effusion", "left")]),
        ("no findings", []),
        ("", []),
        ("nodule 7.5 mm;; ???", [NamedFinding("nodule", None, 7.5)]),
    ],
)  # fmt: skip
def test_a_list_of_findings_is_read(text: str, wanted: list[NamedFinding]) -> None:
    assert parse_findings(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("14 mm", 14.0), ("about 1.4 cm in size", 14.0), ("14mm", 14.0), ("14", None), ("", None)],
)
def test_a_size_is_read_in_millimetres(text: str, wanted: float | None) -> None:
    assert parse_size_mm(text) == (None if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Agrees.", Verdict(None)),
        ("nothing", Verdict(None)),
        ("insertion: remove", Verdict("insertion")),
        ("Direction: left nodule: 5 mm", Verdict("direction", "left nodule: 5 mm")),
        ("direction", None),
        ("I think so: yes", None),
    ],
)
def test_a_verdict_is_read(text: str, wanted: Verdict | None) -> None:
    assert parse_verdict(text) == wanted


def test_questions_name_side_and_finding() -> None:
    assert ask_presence("nodule", "right") == "Is there a right nodule?"
    assert ask_presence("cardiomegaly", None) == "Is there a cardiomegaly?"
    assert ask_size("nodule", "left") == "How large is the left nodule?"


REPORT = """CT CHEST WITHOUT CONTRAST

CLINICAL HISTORY: Cough for 3 weeks. Smoker.
TECHNIQUE: Helical CT of the chest. 1.25 mm slices.
COMPARISON: CT of 3 May 2023.

FINDINGS:
Lungs: There is a 6 mm nodule in the right upper lobe (series 4, image 52). No pneumothorax.
Pleura: Small left effusion measuring 1.5 cm, unchanged.
1. The heart is enlarged.
2) No pericardial effusion.
- Dr. Lee was informed. Approx. size is stable.

IMPRESSION:
1. Right upper lobe nodule of 6 mm, see
   guidelines.
2. Is there a fracture? Not seen!
"""


def test_a_report_falls_into_its_statements() -> None:
    assert split_sentences(REPORT) == [
        "CT CHEST WITHOUT CONTRAST",
        "There is a 6 mm nodule in the right upper lobe (series 4, image 52).",
        "No pneumothorax.",
        "Small left effusion measuring 1.5 cm, unchanged.",
        "The heart is enlarged.",
        "No pericardial effusion.",
        "Dr. Lee was informed.",
        "Approx. size is stable.",
        "Right upper lobe nodule of 6 mm, see guidelines.",
        "Is there a fracture?",
        "Not seen!",
    ]


def test_chinese_full_stops_end_sentences_without_a_space() -> None:
    report = "所见：右肺上叶见6mm结节。左侧少量胸腔积液。心影增大。\n印象：右肺结节，建议随访。"
    assert split_sentences(report) == [
        "右肺上叶见6mm结节。", "左侧少量胸腔积液。", "心影增大。", "右肺结节，建议随访。",
    ]  # fmt: skip


def test_chinese_sections_that_state_no_finding_are_left_out() -> None:
    report = "临床病史：咳嗽三周。\n检查技术：胸部CT平扫。\n所见：右肺结节；左肺清晰！心脏不大？"
    assert split_sentences(report) == ["右肺结节；", "左肺清晰！", "心脏不大？"]


@given(st.text("ab. \n:-12。A", max_size=80))
@settings(max_examples=200, deadline=None)
def test_no_sentence_is_empty_and_no_word_is_made_up(report: str) -> None:
    for sentence in split_sentences(report):
        assert sentence == sentence.strip() != ""
        assert "".join(sentence.split()) in "".join(report.split())


def test_the_examples_of_the_forms_are_what_is_read() -> None:
    listed, corrected = re.findall(r"as in: (.*)", FORMS)
    named = parse_findings(listed.partition(". Without")[0])
    assert [(f.name, f.side, f.size_mm) for f in named] == [
        ("nodule", "right", 14.0), ("pleural effusion", "left", None), ("cardiomegaly", None, None),
    ]  # fmt: skip
    verdict = parse_verdict(corrected.partition(" Where")[0])
    assert verdict == Verdict("direction", "There is a nodule in the right lung.")
    assert set(ERROR_TYPES) <= set(re.findall(r"\w+", FORMS))


@pytest.mark.parametrize(
    ("text", "unread"),
    [("Right nodule 14 mm; cardiomegaly.", 0), ("No findings.", 0), ("", 0), ("a (b); c: d; e", 2)],
)
def test_items_that_cannot_be_read_are_counted(text: str, unread: int) -> None:
    assert num_unread(text) == unread


@given(st.from_regex(FINDINGS_FORM, fullmatch=True))
@settings(max_examples=100, deadline=None)
def test_every_answer_in_the_findings_form_is_read_whole(text: str) -> None:
    assert num_unread(text) == 0
    assert unquoted(json.dumps(text)) == text


@given(st.from_regex(VERDICT_FORM, fullmatch=True))
@settings(max_examples=100, deadline=None)
def test_every_answer_in_the_verdict_form_is_a_verdict(text: str) -> None:
    assert parse_verdict(text) is not None


@given(st.from_regex(SIZE_FORM, fullmatch=True))
@settings(max_examples=30, deadline=None)
def test_every_answer_in_the_size_form_is_a_size(text: str) -> None:
    assert parse_size_mm(text) == float(text.partition(" ")[0])


def test_of_an_answer_that_was_cut_off_the_words_are_kept() -> None:
    assert unquoted('"right nodule 14 mm; left pl') == "right nodule 14 mm; left pl"
