"""The report against the study: every sentence judged alone, then what all of them leave out.

Where a checkpoint brings weights for it, what it says of a sentence and what it sees of the finding
named are one verdict (`multimodal.review`); any other model is taken at its word.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from encoders.errors import BadAnswer, ContextOverflow
from encoders.features import Problem
from multimodal import prompts
from multimodal.backends import Region
from multimodal.review import (
    MAX_OMISSIONS,
    OMISSION,
    VERDICTS,
    claim_of,
    denial,
    is_spoken,
    lacking,
    left_out,
    mended,
    surest_unspoken,
    weigh,
)
from multimodal.terms import mentions, spoken_of
from pipelines.evidence import Discrepancy, Evidence, Finding, as_evidence, locate
from pipelines.session import Session, Step

_SURE = 0.9  # less is told as a finding, but no report is blamed for leaving it out


@dataclass(frozen=True)
class _Judged:
    kind: prompts.ErrorType
    correction: str | None
    probability: float | None  # None where the model only says which it is


def check_report(
    session: Session,
    report: str | None,
    regions: tuple[Region, ...],
    findings: Sequence[Finding],
) -> Iterator[Step | Discrepancy]:
    """Every sentence judged alone; then what the report, so corrected, still leaves out."""
    sentences = prompts.split_sentences(report) if report else []
    if report and not sentences:
        message = (
            "the report states nothing about the images (only technique, comparison or history),"
            " so it was not judged"
        )
        session.warnings.append(Problem("NO_STATEMENT", message))
    kept = []
    for number, sentence in enumerate(sentences, 1):
        step = Step("review", number - 1, len(sentences))
        yield step
        found = yield from _judge(session, step, sentence, f"sentence {number}")
        if found is None:
            kept.append(sentence)
            continue
        if found.kind != "insertion":
            kept.append(found.correction or sentence)
        # what was inserted is nowhere to be seen: only the words can be shown
        seen = found.kind != "insertion"
        proof = _proof(session, found.correction or sentence, regions) if seen else ()
        proof = (*proof, Evidence("text", sentence=sentence))
        yield Discrepancy(found.kind, sentence, found.correction, found.probability, proof)
    if sentences:
        step = Step("review", len(sentences), len(sentences))
        yield step
        kept = yield from _omissions(session, step, kept, regions)
        if session.backend.capabilities().review is None:
            yield from _unspoken(session, findings, [*sentences, *kept])


def _judge(
    session: Session, step: Step, sentence: str, subject: str
) -> Generator[Step, None, _Judged | None]:
    """What is wrong with a sentence, or None where the model sees no error."""
    prompt = prompts.CHECK_SENTENCE.format(sentence=sentence)
    try:
        judged = session.ask(prompt, choices=VERDICTS)
        chances, measured_mm = _weighed(session, sentence, judged.choices or {judged.text: 1.0})
        probability = 1.0 - chances.get(prompts.AGREES, 0.0)
        if probability < 0.5:
            return None
        said = yield from session.speak(step, prompt, form=prompts.VERDICT_FORM)
    except (ContextOverflow, BadAnswer) as error:
        session.warnings.append(Problem("NOT_JUDGED", str(error), subject))
        return None
    kind = max(prompts.ERROR_TYPES, key=lambda error: chances.get(error, 0.0))
    verdict = prompts.parse_verdict(said.text)
    written = verdict.correction if verdict and verdict.error == kind else None
    correction = mended(sentence, kind, measured_mm, written)
    return _Judged(kind, correction, probability if judged.choices else None)


def _weighed(
    session: Session, sentence: str, said: Mapping[str, float]
) -> tuple[Mapping[str, float], float | None]:
    """Verdicts by what is said and what is seen, and the size measured if the sentence states one."""
    able = session.backend.capabilities()
    if able.review is None:
        return said, None
    claim = claim_of(sentence, [name for name, _ in able.findings])
    denied, measured_mm = denial(sentence, said), None
    if claim and claim.size_mm and denied < 0.5:
        measured_mm = session.size(claim.name, claim.side)
    found = weigh(
        said, claim, session.presence, denied=denied, measured_mm=measured_mm, weights=able.review
    )
    return found, measured_mm


def _omissions(
    session: Session, step: Step, kept: list[str], regions: tuple[Region, ...]
) -> Generator[Step | Discrepancy, None, list[str]]:
    """What the kept sentences leave out, one after the other until nothing new is named.

    Returns the kept sentences and what was found missing among them.
    """
    kept = list(kept)
    for _ in range(MAX_OMISSIONS):
        found = yield from _omission(session, step, kept)
        if found is None or found.correction in kept:
            break
        missing = found.correction
        proof = _proof(session, missing, regions) if missing else ()
        yield Discrepancy("omission", None, missing, found.probability, proof)
        if missing is None:
            break
        kept.append(missing)
    return kept


def _omission(
    session: Session, step: Step, kept: Sequence[str]
) -> Generator[Step, None, _Judged | None]:
    """One finding that the kept sentences leave out, None where they leave out nothing."""
    able = session.backend.capabilities()
    prompt = prompts.FIND_OMISSION.format(report=" ".join(kept))
    try:
        judged = session.ask(prompt, choices=OMISSION)
        chance = 1.0 - (judged.choices or {judged.text: 1.0}).get(prompts.NOTHING_OMITTED, 0.0)
        unspoken, names = None, [name for name, _ in able.findings]
        if able.review is not None:
            unspoken = surest_unspoken(session.presence, kept, names)
            chance = left_out(chance, unspoken[1] if unspoken else 0.0, able.review)
        if chance < 0.5:
            return None
        said = yield from session.speak(step, prompt, form=prompts.VERDICT_FORM)
    except (ContextOverflow, BadAnswer) as error:
        session.warnings.append(Problem("NOT_JUDGED", str(error), "what the report leaves out"))
        return None
    verdict = prompts.parse_verdict(said.text)
    missing = verdict.correction if verdict and verdict.error == "omission" else None
    if unspoken is not None and unspoken[1] >= 0.5:
        missing = lacking(unspoken[0], missing)
    elif unspoken is not None and missing and is_spoken(session.presence, missing, kept, names):
        return None
    return _Judged("omission", missing, chance if judged.choices else None)


def _unspoken(
    session: Session, findings: Sequence[Finding], sentences: Sequence[str]
) -> Iterator[Discrepancy]:
    """A finding that the model is sure of and that no sentence speaks of is an omission too."""
    names = [name for name, _ in session.backend.capabilities().findings]
    spoken = {name for s in sentences for name, _ in mentions(s, names)}
    for finding in findings:
        sure = finding.probability is not None and finding.probability >= _SURE
        if sure and finding.name not in spoken:
            correction = lacking((finding.name, finding.side), None)
            yield Discrepancy("omission", None, correction, finding.probability, finding.evidence)


def _proof(session: Session, words: str, regions: tuple[Region, ...]) -> tuple[Evidence, ...]:
    """The region of the finding that the words speak of."""
    names = [name for name, _ in session.backend.capabilities().findings]
    about = spoken_of(words, names)
    region = locate(regions, *about) if about else None
    return (as_evidence(region, session.volume.voxels.shape[1:]),) if region else ()
