"""What is said of a sentence and what is seen of the study, weighed into one verdict; corrections."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal.measuring import Measuring, median_mm
from multimodal.mending import mended
from multimodal.prompts import AGREES, SIZES, NamedFinding, parse_findings
from multimodal.review import (
    VERDICTS,
    ReviewWeights,
    as_spoken,
    believed,
    both_told,
    claim_of,
    denial,
    is_spoken,
    lacking,
    left_out,
    measure_of,
    sizes_of,
    states,
    surest_unspoken,
    weigh,
    worst_of,
)
from multimodal.terms import deny, is_chinese, mentions
from multimodal.training.world.findings import Shown, keys_of
from multimodal.training.world.reports import Sentence
from multimodal.training.world.wording import CHINESE

NAMES = ["nodule", "pleural effusion", "cardiomegaly", "aortic aneurysm", "kidney stone"]
WORDS_ALONE = ReviewWeights(1.0, 0.0, {}, (1.0, 0.0, 0.0))
BOTH = ReviewWeights(1.0, 1.0, {}, (1.0, 1.0, 0.0))
RIGHT, LEFT = ("nodule", "right"), ("nodule", "left")
NODULE = NamedFinding("nodule", "right", 14.0)


def said(**chances: float) -> dict[str, float]:
    """Verdicts with these probabilities, what is left shared by the others."""
    rest = (1 - sum(chances.values())) / (len(VERDICTS) - len(chances))
    return {kind: chances.get(kind, rest) for kind in VERDICTS}


# a sentence that states a finding: of which "omission" is no possible mistake
UNSURE = said(omission=1e-4)
DENIAL = said(agrees=0.5, omission=0.4)

_shares = st.lists(st.floats(1e-6, 1.0), min_size=7, max_size=7)
_chance = st.floats(0.0, 1.0)


@given(_shares)
def test_without_weight_of_what_is_seen_the_words_alone_decide(shares: list[float]) -> None:
    stated = {kind: share / sum(shares) for kind, share in zip(VERDICTS, shares, strict=True)}
    found = weigh(
        stated, NODULE, {RIGHT: 0.0, LEFT: 1.0}, denied=0.1, sizes={40.0: 1.0}, weights=WORDS_ALONE
    )
    assert found == pytest.approx(stated, rel=1e-6)


@given(_shares, _chance, _chance, _chance, st.none() | st.floats(1.0, 100.0))
def test_verdicts_are_probabilities_whatever_is_seen(
    shares: list[float], right: float, left: float, denied: float, measured: float | None
) -> None:
    stated = {kind: share / sum(shares) for kind, share in zip(VERDICTS, shares, strict=True)}
    for claim in (None, NODULE, NamedFinding("nodule"), NamedFinding("mass", "left", 9.0)):
        found = weigh(
            stated,
            claim,
            {RIGHT: right, LEFT: left},
            denied=denied,
            sizes={measured: 1.0} if measured else {},
            weights=BOTH,
        )
        assert sum(found.values()) == pytest.approx(1.0)
        assert all(0.0 <= chance <= 1.0 for chance in found.values())


@given(_shares, _chance)
def test_a_dictated_sentence_cannot_be_misspelt(shares: list[float], surely: float) -> None:
    """What else is wrong with it is as likely as it was, if it was said so at all."""
    stated = {kind: share / sum(shares) for kind, share in zip(VERDICTS, shares, strict=True)}
    found = as_spoken(stated, surely)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["typo"] == 0.0
    for kind in set(VERDICTS) - {AGREES, "typo"}:
        assert found[kind] == pytest.approx(surely * stated[kind])
    assert found[worst_of(found)] == max(found[k] for k in VERDICTS if k != AGREES)


@pytest.mark.parametrize(
    ("right", "left", "measured", "verdict"),
    [(0.99, 0.01, 14.0, AGREES), (0.01, 0.99, 14.0, "direction"), (0.01, 0.01, None, "insertion"),
     (0.99, 0.01, 30.0, "size"), (0.99, 0.01, None, AGREES), (0.99, 0.99, 15.0, AGREES)],
)  # fmt: skip
def test_what_is_seen_decides_where_the_words_do_not(
    right: float, left: float, measured: float | None, verdict: str
) -> None:
    sizes = {measured: 1.0} if measured else {}
    found = weigh(UNSURE, NODULE, {RIGHT: right, LEFT: left}, denied=0.0, sizes=sizes, weights=BOTH)
    assert max(found, key=found.__getitem__) == verdict


@given(_shares, _chance, _chance)
def test_a_side_is_no_mistake_where_the_report_tells_of_both(
    shares: list[float], right: float, left: float
) -> None:
    """What is seen on the other side is another sentence's; all else stays as likely as it was."""
    stated = {kind: share / sum(shares) for kind, share in zip(VERDICTS, shares, strict=True)}
    seen = {RIGHT: right, LEFT: left}
    one, both = (
        weigh(stated, NODULE, seen, denied=0.1, sizes={}, weights=BOTH, both=told)
        for told in (False, True)
    )
    assert both["direction"] == 0.0
    for kind in set(VERDICTS) - {"direction", "insertion"}:
        assert both[kind] / both[AGREES] == pytest.approx(one[kind] / one[AGREES], rel=1e-6)
    assert both["insertion"] / both[AGREES] >= one["insertion"] / one[AGREES] * (1 - 1e-9)


