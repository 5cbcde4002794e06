"""A study opened for reading: its volume, what is wrong with it, and the written report.

A path or what `encoders.dicom.scan` gives in, values out; asks no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import InvalidMessage, MissingInput
from encoders.features import Problem

if TYPE_CHECKING:
    from encoders.dicom import Study, Volume
    from encoders.dicom.header import Document


@dataclass(frozen=True)
class Opened:
    """What a study gave; `about` is what may be told of the series, in JSON types."""

    volume: Volume
    about: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True)
class Typed:
    """The written report, where it came from, and what to say about that."""

    text: str | None = None
    source: str = ""
    problems: tuple[Problem, ...] = ()


def open_study(
    study: str | Path | Study | Volume,
    series: str | int | None = None,
    *,
    allow_burned_in: bool = False,
) -> Opened:
    """The volume of a series, the default one unless another is named (`Study.choose`).

    Raises:
        BurnedInText: the pictures may show patient data and nobody vouches for them.
        InvalidMessage: a series of a loaded volume.
        InputError: the study cannot be read, or has no such series.
    """
    from encoders.dicom import Study, Volume, let_through, load_volume, scan

    if isinstance(study, Volume):
        if series is not None:
            raise InvalidMessage("a loaded volume has no series to choose from; give the study")
        volume = let_through(study, allow_burned_in=allow_burned_in)
        return Opened(volume, volume.info.to_dict(), volume.problems)
    found = study if isinstance(study, Study) else scan(study)
    chosen = found.choose(series)
    problems = list(found.problems)
    if len(found.series) > 1:
        info, others = chosen.info, len(found.series) - 1
        images = f"{info.num_slices} image{'s'[: info.num_slices != 1]}"
        why = "as asked" if series is not None else f"chosen {found.default_reason}"
        words = f"read the {info.modality} series of {images}, {why}; {others} left unread"
        problems.append(Problem("SERIES_CHOSEN", words))
    volume = let_through(load_volume(chosen), allow_burned_in=allow_burned_in)
    about = {**volume.info.to_dict(), "series_key": chosen.key}
    return Opened(volume, about, (*problems, *volume.problems), found.documents)


def typed_report(report: str | None, documents: Sequence[Document], *, from_study: bool) -> Typed:
    """The caller's report; the study's own only if asked for, else it is offered.

    Raises:
        InvalidMessage: both are to be read.
        MissingInput: the study has none that can be read.
    """
    if not from_study:
        kinds = ", ".join(sorted({d.kind for d in documents}))
        words = f"the study holds report objects of its own ({kinds}); none was used"
        offered = (Problem("REPORT_OFFERED", words),) if documents else ()
        return Typed(report, "given text" if report else "", offered)
    from encoders.dicom.documents import report_texts

    if report:
        raise InvalidMessage("give a report or take the study's own, not both")
    texts, problems = report_texts(documents)
    if not texts:
        why = f" ({problems[0].message})" if problems else ""
        raise MissingInput(
            f"the study holds no SR, PDF or CDA report that can be read{why}; give its text instead"
        )
    first = texts[0]
    if len(texts) > 1:
        words = f"read the longest of {len(texts)} report objects of the study"
        problems = [*problems, Problem("REPORT_CHOSEN", words, first.name)]
    return Typed(first.text, f"{first.kind} object of the study", tuple(problems))
