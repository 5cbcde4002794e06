"""Frames of a video whose brightness says which frame it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoders.errors import MissingInput, UnreadableImage
from encoders.video import sample_frames


def test_frames_come_from_the_middles_of_equal_stretches(clip: Path) -> None:
    frames = sample_frames(clip, 4)
    seconds = [second for _, second in frames]
    grey = [float(np.asarray(image).mean()) for image, _ in frames]
    assert seconds == pytest.approx([0.2, 0.7, 1.2, 1.7], abs=0.051)
    assert grey == pytest.approx([10 * 10 * s + 20 for s in seconds], abs=6)


def test_a_short_clip_gives_each_frame_once(clip: Path) -> None:
    assert len(sample_frames(clip, 50)) == 20


def test_missing_or_silent_film_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"gone\.mp4"):
        sample_frames(tmp_path / "gone.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(UnreadableImage, match=r"bad\.mp4"):
        sample_frames(tmp_path / "bad.mp4")