def test_a_second_side_that_is_not_there_was_inserted() -> None:
    stated, seen = said(direction=0.9, agrees=0.05, insertion=0.04), {RIGHT: 0.01, LEFT: 0.99}
    found = weigh(stated, NODULE, seen, denied=0.0, sizes={}, weights=BOTH, both=True)
    assert max(found, key=found.__getitem__) == "insertion"


@pytest.mark.parametrize(
    ("other", "told"),
    [("There is a 9 mm nodule in the left lung.", True), ("左肺见9 mm结节。", True),
     ("No left lung nodule.", False), ("A mass in the left lung.", False),
     ("There is a 9 mm nodule in the right lung.", False), ("Nodules in both lungs.", True),
     ("No nodule in either lung.", False), ("Masses in both lungs.", False)],
)  # fmt: skip
def test_both_sides_are_told_where_another_sentence_states_the_other(
    other: str, told: bool
) -> None:
    own = "There is a 14 mm nodule in the right lung."
    assert both_told(NODULE, [own, "No cardiomegaly.", other]) == told
    assert not both_told(NODULE, [own])
    assert not both_told(NamedFinding("nodule"), [own, other])
    assert not both_told(None, [own, other])


@pytest.mark.parametrize(
    ("side", "verdict"), [("right", AGREES), (None, "omission"), ("left", "omission")]
)
def test_a_denial_is_wrong_where_a_side_that_it_denies_shows_the_finding(
    side: str | None, verdict: str
) -> None:
    claim = NamedFinding("nodule", side)  # type: ignore[arg-type]
    presence = {RIGHT: 0.02, LEFT: 0.98}
    found = weigh(DENIAL, claim, presence, denied=1.0, sizes={}, weights=BOTH)
    assert max(found, key=found.__getitem__) == verdict


def test_a_size_is_as_wrong_as_the_sizes_far_from_it_are_likely() -> None:
    """Bayes again: of a finding that is there, 14 mm against the 0.7 of sizes beyond a factor of 1.3."""
    sizes = {11.0: 0.1, 14.0: 0.1, 18.0: 0.1, 19.0: 0.3, 30.0: 0.4}
    found = weigh(UNSURE, NODULE, {RIGHT: 1.0, LEFT: 0.0}, denied=0.0, sizes=sizes, weights=BOTH)
    assert found["size"] / found[AGREES] == pytest.approx(
        0.7 / 0.3 * UNSURE["size"] / UNSURE[AGREES]
    )


@pytest.mark.parametrize(("said_mm", "held"), [(2.0, 3.0), (110.0, 80.0), (400.0, 80.0)])
def test_a_size_beyond_all_that_are_asked_for_is_no_mistake_where_the_last_is_likely(
    said_mm: float, held: float
) -> None:
    claim = NamedFinding("nodule", "right", said_mm)
    sizes = {3.0: 0.0, 80.0: 0.0} | {held: 1.0}
    found = weigh(UNSURE, claim, {RIGHT: 0.99, LEFT: 0.0}, denied=0.0, sizes=sizes, weights=BOTH)
    assert max(found, key=found.__getitem__) == AGREES


