"""Which finding and side a sentence speaks of, in both languages of reports."""

from __future__ import annotations

import pytest

from multimodal.prompts import Side
from multimodal.terms import mentions, spoken_of
from multimodal.training.world.findings import KINDS, Shown, keys_of
from multimodal.training.world.phantom import FINDINGS
from multimodal.training.world.reports import Sentence
from multimodal.training.world.wording import Language

NAMES = [name for name, _ in FINDINGS]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("name", "side"), keys_of(), ids=str)
@pytest.mark.parametrize("denied", [False, True])
def test_every_wording_of_the_generated_world_is_understood(
    name: str, side: Side | None, denied: bool, language: Language
) -> None:
    everything = [kind.name for kind in KINDS]
    for place in (None, "upper lobe", "T8"):
        about = Shown(name, side, 14.0, place)
        for style in range(8):
            text = Sentence(about, denied, (style, False), language, rich=True).text
            assert list(mentions(text, everything)) == [(name, side)], text


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("There is a small pericardial effusion.", None),
        ("Massive left effusion.", ("pleural effusion", "left")),
        ("Nodules in both lungs.", ("nodule", None)),
        ("The right lung is clear, a nodule lies in the left.", ("nodule", "left")),
        ("No bony lesion.", None),
        ("A bright spot.", None),
        ("心包积液。", None),
        ("双侧胸腔积液。", ("pleural effusion", None)),
        ("右肺清晰，左肺见14 mm结节。", ("nodule", "left")),
    ],
)
def test_other_wordings_name_the_finding_or_nothing(sentence: str, expected: tuple | None) -> None:
    assert spoken_of(sentence, NAMES) == expected


def test_every_finding_of_a_sentence_is_mentioned_with_its_side() -> None:
    found = list(mentions("Right nodule, left pleural effusion.", NAMES))
    assert set(found) == {("nodule", "right"), ("pleural effusion", "left")}


def test_only_findings_the_model_knows_are_named() -> None:
    assert spoken_of("There is a nodule and an effusion.", ["pleural effusion"]) == (
        "pleural effusion",
        None,
    )


def test_a_finding_of_another_model_is_known_by_its_own_name() -> None:
    assert spoken_of("Left adrenal adenoma.", ["adrenal adenoma"]) == ("adrenal adenoma", "left")
