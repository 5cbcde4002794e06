"""A folder of studies read into one file of results, a line each, that a killed run goes on with.

Ties the casebook, the CT report task and the journal together; `crossread read --batch`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import InvalidOption
from pipelines.batch import Failed, run_at_once
from pipelines.casebook import Entry, find_cases, read_report
from pipelines.journal import Journal

if TYPE_CHECKING:
    from pipelines.ct_report import CtReportPipeline


_WORKERS = 4  # enough to keep a model busy; each holds a study in memory


@dataclass(frozen=True)
class Terms:
    """What is the same for every study of a batch; results of other terms are never mixed in.

    `question` is asked where the manifest gives none. With `report_from_study` a study without a
    report beside it is judged by the report object among its files. `sparsity` is the one that the
    model was loaded with.
    """

    question: str | None = None
    report_from_study: bool = False
    allow_burned_in: bool = False
    sparsity: float | None = None


@dataclass(frozen=True)
class Summary:
    """How a batch went; `failed` counts the error lines of the whole file, `agreement` its readings."""

    studies: int
    done_before: int
    read: int
    failed: int
    ignored_files: int
    seconds: float
    agreement: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def read_folder(
    task: CtReportPipeline,
    folder: Path,
    out: Path,
    *,
    manifest: Path | None = None,
    terms: Terms | None = None,
    workers: int | None = None,
) -> Summary:
    """Read every study of `folder` that `out` does not hold yet.

    `out` gets a line with the settings, then one a study as it is done: `{"case": NAME, "reading":
    …}` or `{"case": NAME, "error": {"type": …, "message": …}}`. A line is on the disk before its
    study counts as done, so a run that is killed goes on where it was.

    Args:
        workers: studies read at once; None for 4, or 1 where the model runs requests one by one.

    Raises:
        InputError: the folder, the manifest or `out` cannot be used.
        RemoteError: the model's server failed; the same call goes on later.
    """
    from tqdm import tqdm

    if workers is None:
        workers = 1 if task.backend.capabilities().one_by_one else _WORKERS
    if workers < 1:
        raise InvalidOption(f"workers is {workers}; use 1 or more")
    terms, started = terms or Terms(), time.monotonic()
    book = find_cases(folder, manifest)
    with Journal(out, _settings(task, terms), "case") as journal:
        left = [entry for entry in book.entries if entry.name not in journal.done]
        before = len(book.entries) - len(left)
        bar = tqdm(total=len(book.entries), initial=before, desc="studies", disable=None)
        outcomes = run_at_once(left, lambda e: _read(task, e, terms), "studies", workers)
        with bar:
            for entry, outcome in outcomes:
                journal.add(_line(entry, outcome))
                bar.update()
        lines = [journal.done[entry.name] for entry in book.entries]
    agreement = Counter(line["reading"]["agreement"] for line in lines if "reading" in line)
    failed = sum("error" in line for line in lines)
    seconds = round(time.monotonic() - started, 1)
    return Summary(
        len(lines), before, len(left), failed, book.num_ignored, seconds, dict(agreement)
    )


def _settings(task: CtReportPipeline, terms: Terms) -> dict[str, Any]:
    """What a line depends on besides its study."""
    from pipelines.ct_report import provenance

    name = task.backend.capabilities().name
    return {"model": name, **provenance(task.backend), **asdict(terms)}


def _read(task: CtReportPipeline, entry: Entry, terms: Terms) -> dict[str, Any]:
    """A reading in JSON types; one that JSON cannot hold fails here, alone."""
    words = read_report(entry.report_file) if entry.report_file else entry.report
    reading = task(
        entry.study, words, entry.dictation, entry.question or terms.question,
        report_from_study=terms.report_from_study and not words,
        allow_burned_in=terms.allow_burned_in,
    )  # fmt: skip
    ours = {file.name for file in (entry.report_file, entry.dictation) if file}
    kept = (w for w in reading.warnings if w.code != "NOT_DICOM" or w.subject not in ours)
    return json.loads(replace(reading, warnings=tuple(kept)).to_json())


def _line(entry: Entry, outcome: dict[str, Any] | Failed) -> dict[str, Any]:
    if isinstance(outcome, Failed):
        return {"case": entry.name, "error": {"type": outcome.error, "message": outcome.message}}
    return {"case": entry.name, "reading": outcome}
