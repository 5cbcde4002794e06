"""CT study + report -> reading: what is there, where, how sure, and does the report agree.

The model is asked short questions (`multimodal.prompts`), each in a fresh conversation about the
same study; its answers become typed values, its finding head tells where to look.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, overload

from encoders.errors import (
    IncompatibleModel,
    InvalidMessage,
)
from encoders.features import Problem
from multimodal import prompts
from multimodal.backends import Backend, Finished, Region, Token, measured_in, seen_in, total_usage
from multimodal.messages import Study
from multimodal.review import believed
from pipelines.batch import Failed, run_each
from pipelines.dictation import DictationPipeline, Transcript
from pipelines.evidence import (
    Agreement,
    Discrepancy,
    Finding,
    Reading,
    all_evidence,
    as_evidence,
    locate,
)
from pipelines.opening import open_study, typed_report
from pipelines.review import check_report
from pipelines.session import ABSTAINS, Session, Step, kept

if TYPE_CHECKING:
    from encoders.dicom import Study as Scanned
    from encoders.dicom import Volume
    from pipelines.dictation import Recording

    Dictation = Recording | Transcript
    Input = str | Path | Scanned | Volume
    Progress = Step | Finding | Discrepancy | Token | Reading

MIN_SLICES = 8  # fewer show no chest


@dataclass(frozen=True)
class Case:
    """One study with the words about it; what a batch iterates over."""

    study: Input
    report: str | None = None
    dictation: Dictation | None = None
    question: str | None = None
    report_from_study: bool = False
    allow_burned_in: bool = False
    series: str | int | None = None


class CtReportPipeline:
    """`pipeline("ct-report")`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is an iterable of str
        self, study: Input, report: str | None = None, dictation: Dictation | None = None,
        question: str | None = None, *, report_from_study: bool = False,
        allow_burned_in: bool = False, series: str | int | None = None,
        stream: Literal[False] = False,
    ) -> Reading: ...  # fmt: skip
    @overload
    def __call__(
        self, study: Input, report: str | None = None, dictation: Dictation | None = None,
        question: str | None = None, *, report_from_study: bool = False,
        allow_burned_in: bool = False, series: str | int | None = None, stream: Literal[True],
    ) -> Iterator[Progress]: ...  # fmt: skip
    @overload
    def __call__(self, study: Iterable[Case | Input]) -> Iterator[Reading | Failed]: ...

    def __call__(
        self,
        study: Input | Iterable[Case | Input],
        report: str | None = None,
        dictation: Dictation | None = None,
        question: str | None = None,
        *,
        report_from_study: bool = False,
        allow_burned_in: bool = False,
        series: str | int | None = None,
        stream: bool = False,
    ) -> Reading | Iterator[Progress] | Iterator[Reading | Failed]:
        """Read one study, or every `Case` of an iterable.

        Args:
            study: DICOM file, folder, zip, `https://…/studies/UID`, what `encoders.dicom.scan`
                gives, or a loaded volume; or an iterable of those or of `Case`, each with its own
                words. A generator comes back then, `Failed` in the place of an input that could
                not be read.
            report: its text.
            dictation: a recording of (more of) the report, or its transcript.
            question: anything else to ask of the study.
            report_from_study: take the report from the study's own SR, PDF or CDA object instead.
            allow_burned_in: read pictures that may show text about the patient; look first.
            series: another than the default: its number as `crossread info` lists them, its key
                or its UID.
            stream: give steps of the work, findings, discrepancies and the answer's tokens as
                they are made, the `Reading` last; closing it stops the work.

        Raises:
            BurnedInText: the pictures may show patient data and nobody vouches for them.
            InputError: study or recording cannot be used, saying why; words given beside many
                studies.
            ModelError: the model cannot do this task.
        """
        if "dicom" not in self.backend.capabilities().modalities:
            raise IncompatibleModel(
                f"{self.backend.capabilities().name} cannot see; choose a model with a vision tower"
            )
        if not _is_input(study):
            given = (report, dictation, question, report_from_study, stream, allow_burned_in)
            if given != (None, None, None, False, False, False) or series is not None:
                raise InvalidMessage(
                    "many studies cannot share a report, dictation, question, series or stream;"
                    " give an iterable of pipelines.ct_report.Case"
                )
            return run_each(cast("Iterable[Case | Input]", study), self._one, "studies")
        case = Case(
            cast("Input", study), report, dictation, question, report_from_study, allow_burned_in,
            series,
        )  # fmt: skip
        events = _read(self.backend, case)
        return events if stream else _last(events)

    def _one(self, case: Case | Input) -> Reading:
        return _last(_read(self.backend, case if isinstance(case, Case) else Case(case)))


