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
from multimodal.backends import Finished, Region
from multimodal.measuring import Sizes, median_mm
from multimodal.mending import mended
from multimodal.review import (
    VERDICTS,
    Question,
    as_spoken,
    both_told,
    claim_of,
    denial,
    lacking,
    omissions,
    weigh,
    worst_of,
)
from multimodal.terms import mentions, spoken_of
from pipelines.dictation import Transcript
from pipelines.evidence import Discrepancy, Evidence, Finding, as_evidence, locate
from pipelines.session import Session, Step

_MISHEARD = ("MISHEARD", "a word may have been misheard")
_DOUBTFUL = ("DOUBTFUL", "it is not sure that this was said, so it was not judged")
_SURE = 0.9  # less is told as a finding, but no report is blamed for leaving it out


@dataclass(frozen=True)
class _Judged:
    kind: prompts.ErrorType
    correction: str | None
    probability: float | None  # None where the model only says which it is
    doubt: tuple[str, str] | None  # what it is rather than mistaken, code and words


def check_report(
    session: Session,
    report: str | None,
    regions: tuple[Region, ...],
    findings: Sequence[Finding],
    *,
    transcript: Transcript | None = None,
) -> Iterator[Step | Discrepancy]:
    """Every sentence judged alone; then what the report, so corrected, still leaves out.

    The report ends with the sentences of `transcript`, which were dictated.
    """
    sentences = prompts.split_sentences(report) if report else []
    dictated = prompts.split_sentences(transcript.text) if transcript else []
    typed: list[float | None] = [None] * (len(sentences) - len(dictated))
    surely = [*typed, *transcript.how_surely(dictated)] if transcript else typed
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
        found = yield from _judge(session, step, number, sentences, surely=surely[number - 1])
        if found is None:
            kept.append(sentence)
            continue
        if found.kind != "insertion" or found.doubt:
            kept.append(found.correction or sentence)
        if found.doubt:
            session.warnings.append(_doubtful(found.doubt, sentence, found.correction))
            continue
        # what was inserted is nowhere to be seen: only the words can be shown
        seen = found.kind != "insertion"
        proof = _proof(session, found.correction or sentence, regions) if seen else ()
        proof = (*proof, Evidence("text", sentence=sentence))
        yield Discrepancy(found.kind, sentence, found.correction, found.probability, proof)
    if sentences:
        step = Step("review", len(sentences), len(sentences))
        yield step
        kept = yield from _omissions(session, step, kept, regions, like=" ".join(sentences))
        if session.backend.capabilities().review is None:
            yield from _unspoken(session, findings, [*sentences, *kept])


def _judge(
    session: Session, step: Step, number: int, report: Sequence[str], *, surely: float | None
) -> Generator[Step, None, _Judged | None]:
    """What is wrong with a report's sentence of this number, or None where the model sees no error.

    `surely` is how likely it was dictated so, None of one that was typed.
    """
    sentence = report[number - 1]
    prompt = prompts.CHECK_SENTENCE.format(sentence=sentence)
    try:
        judged = session.ask(prompt, choices=VERDICTS)
        answered = judged.choices or {judged.text: 1.0}
        chances, sizes = _weighed(session, sentence, report, answered)
        if chances.get(prompts.AGREES, 0.0) > 0.5:
            return None
        said = yield from session.speak(step, prompt, form=prompts.VERDICT_FORM)
    except (ContextOverflow, BadAnswer) as error:
        session.warnings.append(Problem("NOT_JUDGED", str(error), f"sentence {number}"))
        return None
    spoken, doubt = chances, None
    if surely is not None:
        fitted = session.backend.capabilities().review is not None
        spoken = as_spoken(chances, surely if fitted else 1.0)
        if spoken[prompts.AGREES] > 0.5:
            misspelt = as_spoken(chances, 1.0)[prompts.AGREES] > 0.5
            doubt = _MISHEARD if misspelt else _DOUBTFUL
    kind = worst_of(chances if doubt else spoken)
    probability = 1.0 - spoken.get(prompts.AGREES, 0.0)
    written = prompts.correction_in(said.text, kind)
    correction = mended(sentence, kind, median_mm(sizes), written)
    return _Judged(kind, correction, probability if judged.choices else None, doubt)


def _doubtful(doubt: tuple[str, str], sentence: str, meant: str | None) -> Problem:
    """A dictated sentence that is rather heard wrongly than wrong."""
    code, words = doubt
    perhaps = f'; perhaps "{meant}" was said' if meant else ""
    return Problem(code, f"{words}{perhaps}", f'"{sentence}"')


def _weighed(
    session: Session, sentence: str, report: Sequence[str], said: Mapping[str, float]
) -> tuple[Mapping[str, float], Sizes]:
    """Verdicts by what is said and what is seen, and the sizes seen if the sentence states one."""
    able = session.backend.capabilities()
    if able.review is None:
        return said, {}
    claim = claim_of(sentence, [name for name, _ in able.findings])
    denied = denial(sentence, said)
    sizes: Sizes = {}
    if claim and claim.size_mm and denied < 0.5:
        sizes = session.sizes(claim.name, claim.side)
    found = weigh(
        said, claim, session.presence, denied=denied, sizes=sizes, weights=able.review,
        both=both_told(claim, report),
    )  # fmt: skip
    return found, sizes


def _omissions(
    session: Session, step: Step, kept: list[str], regions: tuple[Region, ...], *, like: str
) -> Generator[Step | Discrepancy, None, list[str]]:
    """What the kept sentences leave out, worded in the language of `like`.

    Returns the kept sentences and what was found missing among them.
    """
    kept, stated = list(kept), False
    asking = omissions(kept, session.presence, session.backend.capabilities().review, like=like)
    event = next(asking, None)
    while event is not None:
        if isinstance(event, Question):
            try:
                answer = yield from _ask(session, step, event)
            except (ContextOverflow, BadAnswer) as error:
                words = "what the report leaves out"
                session.warnings.append(Problem("NOT_JUDGED", str(error), words))
                break
            stated = bool(answer.choices) if event.choices else stated
            event = asking.send(answer)
            continue
        if event.chance < 0.5:
            break
        proof = _proof(session, event.sentence, regions) if event.sentence else ()
        chance = event.chance if stated else None
        yield Discrepancy("omission", None, event.sentence, chance, proof)
        kept += [event.sentence] if event.sentence else []
        event = next(asking, None)
    return kept


def _ask(session: Session, step: Step, question: Question) -> Generator[Step, None, Finished]:
    if question.choices:
        return session.ask(question.prompt, choices=question.choices)
    return (yield from session.speak(step, question.prompt, form=prompts.VERDICT_FORM))


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
