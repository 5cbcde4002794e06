"""CT study + report -> reading: what is there, where, how sure, and does the report agree.

The model is asked short questions (`multimodal.prompts`), each in a fresh conversation about the
same study; its answers become typed values, its finding head tells where to look.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, overload

from encoders.errors import IncompatibleModel
from encoders.features import Problem
from multimodal import prompts
from multimodal.backends import Backend, Finished, GenerateOptions, Region, Token
from multimodal.messages import Study, user
from pipelines.batch import Failed, run_each
from pipelines.dictation import DictationPipeline
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
    from encoders.dicom import Volume
    from pipelines.dictation import Recording

    Input = str | Path | Volume
    Progress = Finding | Discrepancy | Token | Reading

_SENTENCE_VERDICTS = (
    prompts.AGREES, "omission", "insertion", "direction", "size", "unit", "typo",
)  # fmt: skip
_OMISSION_VERDICTS = (prompts.NOTHING_OMITTED, "omission")
_ABSTAINS = "The study is outside what this model was validated on; it gives no answer."


@dataclass(frozen=True)
class Case:
    """One study with the words about it; what a batch iterates over."""

    study: Input
    report: str | None = None
    dictation: Recording | None = None
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
        events = self.events(prompt, choices=choices, ground=ground, tokens=tokens)
        while True:
            try:
                next(events)
            except StopIteration as end:
                finished: Finished = end.value
                return finished

    def events(
        self, prompt: str, *, choices: tuple[str, ...] = (), ground: bool = False, tokens: int = 96
    ) -> Generator[Token, None, Finished]:
        """The answer's tokens as they are made; returns the end of it."""
        options = GenerateOptions(max_new_tokens=tokens, choices=choices, ground=ground)
        finished = None
        for event in self.backend.generate([user(self.study, prompt)], options):
            if isinstance(event, Finished):
                finished = event
            else:
                yield event
        assert finished is not None
        self.usage["questions"] += 1
        self.usage["prompt_tokens"] += finished.usage.prompt_tokens
        self.usage["new_tokens"] += finished.usage.new_tokens
        self.usage["encoded_media"] += finished.usage.encoded_media
        return finished


class CtReportPipeline:
    """`pipeline("ct-report")`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @overload
    def __call__(
        self,
        study: Input,
        report: str | None = None,
        dictation: Recording | None = None,
        question: str | None = None,
        *,
        stream: Literal[False] = False,
    ) -> Reading: ...
    @overload
    def __call__(
        self,
        study: Input,
        report: str | None = None,
        dictation: Recording | None = None,
        question: str | None = None,
        *,
        stream: Literal[True],
    ) -> Iterator[Progress]: ...
    @overload
    def __call__(self, study: Iterable[Case]) -> Iterator[Reading | Failed]: ...  # fmt: skip

    def __call__(
        self,
        study: Input | Iterable[Case],
        report: str | None = None,
        dictation: Recording | None = None,
        question: str | None = None,
        *,
        stream: bool = False,
    ) -> Reading | Iterator[Progress] | Iterator[Reading | Failed]:
        """Read one study, or every `Case` of an iterable.

        Args:
            study: DICOM file, folder, zip, or a loaded volume; or an iterable of `Case`.
            report: its text.
            dictation: a recording of (more of) the report.
            question: anything else to ask of the study.
            stream: give findings, discrepancies and the answer's tokens as they are made, the
                `Reading` last.

        Raises:
            InputError: study or recording cannot be used, saying why.
            ModelError: the model cannot do this task.
        """
        if "dicom" not in self.backend.capabilities().modalities:
            raise IncompatibleModel(
                f"{self.backend.capabilities().name} cannot see; choose a model with a vision tower"
            )
        if not _is_input(study):
            return run_each(cast("Iterable[Case]", study), self._one, "studies")
        events = _read(self.backend, Case(cast("Input", study), report, dictation, question))
        return events if stream else _last(events)

    def _one(self, case: Case) -> Reading:
        return _last(_read(self.backend, case))


def _is_input(study: object) -> bool:
    from encoders.dicom import Volume

    return isinstance(study, str | Path | Volume)


def _last(events: Iterator[Progress]) -> Reading:
    reading = [event for event in events if isinstance(event, Reading)]
    return reading[-1]


def _read(backend: Backend, case: Case) -> Iterator[Progress]:
    started = time.perf_counter()
    volume, problems, read_s = _open(case.study)
    session = _Session(backend, Study(volume), problems, {"read": read_s})
    transcript = None
    if case.dictation is not None:
        with session.stage("dictation"):
            transcript = DictationPipeline(backend)(case.dictation).text
    report = "\n".join(words for words in (case.report, transcript) if words) or None
    with session.stage("encode"):
        away = _out_of_range(session, volume)
    if away is not None:
        session.warnings.insert(0, away)
    findings: list[Finding] = []
    points: list[Discrepancy] = []
    with session.stage("findings"):
        seen = session.ask(prompts.LIST_FINDINGS, ground=True)
        for finding in _findings(session, seen) if away is None else ():
            findings.append(finding)
            yield finding
    with session.stage("review"):
        for point in _review(session, report, seen.regions) if report and away is None else ():
            points.append(point)
            yield point
    answer = None
    if case.question:
        with session.stage("answer"):
            answer = yield from _answer(session, case.question, away)
    session.warnings += [p for p in seen.problems if p not in session.warnings]
    with session.stage("pictures"):
        pictures = _key_slices(volume, findings, points)
    session.timings_s["total"] = time.perf_counter() - started
    yield Reading(
        tuple(findings), tuple(points), _agreement(report, points, away), answer,
        tuple(e for f in findings for e in f.evidence), tuple(session.warnings),
        volume.info.to_dict(), report, transcript, backend.capabilities().name,
        session.usage, session.timings_s, key_slices=pictures,
    )  # fmt: skip


def _answer(session: _Session, question: str, away: Problem | None) -> Generator[Token, None, str]:
    if away is not None:
        return _ABSTAINS
    events = session.events(question)
    return (yield from events).text


def _open(study: Input) -> tuple[Volume, list[Problem], float]:
    from encoders.dicom import Volume, load_volume, scan

    started = time.perf_counter()
    if isinstance(study, Volume):
        return study, list(study.problems), 0.0
    found = scan(study)
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
    """Every sentence judged alone; then what the report, so corrected, still leaves out."""
    corrected = []
    for sentence in prompts.split_sentences(report):
        prompt = prompts.CHECK_SENTENCE.format(sentence=sentence)
        found = _judge(session, prompt, _SENTENCE_VERDICTS)
        if found is None:
            corrected.append(sentence)
            continue
        kind, correction, probability = found
        if kind != "insertion":
            corrected.append(correction or sentence)
        proof = _proof(session, correction or sentence, regions)
        yield Discrepancy(kind, sentence, correction, probability, proof)
    prompt = prompts.FIND_OMISSION.format(report=" ".join(corrected))
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
    kind = max(prompts.ERROR_TYPES, key=lambda error: chances.get(error, 0.0))
    verdict = prompts.parse_verdict(session.ask(prompt).text)
    fitting = verdict is not None and verdict.error == kind
    return kind, verdict.correction if verdict and fitting else None, probability


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
    report: str | None, points: Sequence[Discrepancy], away: Problem | None
) -> Agreement:
    if away is not None:
        return "abstained"
    if report is None:
        return "no report"
    return "disagrees" if points else "agrees"


def _key_slices(
    volume: Volume, findings: Sequence[Finding], points: Sequence[Discrepancy]
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