def test_the_median_of_sizes_is_the_first_that_half_of_them_do_not_exceed() -> None:
    assert median_mm({14.0: 0.2, 12.0: 0.2, 30.0: 0.6}) == 30.0
    assert median_mm({14.0: 0.3, 12.0: 0.3, 30.0: 0.4}) == 14.0
    assert median_mm({}) is None


@given(st.dictionaries(st.sampled_from(SIZES), st.floats(0.01, 1.0), min_size=1))
def test_sizes_are_read_back_as_a_list_states_them(chances: dict[str, float]) -> None:
    read = sizes_of("nodule", chances, None, BOTH)
    for words, chance in chances.items():
        (finding,) = parse_findings(f"right nodule {words}")
        assert finding.size_mm is not None
        assert read[finding.size_mm] == chance


def test_a_size_is_likely_as_it_is_said_and_as_it_is_measured() -> None:
    """Student's t of three degrees in the logarithm, times what is said to a power."""
    weights = replace(BOTH, measure=Measuring(0.5, {"nodule": 0.2}))
    chances = {"10 mm": 0.64, "20 mm": 0.36}
    found = sizes_of("nodule", chances, 20.0, weights)
    far = (1 + (math.log(2) / 0.2) ** 2) ** -2
    assert found[10.0] / found[20.0] == pytest.approx(0.8 * far / 0.6)
    assert sum(found.values()) == pytest.approx(1.0)
    said = {10.0: 0.64, 20.0: 0.36}
    assert sizes_of("nodule", chances, 20.0, BOTH) == said  # it measures nothing
    assert sizes_of("nodule", chances, None, weights) == said
    assert sizes_of("nodule", {}, 20.0, weights) == {}


def test_of_a_finding_whose_size_nobody_learned_no_size_is_wrong() -> None:
    """A report may well state a pneumothorax of 2 cm; what a head says of it is arbitrary."""
    weights = replace(BOTH, measure=Measuring(0.5, {"nodule": 0.2}))
    assert sizes_of("pneumothorax", {"10 mm": 1.0}, 60.0, weights) == {}


def test_of_two_sides_nobody_knows_which_measure_is_meant() -> None:
    measured = {RIGHT: 12.0, LEFT: 20.0, ("liver lesion", None): 31.0}
    assert measure_of("nodule", "right", measured) == 12.0
    assert measure_of("nodule", None, measured) is None
    assert measure_of("liver lesion", None, measured) == 31.0
    assert measure_of("ascites", None, measured) is None


def test_a_product_of_both_opinions_is_what_weights_of_one_give() -> None:
    """Bayes: p(verdict) is proportional to what is said times how likely what is seen is under it."""
    stated = said(agrees=0.3, insertion=0.5, omission=1e-4)
    found = weigh(stated, NODULE, {RIGHT: 0.8, LEFT: 0.1}, denied=0.0, sizes={}, weights=BOTH)
    odds = (0.3 * 0.8 * (1 - 1e-4)) / (0.5 * 0.2 * 0.9)
    assert found[AGREES] / found["insertion"] == pytest.approx(odds)


