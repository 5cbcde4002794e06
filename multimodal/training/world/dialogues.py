"""Questions about a generated study and their exact answers, balanced so that words betray nothing.

Prompts and answers are those of `multimodal.prompts`: what the pipelines ask is what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multimodal import prompts
from multimodal.prompts import NamedFinding, Verdict
from multimodal.training.world.mistakes import (
    SENTENCE_MISTAKES,
    plant,
    said_plainly,
)
from multimodal.training.world.reports import absent_keys, say, write_report

TASKS = ("presence", "list", "size", "check", "omission", "side", "describe")
DESCRIBE = ("What does this study show?", "Summarise the study.", "What do you see?")


@dataclass(frozen=True)
class Dialogue:
    """One question and its answer; `label` is what accuracy is counted on."""

    task: str
    question: str
    answer: str
    label: str = ""


def ask(task: str, truth: Sequence[NamedFinding], rng: np.random.Generator) -> Dialogue | None:
    """A random question of a task; None where the study gives no ground for one."""
    return _ASK[task](list(truth), rng)


def _presence(truth: list[NamedFinding], rng: np.random.Generator) -> Dialogue | None:
    """Half of the answers are yes; half of the no's are the other side of what is there."""
    yes = bool(rng.random() < 0.5)
    absent = absent_keys(truth)
    if yes and not truth:
        return None
    if yes:
        finding = truth[rng.integers(len(truth))]
        name, side = finding.name, finding.side
    else:
        names = {f.name for f in truth}
        mirrored = [key for key in absent if key[0] in names]
        pool = mirrored if mirrored and rng.random() < 0.5 else absent
        name, side = pool[rng.integers(len(pool))]
        if side is not None and name not in names and rng.random() < 0.2:
            side = None
    if yes and side is not None and rng.random() < 0.2:
        side = None
    answer = "yes" if yes else "no"
    return Dialogue("presence", prompts.ask_presence(name, side), answer, f"{name}/{side}")


def _list(truth: list[NamedFinding], rng: np.random.Generator) -> Dialogue:
    return Dialogue("list", prompts.LIST_FINDINGS, prompts.format_findings(truth))


def _size(truth: list[NamedFinding], rng: np.random.Generator) -> Dialogue | None:
    sized = [f for f in truth if f.size_mm is not None]
    if not sized:
        return None
    finding = sized[rng.integers(len(sized))]
    question = prompts.ask_size(finding.name, finding.side)
    return Dialogue("size", question, f"{finding.size_mm:.0f} mm")


def _side(truth: list[NamedFinding], rng: np.random.Generator) -> Dialogue | None:
    sided = [f for f in truth if f.side]
    if not sided:
        return None
    name = sided[rng.integers(len(sided))].name
    sides = {f.side for f in truth if f.name == name}
    answer = "both" if len(sides) == 2 else str(sides.pop())
    return Dialogue("side", f"On which side is the {name}?", answer)


def _check(truth: list[NamedFinding], rng: np.random.Generator) -> Dialogue | None:
    if rng.random() < 0.5:
        report = write_report(truth, rng)
        positive = [s for s in report if not s.denied]
        pool = positive if positive and rng.random() < 0.75 else report
        text, verdict = pool[rng.integers(len(pool))].text, Verdict(None)
    else:
        kind = SENTENCE_MISTAKES[rng.integers(len(SENTENCE_MISTAKES))]
        mistake = plant(kind, truth, rng)
        if mistake is None:
            return None
        text, verdict = mistake.text, mistake.verdict
    question = prompts.CHECK_SENTENCE.format(sentence=text)
    return Dialogue("check", question, prompts.format_verdict(verdict), verdict.error or "agrees")


def _omission(truth: list[NamedFinding], rng: np.random.Generator) -> Dialogue | None:
    report = write_report(truth, rng)
    missing = None
    if rng.random() < 0.5:
        positive = [s for s in report if not s.denied]
        if not positive:
            return None
        missing = positive[rng.integers(len(positive))]
    kept = " ".join(s.text for s in report if s is not missing)
    question = prompts.FIND_OMISSION.format(report=kept)
    if missing is None:
        return Dialogue("omission", question, prompts.NOTHING_OMITTED, "nothing")
    verdict = Verdict("omission", said_plainly(missing.about))
    return Dialogue("omission", question, prompts.format_verdict(verdict), "omission")


def _describe(truth: list[NamedFinding], rng: np.random.Generator) -> Dialogue:
    question = DESCRIBE[rng.integers(len(DESCRIBE))]
    answer = " ".join(said_plainly(f) for f in truth) or "No abnormality is seen."
    return Dialogue("describe", question, answer)


_ASK = {
    "presence": _presence,
    "list": _list,
    "size": _size,
    "side": _side,
    "check": _check,
    "omission": _omission,
    "describe": _describe,
}


def sentences_to_dictate(truth: Sequence[NamedFinding], rng: np.random.Generator) -> str:
    """A sentence a radiologist might dictate of a study, true or not."""
    pool = [*write_report(truth, rng)]
    absent = absent_keys(truth)
    name, side = absent[rng.integers(len(absent))]
    size = float(rng.integers(11, 30)) if name == "nodule" else None
    pool.append(say(NamedFinding(name, side, size), rng))
    return pool[rng.integers(len(pool))].text
