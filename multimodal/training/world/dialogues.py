"""Questions about a generated study and their exact answers, balanced so that words betray nothing.

Prompts and answers are those of `multimodal.prompts`: what the pipelines ask is what is trained.
Chinese studies are asked and described in Chinese too, their answers to the fixed prompts stay in
the one form that the pipelines read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from multimodal import prompts
from multimodal.prompts import NamedFinding, Side, Verdict
from multimodal.training.world.mistakes import SENTENCE_MISTAKES, plant
from multimodal.training.world.reports import PHANTOM, Vocabulary, Writer, absent_keys
from multimodal.training.world.wording import NAMES_ZH, NOTHING, SIDES

TASKS = ("presence", "list", "size", "check", "omission", "side", "describe")
DESCRIBE = {
    "en": ("What does this study show?", "Summarise the study.", "What do you see?"),
    "zh": ("这次检查显示什么？", "请总结所见。"),
}

AUDIBLE = tuple(kind for kind in SENTENCE_MISTAKES if kind != "typo")
ELSEWHERE = 0.2  # of the questions answered no: about a finding of another region


@dataclass(frozen=True)
class Dialogue:
    """One question and its answer; `label` is what accuracy is counted on."""

    task: str
    question: str
    answer: str
    label: str = ""


def ask(
    task: str,
    truth: Sequence[NamedFinding],
    rng: np.random.Generator,
    vocabulary: Vocabulary = PHANTOM,
) -> Dialogue | None:
    """A random question of a task; None where the study gives no ground for one."""
    return _ASK[task](Writer(truth, rng, vocabulary))


def _presence(writer: Writer) -> Dialogue | None:
    """Half of the answers are yes; half of the no's are the other side of what is there."""
    truth, rng = writer.truth, writer.rng
    yes = bool(rng.random() < 0.5)
    absent = absent_keys(truth, writer.vocabulary)
    if yes and not truth:
        return None
    side: Side | None
    if not yes and writer.vocabulary.elsewhere and rng.random() < ELSEWHERE:
        name, sided = writer.vocabulary.elsewhere[rng.integers(len(writer.vocabulary.elsewhere))]
        side = ("right", "left")[rng.integers(2)] if sided else None
    elif yes:
        finding = truth[rng.integers(len(truth))]
        name, side = finding.name, finding.side
    else:
        names = {f.name for f in truth}
        mirrored = [key for key in absent if key[0] in names]
        pool = mirrored if mirrored and rng.random() < 0.5 else absent
        name, side = writer.vocabulary.pick(pool, rng)
        if side is not None and name not in names and rng.random() < 0.2:
            side = None
    if yes and side is not None and rng.random() < 0.2:
        side = None
    label = f"{name}/{side}"
    if writer.language == "zh":
        question = f"是否有{SIDES['zh'][side] + '侧' if side else ''}{NAMES_ZH[name]}？"
        return Dialogue("presence", question, "是" if yes else "否", label)
    return Dialogue("presence", prompts.ask_presence(name, side), "yes" if yes else "no", label)


def _list(writer: Writer) -> Dialogue:
    return Dialogue("list", prompts.LIST_FINDINGS, prompts.format_findings(writer.truth))


def _size(writer: Writer) -> Dialogue | None:
    sized = [f for f in writer.truth if f.size_mm is not None]
    if not sized:
        return None
    finding = sized[writer.rng.integers(len(sized))]
    question = prompts.ask_size(finding.name, finding.side)
    if writer.language == "zh":
        side = f"{SIDES['zh'][finding.side]}侧" if finding.side else ""
        question = f"{side}{NAMES_ZH[finding.name]}有多大？"
    return Dialogue("size", question, f"{finding.size_mm:.0f} mm")


def _side(writer: Writer) -> Dialogue | None:
    sided = [f for f in writer.truth if f.side]
    if not sided:
        return None
    name = sided[writer.rng.integers(len(sided))].name
    sides = {f.side for f in writer.truth if f.name == name}
    side = "both" if len(sides) == 2 else str(sides.pop())
    if writer.language == "zh":
        return Dialogue(
            "side",
            f"{NAMES_ZH[name]}在哪一侧？",
            {"both": "双侧", "right": "右侧"}.get(side, "左侧"),
        )
    return Dialogue("side", f"On which side is the {name}?", side)


def _check(writer: Writer) -> Dialogue | None:
    rng = writer.rng
    if rng.random() < 0.5:
        positive = [s for s in writer.report() if not s.denied]
        said = positive[rng.integers(len(positive))] if positive and rng.random() < 0.8 else None
        text, verdict = (said or writer.deny_absent()).text, Verdict(None)
    else:
        kind = SENTENCE_MISTAKES[rng.integers(len(SENTENCE_MISTAKES))]
        mistake = plant(kind, writer)
        if mistake is None:
            return None
        text, verdict = mistake.text, mistake.verdict
    question = prompts.CHECK_SENTENCE.format(sentence=text)
    return Dialogue("check", question, prompts.format_verdict(verdict), verdict.error or "agrees")


def _omission(writer: Writer) -> Dialogue | None:
    report, rng = writer.report(), writer.rng
    missing = None
    if rng.random() < 0.5:
        positive = [s for s in report if not s.denied]
        if not positive:
            return None
        missing = positive[rng.integers(len(positive))]
    gap = "" if writer.language == "zh" else " "
    kept = gap.join(s.text for s in report if s is not missing)
    question = prompts.FIND_OMISSION.format(report=kept)
    if missing is None:
        return Dialogue("omission", question, prompts.NOTHING_OMITTED, "nothing")
    verdict = Verdict("omission", writer.plainly(missing.about))
    return Dialogue("omission", question, prompts.format_verdict(verdict), "omission")


def _describe(writer: Writer) -> Dialogue:
    questions = DESCRIBE[writer.language]
    question = questions[writer.rng.integers(len(questions))]
    gap = "" if writer.language == "zh" else " "
    answer = gap.join(writer.plainly(f) for f in writer.truth) or NOTHING[writer.language]
    return Dialogue("describe", question, answer)


_ASK: dict[str, Callable[[Writer], Dialogue | None]] = {
    "presence": _presence,
    "list": _list,
    "size": _size,
    "side": _side,
    "check": _check,
    "omission": _omission,
    "describe": _describe,
}


def sentences_to_dictate(writer: Writer) -> str:
    """A sentence a radiologist might dictate of a study, true or not; one in three with a mistake."""
    kind = AUDIBLE[writer.rng.integers(len(AUDIBLE))]
    if writer.rng.random() < 1 / 3 and (wrong := plant(kind, writer)) is not None:
        return wrong.text
    pool = [*writer.report(), writer.invent(absent_keys(writer.truth, writer.vocabulary))]
    return pool[writer.rng.integers(len(pool))].text
