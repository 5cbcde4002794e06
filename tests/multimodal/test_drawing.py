"""A study shown in another window or in fewer pictures than the model's, at every kind of model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dicom import PROFILES, Volume, load_volume
from encoders.errors import InvalidMessage
from multimodal.backends import GenerateOptions, collect
from multimodal.drawing import study_views, view_pictures
from multimodal.local import LocalBackend
from multimodal.messages import Study, from_openai, to_openai, user
from multimodal.remote import RemoteBackend
from tests.scripted_server import ScriptedServer

SOFT = (40.0, 400.0)


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(phantom_series)


def test_a_window_fills_all_channels_as_its_own_channel_of_the_models_is_filled(
    tiny_composite: Any, volume: Volume
) -> None:
    """The composite's middle channel is soft tissue at 40/400."""
    processor = tiny_composite[1]
    plain = processor.prepare("dicom", volume)
    asked = processor.prepare("dicom", Study(volume, window=SOFT))
    assert asked.views.shape == plain.views.shape
    for channel in range(3):
        assert np.array_equal(asked.views[:, channel], plain.views[:, 1])
    assert {source.window for source in asked.sources if source} == {"window 40/400"}
    codes = [[problem.code for problem in medium.problems] for medium in (plain, asked)]
    assert codes[1] == [*codes[0], "OTHER_WINDOW"]  # it never saw such pictures


def test_grey_levels_are_those_of_the_window(volume: Volume) -> None:
    """Slices of one value each; value by value as the window's definition has it."""
    hu = -80 + 5 * np.arange(len(volume.voxels))
    flat = replace(volume, voxels=np.broadcast_to(hu[:, None, None], volume.voxels.shape).copy())
    (views,) = study_views(Study(flat, window=(-20.0, 80.0)), ("ct-lung", "ct-soft"), 16)
    middle = views.pixels[:, :, views.pixels.shape[2] // 2, views.pixels.shape[3] // 2]
    for seen, source in zip(middle, views.sources, strict=True):
        share = (-80 + 5 * (source.slice_index or 0) + 60) / 80
        assert set(seen.tolist()) == {round(255 * min(max(share, 0), 1))}
    assert views.labels[0] == "SLICE 1, window -20/80 HU"
    assert len(view_pictures(views)) == 16


@pytest.mark.parametrize("frames", [1, 5, 500])
def test_so_many_pictures_at_most_and_the_estimate_knows(
    frames: int, tiny_composite: Any, volume: Volume, phantom_series: Path
) -> None:
    backend = LocalBackend(*tiny_composite)
    most = PROFILES["crossread-ct"].num_views
    for study in (volume, phantom_series):
        asked = [user(Study(study, frames=frames), "list")]
        usage = collect(backend.generate(asked, GenerateOptions(max_new_tokens=2))).usage
        medium = backend.processor.prepare("dicom", Study(study, frames=frames))
        assert len(medium.views) == min(frames, most)
        assert backend.estimate(asked).prompt_tokens == usage.prompt_tokens
        (size,) = backend.estimate(asked).media
        assert size.frames == len(volume.voxels)  # all of them have to be decoded
    covered = [s.slice_range for s in medium.sources if s and s.slice_range]
    assert (covered[0][0], covered[-1][1]) == (0, len(volume.voxels))
    backend.close()


def test_the_same_study_shown_otherwise_is_encoded_for_itself(
    tiny_composite: Any, volume: Volume
) -> None:
    backend = LocalBackend(*tiny_composite)
    options = GenerateOptions(max_new_tokens=2)
    studies = [Study(volume), Study(volume, window=SOFT), Study(volume, frames=3), Study(volume)]
    new = [
        collect(backend.generate([user(s, "list")], options)).usage.encoded_media for s in studies
    ]
    assert new == [1, 1, 1, 0]
    backend.close()


def test_a_server_is_sent_pictures_in_that_window_labelled_with_it(
    model_server: ScriptedServer, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CROSSREAD_API_KEY", raising=False)
    backend = RemoteBackend(model_server.url)
    asked = [user(Study(volume, window=SOFT, frames=4), "list")]
    assert backend.estimate(asked).media[0].wanted == 4
    collect(backend.generate(asked))
    words = [p["text"] for p in model_server.seen[-1]["messages"][-1]["content"] if "text" in p]
    assert words == [*(f"SLICE {k}, window 40/400 HU" for k in range(1, 5)), "list"]


def test_a_window_needs_hounsfield_units(tiny_composite: Any, volume: Volume) -> None:
    with pytest.raises(InvalidMessage, match="this study holds none"):
        tiny_composite[1].prepare("dicom", Study(replace(volume, unit=""), window=SOFT))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"window": (40.0, 0.0)}, "the width 0 HU"),
        ({"window": (40.0, float("nan"))}, "the width nan HU"),
        ({"frames": 0}, "at least 1"),
    ],
)
def test_what_shows_nothing_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InvalidMessage, match=words):
        Study(Path("study"), **given)


def test_a_window_and_frames_go_through_chat_dicts() -> None:
    messages = [user(Study(Path("study"), (40.0, 400.0), 7), "list"), user(Study(Path("study")))]
    assert from_openai(to_openai(messages)) == messages
    part = {"type": "dicom", "dicom": "study", "window": [40, "wide"]}
    with pytest.raises(InvalidMessage, match="a str, not int or float"):
        from_openai([{"role": "user", "content": [part]}])