def test_what_is_added_makes_a_verdict_rarer() -> None:
    rare = ReviewWeights(1.0, 0.0, {"insertion": -math.log(4)}, (1, 0, 0))
    found = weigh(said(agrees=0.4, insertion=0.4), None, {}, denied=0.5, sizes={}, weights=rare)
    assert found["insertion"] / found[AGREES] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("sentence", "claim"),
    [("A 1.4 cm nodule in the right lung.", NODULE),
     ("右肺结节，大小约14毫米。", NODULE),
     ("右肺结节，约14mm左右。", NODULE),
     ("Right nodule of 8 mm x 14 mm.", NODULE),
     ("A 14-mm nodule on the right.", NODULE),
     ("Right nodule of 1.4 by 0.9 cm.", NODULE),
     ("Right nodule of 8-10 mm.", NamedFinding("nodule", "right")),
     ("Right nodule, 3 cm above the diaphragm.", NamedFinding("nodule", "right")),
     ("Right nodule, volume 3 cm3.", NamedFinding("nodule", "right")),
     ("Bilateral pleural effusions.", None),
     ("Right and left nodules.", None),
     ("No pleural effusion.", NamedFinding("pleural effusion")),
     ("Nodule of 8 x 14 mm on the right.", NODULE),
     ("The right nodule grew from 8 mm to 14 mm.", NamedFinding("nodule", "right")),
     ("Right nodule, left pleural effusion.", None), ("Nothing else.", None)],
)  # fmt: skip
def test_a_sentence_claims_one_finding_or_nothing_to_be_weighed(
    sentence: str, claim: NamedFinding | None
) -> None:
    assert claim_of(sentence, NAMES) == claim


def test_a_finding_is_there_by_what_is_said_and_what_is_seen_of_it() -> None:
    """A product of odds; without weights of both, or nothing seen, the answer stands."""
    even = replace(BOTH, presence=(1.0, 1.0, 0.0))
    assert believed(0.8, 0.9, even) == pytest.approx(36 / 37)
    assert believed(0.8, 0.1, replace(BOTH, presence=(0.0, 1.0, math.log(2)))) == pytest.approx(
        2 / 11
    )
    assert believed(0.8, 0.0, even) > 0.0
    assert believed(0.8, None, even) == believed(0.8, 0.1, BOTH) == believed(0.8, 0.1, None) == 0.8


def test_the_surest_finding_of_which_nobody_speaks() -> None:
    presence = {RIGHT: 0.7, LEFT: 0.9, ("cardiomegaly", None): 0.4}
    report = ["There is a left nodule.", "Heart size is normal."]
    assert surest_unspoken(presence, report, NAMES) == (RIGHT, 0.7)
    assert surest_unspoken(presence, ["Nodules in both lungs."], NAMES) == (
        ("cardiomegaly", None),
        0.4,
    )
    listed = ["Right nodule, left nodule and cardiomegaly."]
    assert surest_unspoken(presence, ["Cardiomegaly with nodules."], NAMES) is None
    assert surest_unspoken(presence, listed, NAMES) is None
    assert surest_unspoken(presence, ["Right and left nodules."], NAMES) == (
        ("cardiomegaly", None),
        0.4,
    )
    assert is_spoken(presence, "A right nodule.", listed, NAMES)
    assert not is_spoken(presence, "A left nodule.", ["A right nodule."], NAMES)
    assert not is_spoken(presence, "Something.", listed, NAMES)


def test_left_out_by_both_opinions() -> None:
    assert left_out(0.8, 0.5, BOTH) == pytest.approx(0.8)
    assert left_out(0.8, 0.2, BOTH) == pytest.approx(0.5)
    assert left_out(0.5, 0.0, BOTH) < 0.01


