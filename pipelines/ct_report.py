"""CT study + report -> reading: what is there, where, how sure, and does the report agree.

The model is asked short questions (`multimodal.prompts`), each in a fresh conversation about the
same study; its answers become typed values, its finding head tells where to look.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from encoders.errors import IncompatibleModel
from encoders.features import Problem
from multimodal import prompts
from multimodal.backends import Backend, Finished, GenerateOptions, Region, collect
from multimodal.messages import Study, user
from pipelines.evidence import (
    Agreement,
    Discrepancy,
    Evidence,
    Finding,
    Reading,
    as_evidence,
    locate,
    spoken_of,
)

if TYPE_CHECKING:
    import numpy as np

    from encoders.dicom import Volume

_SENTENCE_VERDICTS = (
    prompts.AGREES, "omission", "insertion", "direction", "size", "unit", "typo",
)  # fmt: skip
_OMISSION_VERDICTS = (prompts.NOTHING_OMITTED, "omission")
_ABSTAINS = "The study is outside what this model was validated on; it gives no answer."


@dataclass(frozen=True)
class Case:
    """One study with the words about it; what a batch iterates over."""

    study: str | Path | Volume
    report: str | None = None
    dictation: str | Path | tuple[np.ndarray, int] | None = None
    question: str | None = None


@dataclass
class _Session:
    """One study being read: asks the model and keeps count."""

    backend: Backend
    study: Study
    warnings: list[Problem] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    usage: dict[str, int] = field(
        default_factory=lambda: {
            "questions": 0,
            "prompt_tokens": 0,
            "new_tokens": 0,
            "encoded_media": 0,
        }
    )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[name] = time.perf_counter() - started

    def ask(
        self, prompt: str, *, choices: tuple[str, ...] = (), ground: bool = False, tokens: int = 96
    ) -> Finished:
        """One question about the study, in a conversation of its own."""
        options = GenerateOptions(max_new_tokens=tokens, choices=choices, ground=ground)
        last = collect(self.backend.generate([user(self.study, prompt)], options))
        self.usage["questions"] += 1
        self.usage["prompt_tokens"] += last.usage.prompt_tokens
        self.usage["new_tokens"] += last.usage.new_tokens
        self.usage["encoded_media"] += last.usage.encoded_media
        return last


class CtReportPipeline:
    """`pipeline("ct-report")`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __call__(
        self,
        study: str | Path | Volume,
        report: str | None = None,
        dictation: str | Path | tuple[np.ndarray, int] | None = None,
        question: str | None = None,
    ) -> Reading:
        """Read one study.

        Args:
            study: DICOM file, folder, zip, or a loaded volume.
            report: its text.
            dictation: a recording of (more of) the report.
            question: anything else to ask of the study.

        Raises:
            InputError: study or recording cannot be used, saying why.
            ModelError: the model cannot do this task.
        """
        if "dicom" not in self.backend.capabilities().modalities:
            raise IncompatibleModel(
                f"{self.backend.capabilities().name} cannot see; choose a model with a vision tower"
            )
        return _read(self.backend, Case(study, report, dictation, question))

    def batch(self, cases: Iterable[Case]) -> Iterator[Reading]:
        """Read many studies one by one, with progress on a terminal."""
        from tqdm import tqdm

        for case in tqdm(cases, desc="studies", disable=None):
            yield self(case.study, case.report, case.dictation, case.question)


def _read(backend: Backend, case: Case) -> Reading:
    started = time.perf_counter()
    volume, problems, read_s = _open(case.study)
    session = _Session(backend, Study(volume), problems, {"read": read_s})
    transcript = None
    if case.dictation is not None:
        with session.stage("dictation"):
            from pipelines.dictation import DictationPipeline

            transcript = DictationPipeline(backend)(case.dictation).text
    report = "\n".join(words for words in (case.report, transcript) if words) or None
    with session.stage("encode"):
        away = _out_of_range(session, volume)
    if away is not None:
        session.warnings.insert(0, away)
    with session.stage("findings"):
        seen = session.ask(prompts.LIST_FINDINGS, ground=True)
        findings = () if away else tuple(_findings(session, seen))
    with session.stage("review"):
        points = tuple(_review(session, report, seen.regions)) if report and not away else ()
    answer, evidence = None, tuple(e for f in findings for e in f.evidence)
    if case.question:
        with session.stage("answer"):
            answer = _ABSTAINS if away else session.ask(case.question).text
    for problem in seen.problems:
        if problem not in session.warnings:
            session.warnings.append(problem)
    with session.stage("pictures"):
        pictures = _key_slices(volume, findings, points)
    session.timings_s["total"] = time.perf_counter() - started
    return Reading(
        findings, points, _agreement(report, points, away), answer, evidence,
        tuple(session.warnings), volume.info.to_dict(), report, transcript,
        backend.capabilities().name, session.usage, session.timings_s, key_slices=pictures,
    )  # fmt: skip


def _open(study: str | Path | Volume) -> tuple[Volume, list[Problem], float]:
    from encoders.dicom import Volume, load_volume, read_study

    started = time.perf_counter()
    if isinstance(study, Volume):
        return study, list(study.problems), 0.0
    found = read_study(study)
    series = found.default()
    problems = list(found.problems)
    if len(found.series) > 1:
        message = f"read {series.reason}; {len(found.series) - 1} other series were not read"
        problems.append(Problem("SERIES_CHOSEN", message))
    volume = load_volume(series)
    return volume, [*problems, *volume.problems], time.perf_counter() - started


