"""PET as standardised uptake values: activity for each gram, as if the dose had spread evenly.

A series in, its volume in SUV by body weight (g/ml) out, from what the header tells of dose, weight
and decay (PS3.3 C.8.9.1, C.8.9.2). Nothing is assumed: what is missing is named and refused.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from encoders.dicom.display import Display
from encoders.dicom.series import Series
from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.volume import Volume, load_volume
from encoders.errors import InvalidPixels
from encoders.features import Problem

_PHILIPS = ("Philips PET Private Group", 0x7053)  # (7053,xx00): SUV for each rescaled count
_MIN_DOSE_BQ = 1e6  # less was written in MBq, against the standard


@quiet_pydicom()
def load_suv(series: Series) -> Volume:
    """A PET series in SUV by body weight; `unit` is "SUV", a `SUV` problem tells the factor.

    Raises:
        InvalidPixels: it is no PET, or its header does not tell what the conversion needs.
        InputError: as `load_volume`.
    """
    import pydicom

    volume = load_volume(series)
    if volume.unit == "SUV":
        return volume
    header = pydicom.dcmread(series.files[0].open(), stop_before_pixels=True, force=True)
    if volume.unit == "Bq/ml":
        factor = _by_weight(header, series)
    elif volume.unit == "counts" and (told := _philips_factor(header)):
        factor = told
    else:
        raise InvalidPixels("not activity in Bq/ml (Units (0054,1001)): no SUV can be told")
    words = f"activity times {factor:.6g} is the SUV by body weight (g/ml), from the header's dose"
    return replace(
        volume, voxels=volume.voxels.astype(np.float32) * np.float32(factor), unit="SUV",
        padding_ranges=tuple((low * factor, high * factor) for low, high in volume.padding_ranges),
        problems=(*volume.problems, Problem("SUV", words)),
        display=Display((), volume.display.inverted), displays=(),
    )  # fmt: skip


def _by_weight(header: Any, series: Series) -> float:
    """g over the Bq that were left of the dose at the time that the values are corrected to."""
    corrections = _listed(header.get("CorrectedImage"))
    if not {"ATTN", "DECAY"} <= corrections:
        raise InvalidPixels("PET without correction of attenuation and decay (0028,0051): no SUV")
    drug = (header.get("RadiopharmaceuticalInformationSequence") or [None])[0]
    if drug is None:
        raise InvalidPixels("no Radiopharmaceutical Information (0054,0016): no SUV can be told")
    grams = 1000 * _positive(header, "PatientWeight")
    dose = _positive(drug, "RadionuclideTotalDose")
    if dose < _MIN_DOSE_BQ:
        raise InvalidPixels("RadionuclideTotalDose is no dose in Bq: no SUV can be told")
    corrected_to = str(header.get("DecayCorrection", ""))
    if corrected_to == "ADMIN":
        return grams / dose
    if corrected_to != "START":
        raise InvalidPixels("DecayCorrection (0054,1102) is neither START nor ADMIN: no SUV")
    waited = _seconds_to_scan(header, drug, series)
    return grams / (dose * 2 ** (-waited / _positive(drug, "RadionuclideHalfLife")))


def _seconds_to_scan(header: Any, drug: Any, series: Series) -> float:
    """From the injection to the start of the series, to which its values are corrected."""
    start = _moment(header.get("SeriesDate"), header.get("SeriesTime"))
    acquired = min(f.traits.acquisition_time for f in series.files)
    if start is None or (acquired and _moment(header.get("SeriesDate"), acquired) < start):
        raise InvalidPixels("SeriesTime (0008,0031) is missing or later than the scan: no SUV")
    told = str(drug.get("RadiopharmaceuticalStartDateTime") or "")
    given = _moment(told[:8], told[8:]) if told else None
    given = given or _moment(header.get("SeriesDate"), drug.get("RadiopharmaceuticalStartTime"))
    if given is None:
        raise InvalidPixels("RadiopharmaceuticalStartTime (0018,1072) is missing: no SUV")
    if given > start and not told:
        given -= timedelta(days=1)  # a time alone, before midnight
    seconds = (start - given).total_seconds()
    if not 0 <= seconds < 86400:
        raise InvalidPixels("the scan does not follow its injection within a day: no SUV")
    return seconds


def _moment(date: Any, time: Any) -> Any:
    found = re.match(r"(\d{8})(\d{6})(\.\d{1,6})?", f"{date or ''}{time or ''}")
    if found is None:
        return None
    try:
        whole = datetime.strptime(found[1] + found[2], "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return whole + timedelta(seconds=float(found[3] or 0))


def _positive(holder: Any, keyword: str) -> float:
    try:
        value = float(holder.get(keyword))
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < 1e15:
        raise InvalidPixels(f"{keyword} is missing or not above zero: no SUV can be told")
    return value


def _philips_factor(header: Any) -> float:
    creator, group = _PHILIPS
    try:
        return float(header.private_block(group, creator)[0x00].value)
    except (KeyError, TypeError, ValueError):
        return 0.0


def _listed(value: Any) -> set[str]:
    return {value} if isinstance(value, str) else {str(item) for item in value or ()}