def _is_input(study: object) -> bool:
    from encoders.dicom import Study as Scanned
    from encoders.dicom import Volume

    if isinstance(study, str | Path | Scanned | Volume):
        return True
    if not isinstance(study, Iterable):
        raise InvalidMessage(
            f"a study is a DICOM file, folder, zip or volume, not a {type(study).__name__}"
        )
    return False


def _last(events: Iterator[Progress]) -> Reading:
    reading = [event for event in events if isinstance(event, Reading)]
    return reading[-1]


def _read(backend: Backend, case: Case) -> Iterator[Progress]:
    from encoders.dicom.remote import on_disk

    started = time.perf_counter()
    yield Step("read")
    with on_disk(case.study) as (study, told):
        opened = open_study(study, case.series, allow_burned_in=case.allow_burned_in)
        volume = opened.volume
        typed = typed_report(case.report, opened.documents, from_study=case.report_from_study)
    problems = [*told, *opened.problems, *typed.problems]
    session = Session(backend, volume, problems, {"read": time.perf_counter() - started})
    heard = None
    if isinstance(case.dictation, Transcript):
        heard = case.dictation
    elif case.dictation is not None:
        yield Step("dictation")
        with session.stage("dictation"):
            heard = DictationPipeline(backend).transcribe(case.dictation)
        session.spent += heard.spent
    transcript = heard.text if heard else None
    report = _joined(typed.text, transcript)
    looking = Step("look")
    yield looking
    with session.stage("look"):
        seen = yield from session.speak(
            looking, prompts.LIST_FINDINGS, ground=True, form=prompts.FINDINGS_FORM
        )
        session.warnings += [p for p in seen.problems if p not in session.warnings]
        session.seen, session.measured = seen_in(seen.regions), measured_in(seen.regions)
        away = _out_of_range(session)
    if away is not None:
        session.warnings.insert(0, away)
    findings: list[Finding] = []
    points: list[Discrepancy] = []
    with session.stage("findings"):
        yield from kept(_findings(session, seen) if away is None else iter(()), findings)
    agreement: Agreement = "abstained"
    if away is None:
        with session.stage("review"):
            checked = check_report(session, report, seen.regions, findings, transcript=heard)
            yield from kept(checked, points)
        agreement = _agreement(report, points, session.warnings)
    answer = ABSTAINS if case.question and away is not None else None
    if case.question and away is None:
        yield Step("answer")
        with session.stage("answer"):
            answer = yield from session.tell(case.question)
    yield Step("pictures")
    with session.stage("pictures"):
        pictures = _key_slices(volume, findings, points)
    session.timings_s["total"] = time.perf_counter() - started
    yield Reading(
        tuple(findings), tuple(points), agreement, answer, all_evidence(findings, points),
        tuple(session.warnings), opened.about, report, transcript,
        backend.capabilities().name, total_usage(session.spent), session.timings_s,
        provenance=provenance(backend), key_slices=pictures,
        report_source=" and ".join(s for s in (typed.source, "dictation" if transcript else "") if s),
    )  # fmt: skip


def _joined(*texts: str | None) -> str | None:
    """Typed and dictated words as one report; the empty line ends the section typed last."""
    return "\n\n".join(text.strip() for text in texts if text and text.strip()) or None


def provenance(backend: Backend) -> dict[str, str]:
    """What makes a reading: weights, preprocessing and version."""
    from importlib.metadata import PackageNotFoundError, version

    made = backend.capabilities()
    try:
        release = version("crossread")
    except PackageNotFoundError:  # run from a checkout that was never installed
        release = "unknown"
    return {
        "weights_sha256": made.weights_sha256,
        "preprocessing": made.preprocessing,
        "version": release,
    }


