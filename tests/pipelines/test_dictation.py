"""Speech to text, piece by piece: nothing lost between pieces, nothing silently ignored."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.errors import IncompatibleModel, InvalidMessage, MissingInput, UnreadableAudio
from multimodal.messages import Audio
from pipelines.batch import Failed
from pipelines.dictation import MAX_SECONDS, DictationPipeline, Listening, Segment, Transcript
from tests.makers import FakeBackend


class Listener(FakeBackend):
    """Keeps the samples it is given and says how many pieces there were."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[np.ndarray] = []

    def generate(self, messages: Any, options: Any = None) -> Any:
        (part,) = (p for p in messages[-1].parts if isinstance(p, Audio))
        assert part.rate_hz == 16000
        self.heard.append(np.asarray(part.audio))
        self.answers = {"Transcribe": f"word{len(self.heard)}"}
        return super().generate(messages, options)


@pytest.fixture
def long_speech() -> np.ndarray:
    """Twenty-one seconds with pauses."""
    t = np.arange(21 * 16000) / 16000
    return (0.3 * np.sin(2 * np.pi * 220 * t) * (np.sin(2 * np.pi * 0.4 * t) > -0.7)).astype("f4")


def test_a_long_recording_is_heard_whole_and_joined_in_order(long_speech: np.ndarray):
    backend = Listener()
    transcript = DictationPipeline(backend)((long_speech, 16000))
    assert len(backend.heard) >= 3
    assert all(len(piece) <= MAX_SECONDS * 16000 for piece in backend.heard)
    assert np.array_equal(np.concatenate(backend.heard), long_speech)
    assert transcript.text == " ".join(f"word{i + 1}" for i in range(len(backend.heard)))
    ends = [s.end_s for s in transcript.segments]
    assert [s.start_s for s in transcript.segments] == [0.0, *ends[:-1]]
    assert ends[-1] == pytest.approx(21.0)
    assert transcript.to_dict()["usage"]["questions"] == len(backend.heard)


def test_pieces_without_words_leave_no_gap_in_the_text(speech: np.ndarray):
    silent = FakeBackend(answers={"Transcribe": ""})
    assert DictationPipeline(silent)((speech, 16000)).text == ""


def test_segments_are_streamed_and_the_transcript_comes_last(long_speech: np.ndarray):
    events = list(DictationPipeline(Listener())((long_speech, 16000), stream=True))
    assert isinstance(events[-1], Transcript)
    assert all(isinstance(e, Segment) for e in events[:-1])
    assert events[-1].segments == tuple(events[:-1])


def test_many_recordings_come_one_by_one(tmp_path: Path, speech: np.ndarray):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, len(speech), "NONE", ""))
        file.writeframes((speech * 32767).astype("<i2").tobytes())
    wanted = [tmp_path / "a.wav", tmp_path / "b.wav", (speech, 16000)]
    first, second, third = DictationPipeline(FakeBackend())(wanted)
    assert isinstance(first, Transcript)
    assert isinstance(second, Failed)
    assert isinstance(third, Transcript)
    assert second.error == "MissingInput"


def test_a_tuple_of_files_is_many_recordings(tmp_path: Path):
    results = list(DictationPipeline(FakeBackend())((tmp_path / "a.wav", tmp_path / "b.wav")))
    assert [r.error for r in results] == ["MissingInput", "MissingInput"]


def test_samples_without_a_rate_are_refused(speech: np.ndarray):
    with pytest.raises(UnreadableAudio, match="needs its rate"):
        DictationPipeline(FakeBackend())(speech)


def test_a_recording_without_sound_is_refused():
    with pytest.raises(UnreadableAudio, match="holds no sound"):
        DictationPipeline(FakeBackend())((np.zeros(0, np.float32), 16000))


def test_a_missing_recording_is_named(tmp_path: Path):
    with pytest.raises(MissingInput, match=r"'none.wav' does not exist"):
        DictationPipeline(FakeBackend())(tmp_path / "none.wav")


def test_a_model_that_cannot_hear_is_refused(speech: np.ndarray):
    deaf = FakeBackend(modalities=frozenset({"text"}))
    with pytest.raises(IncompatibleModel, match="cannot hear"):
        DictationPipeline(deaf)((speech, 16000))


def test_many_recordings_cannot_be_streamed(speech: np.ndarray):
    with pytest.raises(InvalidMessage, match="one recording at a time"):
        DictationPipeline(FakeBackend())([(speech, 16000)], stream=True)


def test_phrases_before_a_pause_are_settled_and_heard_no_more():
    t = np.arange(3 * 16000) / 16000
    tone = (0.3 * np.sin(2 * np.pi * 220 * t)).astype("f4")
    quiet = np.zeros(16000, "f4")
    backend = Listener()
    ear = Listening(backend)
    spoken = np.concatenate([quiet, tone, quiet, tone[:24000], quiet, tone, quiet])
    said = [ear.feed(part, 16000).split() for part in np.array_split(spoken, 20)]
    for before, after in itertools.pairwise(said):
        assert after[: len(before) - 1] == before[:-1]  # only the newest words may change
    assert len(said[-1]) == 3
    settled = [int(word.removeprefix("word")) - 1 for word in said[-1]]
    seconds = [len(backend.heard[number]) / 16000 for number in settled]
    assert seconds == pytest.approx([3.2, 1.7, 3.2], abs=0.05)  # and a tenth around each


def test_silence_is_not_put_to_the_model():
    backend = Listener()
    assert Listening(backend).feed(np.zeros((96000, 2), np.int16), 48000) == ""
    assert backend.heard == []
