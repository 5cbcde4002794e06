"""A reading, and what a DICOM input holds, as text for a terminal.

Slices are counted from 1 here, as viewers do; `slice_index` of the values counts from 0.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encoders.features import Problem

if TYPE_CHECKING:
    from encoders.dicom import Exported
    from multimodal.engine.doctor import Diagnosis
    from pipelines.evidence import Discrepancy, Finding, Reading
    from pipelines.overnight import Summary

_WIDTH = 96


def describe_reading(reading: Reading) -> str:
    """The verdict first, then differences, findings, answer and warnings."""
    num_slices = int(reading.study.get("num_slices") or 0)
    alarms = [w for w in reading.warnings if w.code == "OUT_OF_RANGE"]
    others = [w for w in reading.warnings if w.code != "OUT_OF_RANGE"]
    lines = [line for alarm in alarms for line in (*_wrapped("OUT OF RANGE: ", alarm.message), "")]
    lines.append(reading.verdict())
    if reading.discrepancies:
        lines += ["", "Differences"]
    for number, point in enumerate(reading.discrepancies, 1):
        lines += _describe_point(number, point, num_slices)
    if not reading.out_of_range:
        lines += ["", "Findings in the images"]
        found = [_describe_finding(f, num_slices) for f in reading.findings]
        lines += [f"  {text}" for text in found or ["none of those this model knows"]]
    if reading.decided:
        lines += ["", "Reviewed by: ____________________  Date and time: ____________________"]
    if reading.report_source:
        lines += ["", f"Report from: {reading.report_source}"]
    if reading.transcript:
        lines += ["", "Heard", *_wrapped("  ", reading.transcript)]
    if reading.answer:
        lines += ["", "Answer", *_wrapped("  ", reading.answer)]
    if others:
        lines += ["", "Warnings", *_describe_problems(others)]
    total = reading.timings_s.get("total", 0.0)
    return "\n".join([*lines, "", f"{reading.model}, {total:.1f} s. {reading.disclaimer}"])


def describe_diagnosis(told: Diagnosis) -> str:
    """Each choice of the engine with its reason, then what steps cost."""
    lines = [f"{choice.what:10} {choice.value:22} {choice.why}" for choice in told.choices]
    costs = ", ".join(f"{rows}: {1e3 * s:.1f} ms" for rows, s in told.step_seconds.items())
    if costs:
        lines.append(f"{'steps':10} measured by their tokens: {costs}")
    return "\n".join(lines)


def describe_export(done: Exported) -> str:
    """What was written and what was not, and why."""
    lines = [f"{done.num_written} files written, {len(done.skipped)} left out"]
    if done.options:
        lines.append(f"Options: {', '.join(done.options)}")
    for title, problems in (("Left out", done.skipped), ("To be judged", done.warnings)):
        if problems:
            lines += ["", title, *_describe_problems(problems)]
    return "\n".join(lines)


def _describe_point(number: int, point: Discrepancy, num_slices: int) -> Iterator[str]:
    yield f"  {number}. {point.type}{_sure(point.probability)}"
    said = f'"{point.sentence}"' if point.sentence else "(nothing)"
    yield from _wrapped("     report     ", said)
    wanted = f'"{point.correction}"' if point.correction else point.suggestion
    yield from _wrapped("     suggested  ", wanted)
    for proof in point.evidence:
        if proof.slice_index is not None:
            yield f"     see        {slice_words(proof.slice_index, num_slices)}"
    if point.decision:
        yield f"     reviewer   {point.decision}"


def _describe_finding(finding: Finding, num_slices: int) -> str:
    words = [" ".join(w for w in (finding.side, finding.name) if w)]
    if finding.size_mm is not None:
        words.append(f"{finding.size_mm:.0f} mm")
    if finding.slice_index is not None:
        words.append(slice_words(finding.slice_index, num_slices))
    return ", ".join(words) + _sure(finding.probability)


def _sure(probability: float | None) -> str:
    return "" if probability is None else f" ({percent(probability)} sure)"


def percent(probability: float) -> str:
    """Rounded, but never to what is certain or impossible: no model knows that."""
    if probability < 0.005:
        return "<1%"
    return ">99%" if probability >= 0.995 else f"{probability:.0%}"


def slice_words(index: int, num_slices: int) -> str:
    """`slice 6 of 24` for index 5."""
    return f"slice {index + 1}" + (f" of {num_slices}" if num_slices else "")


def grouped(problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """Each kind of problem once, with what it concerns: `a.dcm, b.dcm, c.dcm and 9 more`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        groups.setdefault((problem.code, problem.message), []).append(problem.subject)
    return [(Problem(*kind), _listed(names)) for kind, names in groups.items()]


def _listed(names: Sequence[str]) -> str:
    known = [name for name in dict.fromkeys(names) if name]
    more = len(names) - len(known[:3])
    return ", ".join(known[:3]) + (f" and {more} more" if known and more else "")


def _describe_problems(problems: Sequence[Problem], indent: str = "  ") -> Iterator[str]:
    for problem, about in grouped(problems):
        where = f" ({about})" if about else ""
        yield from _wrapped(f"{indent}{problem.code}: ", problem.message + where, len(indent) + 2)


def _wrapped(start: str, text: str, hang: int | None = None) -> list[str]:
    """Text broken at the terminal's width, its further lines under its beginning."""
    indent = " " * (len(start) if hang is None else hang)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False
    ) or [start.rstrip()]


def describe_batch(done: Summary) -> str:
    """What became of a folder of studies."""
    lines = [f"{_counted(done.studies, 'study', 'studies')}: {done.read} read now"]
    if done.done_before:
        lines[0] += f", {done.done_before} before"
    lines += [f"  {count} {word}" for word, count in sorted(done.agreement.items())]
    if done.failed:
        lines.append(f"  {done.failed} could not be read; their lines say why")
    if done.ignored_files:
        files = _counted(done.ignored_files, "file", "files")
        lines.append(f"  {files} beside the studies belong to none and were left alone")
    return "\n".join(lines)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def describe_study(found: Mapping[str, Any]) -> str:
    """What `encoders.dicom.describe` found: one line a series, a star at the one that is read."""
    lines = []
    for number, series in enumerate(found["series"], 1):
        mark = f"{'*' if series['default'] else ' '} {number}. "
        lines += _wrapped(mark, _series_words(series), 4)
        lines += _describe_problems([Problem(**p) for p in series["problems"]], "      ")
    if len(found["series"]) > 1:
        lines += _wrapped("* opens first, ", found["default_reason"], 4)
    for document in found.get("documents", ()):
        lines.append(f"  {document['kind']} document: {document['name']}")
    lines += _describe_problems([Problem(**p) for p in found["problems"]])
    return "\n".join(lines or ["nothing that is DICOM"])


def _series_words(series: Mapping[str, Any]) -> str:
    about = [series["modality"] or "unknown modality", (series["body_part"] or "").lower()]
    spacing = " x ".join(f"{v:.2f}" for v in series["spacing_mm"] or ())
    gaps = ", ".join(f"{v:g}" for v in series["slice_gaps_mm"])
    words = [
        " ".join(w for w in about if w),
        f"{series['num_slices']} x {series['rows']} x {series['columns']}",
        f"{spacing} mm" if spacing else "",
        f"{gaps} mm apart" if gaps else "",
        f"kernel {series['kernel']}" if series["kernel"] else "",
        series["reason"],
    ]
    return ", ".join(w for w in words if w) + f" [{series['key']}]"