def _out_of_range(session: Session) -> Problem | None:
    """Why confident answers must be withheld, or None."""
    volume, name = session.volume, session.backend.capabilities().name
    reasons = []
    if volume.info.modality != "CT" or not volume.calibrated:
        reasons.append(f"it is {volume.info.modality or 'of unknown modality'}, not calibrated CT")
    if not volume.placed:
        reasons.append("its files do not say which side is left")
    if len(volume.voxels) < MIN_SLICES:
        count = len(volume.voxels)
        reasons.append(f"it has {count} slice{'s'[: count != 1]}, fewer than {MIN_SLICES}")
    novelty = session.backend.novelty(Study(volume))
    if novelty is None:
        message = (
            f"nothing is known of the studies that {name} was validated on, so whether this one is"
            " like them was not checked; judge its answers yourself"
        )
        session.warnings.append(Problem("RANGE_UNKNOWN", message))
    elif novelty.out_of_range:
        reasons.append(f"it looks {novelty.score / novelty.limit:.1f} times farther from those"
                       " studies than the limit")  # fmt: skip
    if not reasons:
        return None
    return Problem(
        "OUT_OF_RANGE",
        f"the study is outside what {name} was validated on: {'; '.join(reasons)}."
        " No finding is claimed and the report is not judged.",
    )


def _findings(session: Session, seen: Finished) -> Iterator[Step | Finding]:
    """What is there: asked one by one where the model knows its findings, else from its list."""
    known = session.backend.capabilities().findings
    if not known:
        if unread := prompts.num_unread(seen.text):
            words = f"{unread} of the findings that the model lists cannot be read and are left out"
            session.warnings.append(Problem("NOT_UNDERSTOOD", words))
        for named in prompts.parse_findings(seen.text):
            yield _finding(session, named, None, seen.regions)
        return
    sized = {f.name for f in prompts.parse_findings(seen.text) if f.size_mm is not None}
    asked = prompts.sided_keys(known)
    for number, (name, side) in enumerate(asked):
        yield Step("findings", number, len(asked))
        prompt = prompts.ask_presence(name, side)
        said = session.ask(prompt, choices=("yes", "no")).choices["yes"]
        weights = session.backend.capabilities().review
        probability = believed(said, session.seen.get((name, side)), weights)
        session.presence[name, side] = probability
        if probability < 0.5:
            continue
        size = session.size(name, side) if name in sized or name == "nodule" else None
        yield _finding(session, prompts.NamedFinding(name, side, size), probability, seen.regions)


def _finding(
    session: Session,
    named: prompts.NamedFinding,
    probability: float | None,
    regions: tuple[Region, ...],
) -> Finding:
    name, side, size = named.name, named.side, named.size_mm
    region = locate(regions, name, side)
    if region is None:
        return Finding(name, side, size, None, None, probability)
    proof = as_evidence(region, session.volume.voxels.shape[1:])
    return Finding(name, side, size, proof.slice_index, proof.box, probability, (proof,))


def _agreement(
    report: str | None, points: Sequence[Discrepancy], warnings: Sequence[Problem]
) -> Agreement:
    codes = {warning.code for warning in warnings}
    if report is None or "NO_STATEMENT" in codes:
        return "no report"
    if points:
        return "disagrees"
    return "abstained" if codes & {"NOT_JUDGED", "DOUBTFUL"} else "agrees"


def _key_slices(
    volume: Volume, findings: Sequence[Finding], points: Sequence[Discrepancy]
) -> tuple[tuple[int, bytes], ...]:
    from pipelines.html import draw_slice

    shown: dict[int, list[tuple[float, float, float, float]]] = {}
    for proof in all_evidence(findings, points):
        if proof.slice_index is not None and proof.box is not None:
            boxes = shown.setdefault(proof.slice_index, [])
            if proof.box not in boxes:
                boxes.append(proof.box)
    if not shown:
        shown[len(volume.voxels) // 2] = []
    return tuple((i, draw_slice(volume, i, boxes)) for i, boxes in sorted(shown.items()))