@pytest.mark.parametrize(
    ("sentence", "kind", "measured", "written", "right"),
    [("Left lung nodule of 14 mm.", "direction", None, None, "Right lung nodule of 14 mm."),
     ("Left lung nodule of 14 mm.", "direction", None, "Right lung nodule of 9 mm.", "Right lung nodule of 14 mm."),
     ("左肺见14 mm结节。", "direction", None, None, "右肺见14 mm结节。"),
     ("The right lung is clear, left nodule.", "direction", None, None, None),
     ("A nodule of 14 cm.", "unit", None, "A nodule of 9 mm.", "A nodule of 14 mm."),
     ("右肺见1.2 mm结节。", "unit", None, None, "右肺见1.2 cm结节。"),
     ("A nodule of 14 mm.", "size", 31.0, None, "A nodule of 31 mm."),
     ("A nodule of 1.4 cm.", "size", 31.0, "A mass of 2 cm.", "A nodule of 3.1 cm."),
     ("A nodule of 14 x 9 mm.", "size", 31.0, "A nodule of 31 mm.", "A nodule of 31 mm."),
     ("Grew from 8 mm to 14 mm.", "size", 31.0, None, None),
     ("RIGHT LUNG NODULE.", "direction", None, None, "LEFT LUNG NODULE."),
     ("右肺结节，约14mm左右。", "direction", None, None, "左肺结节，约14mm左右。"),
     ("Nodule in the right middle lobe.", "direction", None, None, None),
     ("Right nodule and right effusion.", "direction", None, "As written.", "As written."),
     ("Nodule of 8-10 mm.", "size", 31.0, None, None),
     ("Nodule 3 cm from the carina.", "size", 8.0, None, None),
     ("右肺未见结结节。", "typo", None, "右肺可见结节。", "右肺未见结节。"),
     ("右肺上叶可见一结结节。", "typo", None, "左肺上叶可见一结节。", "右肺上叶可见一结节。"),
     ("No calcificatoin, abnormal liver.", "typo", None, "No calcification, normal liver.",
      "No calcification, abnormal liver."),
     ("A hypodense lesoin.", "typo", None, "A hyperdense lesion.", "A hypodense lesion."),
     ("Decreased nodlue.", "typo", None, "Increased nodule.", "Decreased nodule."),
     ("A non-calcified nodlue.", "typo", None, "A calcified nodule.", "A non-calcified nodule."),
     ("An atypical nodlue.", "typo", None, "A typical nodule.", "An atypical nodule."),
     ("Rihgt lung: a nodule of 14 mm.", "typo", None, "There is a 14 mm nodule in the right lung.",
      "Right lung: a nodule of 14 mm."),
     ("No convincing consolidation in the rigt lung.", "typo", None, "No consolidation in the right lung.",
      "No convincing consolidation in the right lung."),
     ("A lession by a lesion.", "typo", None, "Lesions by a lesion.", "A lesion by a lesion."),
     ("Rihgt lung.", "typo", None, "In the right lung.", "Right lung."),
     ("In the rihgt lung.", "typo", None, "Right lung.", "In the right lung."),
     ("A lesionn.", "typo", None, "A lesion and lesions.", None),
     ("无胸。", "typo", None, "无气胸。", "无气胸。"),
     ("右侧肋骨病灶，大约21 mm。", "typo", None, "右侧肋骨病灶，大小约21 mm。", "右侧肋骨病灶，大小约21 mm。"),
     ("左肺未未见结节。", "typo", None, "左肺未见结节。", "左肺未见结节。"),
     ("左肺肺无结节。", "typo", None, "左肺见7 mm结节。", "左肺无结节。"),
     ("左肺肺无结节。", "typo", None, None, "左肺无结节。"),
     ("左肺肺上叶无结结节。", "typo", None, None, None),
     ("颅内见脑出血。", "typo", None, "颅内未见脑出血。", None),
     ("右肺上叶结节，考虑恶恶性。", "typo", None, "右肺下叶结节，考虑恶性。", "右肺上叶结节，考虑恶性。"),
     ("A pneumo thorax of 14 mm.", "typo", None, "A pneumothorax of 41 mm.", None),
     ("A nodlue of 14 mm in the upper lobe.", "typo", None, "A nodule of 9 mm in the lower lobe.",
      "A nodule of 14 mm in the upper lobe."),
     ("右肺可见一结结节。", "typo", None, "右肺可见一结节。", "右肺可见一结节。"),
     ("A nodule.", "typo", None, "There is a large pleural effusion on the left.", None),
     ("A pneumo thorax on the left.", "typo", None, "A pneumothorax on the left.", "A pneumothorax on the left."),
     ("There is a mass.", "insertion", None, "Anything.", None),
     ("No nodule.", "omission", None, "There is a right nodule.", "There is a right nodule."),
     ("A nodule.", "size", 9.0, "A nodule.", None)],
)  # fmt: skip
def test_a_correction_changes_only_what_is_wrong(
    sentence: str, kind: str, measured: float | None, written: str | None, right: str | None
) -> None:
    assert mended(sentence, kind, measured, written) == right


