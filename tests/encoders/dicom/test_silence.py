"""The libraries' silence while several threads ask for it, each coming and going when it likes."""

from __future__ import annotations

import logging
import warnings
from itertools import permutations

import pytest
from pydicom.config import settings

from encoders.dicom.silence import quiet_pydicom


def state() -> tuple[int, int, int, int]:
    with warnings.catch_warnings(record=True) as told:
        warnings.warn("Zebra^Anna", stacklevel=1)
    levels = [logging.getLogger(name).getEffectiveLevel() for name in ("pydicom", "highdicom")]
    return len(told), levels[0], levels[1], settings.reading_validation_mode


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_silence_lasts_until_the_last_has_left_and_no_longer(order: tuple[int, ...]):
    """Each put back what it had found: the first to leave broke it, the last left it for good."""
    warnings.simplefilter("always")  # of this test alone: pytest puts the filters back
    before = state()
    inside = [quiet_pydicom() for _ in order]
    for one in inside:
        one.__enter__()
    silent = state()
    assert silent[0] == 0
    assert min(silent[1:3]) > logging.CRITICAL
    for number in order:
        assert state() == silent
        inside[number].__exit__(None, None, None)
    assert state() == before != silent
