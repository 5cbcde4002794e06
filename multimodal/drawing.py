"""Media as models of others take them: studies as labelled pictures, pictures, sound, video frames.

What leaves here is pixels and samples alone: no name, no header, no metadata of a file. Knows no
model and no protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from encoders.errors import InvalidMessage
from encoders.features import Problem
from multimodal.messages import Audio, Image, Study

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from encoders.dicom import Series, ViewProfile, Views, Volume

_MR, _OTHERS = "mr", "cxr"  # cxr: grey as the header asks, colour as it is


def study_views(part: Study, ct_profiles: Sequence[str], most: int) -> list[Views]:
    """A study's views by each of the profiles for its kind, at most `most` slices; CT by yours.

    Raises:
        InputError: a study that cannot be read, or whose pictures may show patient data.
    """
    from encoders.dicom import PROFILES, Volume, load_volume
    from encoders.dicom.pictures import viewable

    seen = viewable(part.study)
    names: Sequence[str] = (_MR if seen.info.modality == "MR" else _OTHERS,)
    if seen.info.modality == "CT":
        names = ct_profiles[:1] if part.window else ct_profiles
        seen = seen if isinstance(seen, Volume) else load_volume(seen)
    profiles = (PROFILES[name] for name in names)
    return [
        wanted_views(part, seen, replace(profile, num_views=min(profile.num_views, most)))
        for profile in profiles
    ]


def wanted_views(part: Study, seen: Series | Volume, profile: ViewProfile) -> Views:
    """The views by a profile, but for what the part asks to be shown otherwise.

    Raises:
        InputError: a study that cannot be read, or a window for one without Hounsfield units.
    """
    from encoders.dicom import Volume, Window, load_volume, views_of

    if part.frames is not None:
        profile = replace(profile, num_views=min(profile.num_views, part.frames))
    if part.window is not None:
        if seen.info.modality == "CT" and not isinstance(seen, Volume):
            seen = load_volume(seen)
        if not isinstance(seen, Volume) or not seen.calibrated:
            raise InvalidMessage(
                "window is in Hounsfield units and this study holds none; leave it out"
            )
        center, width = part.window
        name = f"window {center:g}/{width:g}"
        profile = replace(
            profile, name=name, windows=(Window(name, center, width),) * 3,
            label=f"SLICE {{number}}, {name} HU",
        )  # fmt: skip
    return views_of(seen, profile)


def view_pictures(views: Views) -> list[PilImage]:
    """The views as pictures of three channels, one per window."""
    from PIL.Image import fromarray

    return [fromarray(np.ascontiguousarray(p)) for p in np.moveaxis(views.pixels, 1, -1)]


def picture_of(part: Image) -> tuple[PilImage, tuple[Problem, ...]]:
    """A picture's pixels alone, upright, and what had to be done to them.

    Raises:
        InputError: no such file, or not a picture.
    """
    from PIL.Image import fromarray

    from encoders.picture import open_picture

    image, problems = open_picture(part.image)
    return fromarray(np.asarray(image)), problems


def sound_of(part: Audio) -> np.ndarray:
    """A recording as float32 mono at 16 kHz.

    Raises:
        InputError: no such file, or no sound in it.
    """
    from encoders.audio import RATE_HZ, load_speech

    rate_hz = part.rate_hz
    if rate_hz is None and isinstance(part.audio, np.ndarray):
        rate_hz = RATE_HZ
    return load_speech(part.audio, rate_hz)