def test_a_lacking_sentence_is_the_models_own_if_it_speaks_of_that_finding() -> None:
    assert lacking(RIGHT, "There is a 9 mm nodule in the right lung.").startswith("There is a 9 mm")  # type: ignore[arg-type]
    assert lacking(RIGHT, "There is a left nodule.") == "Right nodule."  # type: ignore[arg-type]
    assert lacking(RIGHT, "No nodule is seen in the right lung.") == "Right nodule."  # type: ignore[arg-type]
    assert lacking(("cardiomegaly", None), None) == "Cardiomegaly."


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("key", keys_of(), ids=str)
def test_denials_are_told_from_statements_even_by_words_alone(
    key: Any, language: Literal["en", "zh"]
) -> None:
    """What the model says of both is the same here; its opinion outweighs the words elsewhere."""
    torn = said(agrees=0.5, omission=0.1, insertion=0.05, direction=0.025, size=0.025)
    about = Shown(*key, 14.0, "upper lobe")
    for style, denied in itertools.product(range(8), (True, False)):
        text = Sentence(about, denied, (style, False), language, rich=True).text
        assert (denial(text, torn) > 0.5) == denied, text
        assert lacking(key, text) != text if denied else True
    assert denial("No nodule.", said(omission=1e-6, insertion=0.3)) < 0.01


@pytest.mark.parametrize("like", ["No nodule.", "未见结节。"])
@pytest.mark.parametrize("key", keys_of(), ids=str)
def test_the_plain_denial_of_every_finding_speaks_of_it_and_denies_it(key: Any, like: str) -> None:
    """In Chinese in the words that the demo checkpoint learned: it corrects no others."""
    text = deny(*key, like=like)
    side = {"right": "右", "left": "左"}.get(key[1], "")
    assert is_chinese(text) == is_chinese(like)
    assert text.startswith("No ") or text == CHINESE[key[0]].absent[0].format(side=side)
    assert list(mentions(text, [name for name, _ in keys_of()])) == [key]
    assert not states(text, key)


def test_a_finding_without_chinese_words_is_denied_in_english() -> None:
    assert deny("spleen", None, like="未见结节。") == "No spleen."
    assert deny("liver lesion", "left", like="未见结节。") == "No left liver lesion."


def test_weights_are_read_as_a_checkpoint_holds_them() -> None:
    held = {"said": 1.1, "seen": 0.3, "verdicts": {"size": -1.0}, "left_out": [0.7, 0.6, -2.0]}
    weights = ReviewWeights(1.1, 0.3, {"size": -1.0}, (0.7, 0.6, -2.0))
    assert ReviewWeights.read(held) == weights  # as versions before 6 hold them
    measuring = replace(weights, measure=Measuring(0.5, {"mass": 0.1, "nodule": 0.2}), sized=0.8)
    assert ReviewWeights.read(json.loads(json.dumps(asdict(measuring)))) == measuring
    assert ReviewWeights.read(json.loads(json.dumps(asdict(weights)))) == weights
    looking = replace(measuring, presence=(0.1, 0.9, -0.7))
    assert ReviewWeights.read(json.loads(json.dumps(asdict(looking)))) == looking
    assert ReviewWeights.read(None) is None
    told = asdict(replace(weights, measure=Measuring(0.5, {"mass": 0.2, "nodule": 0.2})))
    told["measure"] |= {"spread": 0.2, "names": ["mass", "nodule"]}  # as version 6 holds it
    assert ReviewWeights.read(told) == replace(
        measuring, sized=None, measure=Measuring(0.5, {"mass": 0.2, "nodule": 0.2})
    )


def test_a_wrong_size_weighs_as_much_as_sizes_are_given_weight() -> None:
    """The odds of "size" against "agrees" are those of a wrong size to that power, whatever sight weighs."""
    sizes = {14.0: 0.3, 30.0: 0.7}
    for weight, seen in ((0.0, 0.2), (0.5, 0.2), (2.0, 0.9)):
        weights = replace(BOTH, seen=seen, sized=weight)
        found = weigh(
            UNSURE, NODULE, {RIGHT: 1.0, LEFT: 0.0}, denied=0.0, sizes=sizes, weights=weights
        )
        said = UNSURE["size"] / UNSURE[AGREES]
        assert found["size"] / found[AGREES] == pytest.approx(said * (0.7 / 0.3) ** weight)
