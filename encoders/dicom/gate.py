"""Where pictures that may show patient data stop, on their way to a model or a page.

A series or volume whose problems hold BURNED_IN_RISK passes only where somebody vouches for it;
the problem then becomes BURNED_IN_ALLOWED and travels on, so that every later gate knows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from encoders.dicom.series import Series
from encoders.dicom.volume import Volume
from encoders.errors import BurnedInText
from encoders.features import Problem

Pictures = TypeVar("Pictures", Series, Volume)


def let_through(pictures: Pictures, *, allow_burned_in: bool = False) -> Pictures:
    """What was given, where it is at no risk or vouched for.

    Raises:
        BurnedInText: otherwise; the message says what the risk is and how to vouch.
    """
    risks = [p for p in pictures.problems if p.code == "BURNED_IN_RISK"]
    if not risks:
        return pictures
    if not allow_burned_in:
        raise BurnedInText(
            f"{risks[0].message}; nothing was shown to a model. Look at the pictures, then pass"
            " allow_burned_in=True (--allow-burned-in), or mask them by `crossread deidentify`"
        )
    return replace(pictures, problems=tuple(_vouched(p) for p in pictures.problems))


def _vouched(problem: Problem) -> Problem:
    if problem.code != "BURNED_IN_RISK":
        return problem
    message = f"{problem.message}; the caller vouches for them"
    return Problem("BURNED_IN_ALLOWED", message, problem.subject)