def _out_of_range(session: _Session, volume: Volume) -> Problem | None:
    """Why confident answers must be withheld, or None."""
    name = session.backend.capabilities().name
    reasons = []
    if volume.info.modality != "CT" or not volume.calibrated:
        reasons.append(f"it is {volume.info.modality or 'of unknown modality'}, not calibrated CT")
    if len(volume.voxels) < 8:
        reasons.append(f"it has {len(volume.voxels)} slices")
    novelty = session.backend.novelty(session.study)
    if novelty is not None and novelty.out_of_range:
        reasons.append(f"it looks {novelty.score / novelty.limit:.1f} times farther from those"
                       " studies than the limit")  # fmt: skip
    if not reasons:
        return None
    return Problem(
        "OUT_OF_RANGE",
        f"the study is outside what {name} was validated on: {'; '.join(reasons)}."
        " No finding is claimed and the report is not judged.",
    )


def _findings(session: _Session, seen: Finished) -> Iterator[Finding]:
    """What is there: asked one by one where the model knows its findings, else from its list."""
    known = session.backend.capabilities().findings
    if not known:
        for named in prompts.parse_findings(seen.text):
            yield _finding(named.name, named.side, named.size_mm, float("nan"), seen.regions)
        return
    sized = {f.name for f in prompts.parse_findings(seen.text) if f.size_mm is not None}
    sides: tuple[prompts.Side | None, ...]
    for name, sided in known:
        sides = ("right", "left") if sided else (None,)
        for side in sides:
            probability = session.ask(
                prompts.ask_presence(name, side), choices=("yes", "no")
            ).choices["yes"]
            if probability < 0.5:
                continue
            size = None
            if name in sized or name == "nodule":
                answer = session.ask(prompts.ask_size(name, side), tokens=8).text
                size = prompts.parse_size_mm(answer)
            yield _finding(name, side, size, probability, seen.regions)


def _finding(
    name: str, side: prompts.Side | None, size: float | None, probability: float,
    regions: tuple[Region, ...],
) -> Finding:  # fmt: skip
    region = locate(regions, name, side)
    if region is None:
        return Finding(name, side, size, None, None, probability)
    proof = as_evidence(region)
    return Finding(name, side, size, proof.slice_index, proof.box, probability, (proof,))


def _review(session: _Session, report: str, regions: tuple[Region, ...]) -> Iterator[Discrepancy]:
    sentences = prompts.split_sentences(report)
    for sentence in sentences:
        prompt = prompts.CHECK_SENTENCE.format(sentence=sentence)
        found = _judge(session, prompt, _SENTENCE_VERDICTS)
        if found is not None:
            kind, correction, probability = found
            proof = _proof(session, correction or sentence, regions)
            yield Discrepancy(kind, sentence, correction, probability, proof)
    stated = " ".join(sentences)
    prompt = prompts.FIND_OMISSION.format(report=stated)
    found = _judge(session, prompt, _OMISSION_VERDICTS)
    if found is not None and found[1]:
        proof = _proof(session, found[1], regions, quote=False)
        yield Discrepancy("omission", None, found[1], found[2], proof)


def _judge(
    session: _Session, prompt: str, verdicts: tuple[str, ...]
) -> tuple[prompts.ErrorType, str | None, float] | None:
    """(type, correction, probability of an error), or None where the model sees no error."""
    chances = session.ask(prompt, choices=verdicts).choices
    probability = 1.0 - chances[verdicts[0]]
    if probability < 0.5:
        return None
    answer = session.ask(prompt).text
    verdict = prompts.parse_verdict(answer)
    if verdict is None:
        session.warnings.append(
            Problem("UNREADABLE_ANSWER", f"the model suspects an error but answered {answer!r}")
        )
        return None
    kind = verdict.error
    if kind is None:  # the greedy answer agrees although the errors together weigh more
        return None
    return kind, verdict.correction, probability


def _proof(
    session: _Session, words: str, regions: tuple[Region, ...], quote: bool = True
) -> tuple[Evidence, ...]:
    """The region of the finding that the words speak of, and the words themselves."""
    names = [name for name, _ in session.backend.capabilities().findings]
    about = spoken_of(words, names)
    region = locate(regions, *about) if about else None
    proof = (as_evidence(region),) if region else ()
    return (*proof, Evidence("text", sentence=words)) if quote else proof


def _agreement(
    report: str | None, points: tuple[Discrepancy, ...], away: Problem | None
) -> Agreement:
    if away is not None:
        return "abstained"
    if report is None:
        return "no report"
    return "disagrees" if points else "agrees"


def _key_slices(
    volume: Volume, findings: tuple[Finding, ...], points: tuple[Discrepancy, ...]
) -> tuple[tuple[int, bytes], ...]:
    from pipelines.html import draw_slice

    shown: dict[int, list[tuple[float, float, float, float]]] = {}
    proofs = [e for f in findings for e in f.evidence] + [e for p in points for e in p.evidence]
    for proof in proofs:
        if proof.slice_index is not None and proof.box is not None:
            boxes = shown.setdefault(proof.slice_index, [])
            if proof.box not in boxes:
                boxes.append(proof.box)
    if not shown:
        shown[len(volume.voxels) // 2] = []
    return tuple((i, draw_slice(volume, i, boxes)) for i, boxes in sorted(shown.items()))
