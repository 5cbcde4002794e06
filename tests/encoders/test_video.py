"""Frames of a video whose brightness says which frame it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoders.errors import MissingInput, UnreadableImage
from encoders.video import sample_frames


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two seconds, 20 frames, each brighter than the last."""
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * i + 20, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


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
