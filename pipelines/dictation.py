"""Speech -> text: a recording of any length, transcribed piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import IncompatibleModel
from multimodal.backends import Backend, GenerateOptions, collect
from multimodal.messages import Audio, user
from multimodal.prompts import TRANSCRIBE

if TYPE_CHECKING:
    import numpy as np

MAX_SECONDS = 8.0  # sentences fit, and every tower's window is longer


@dataclass(frozen=True)
class Segment:
    """What was said between two moments."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """A transcribed recording."""

    text: str
    segments: tuple[Segment, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


class DictationPipeline:
    """`pipeline("dictation")`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __call__(self, recording: str | Path | tuple[np.ndarray, int]) -> Transcript:
        """Transcribe a file, or (samples, rate in Hz).

        Raises:
            UnreadableAudio, MissingInput: the recording cannot be used.
            IncompatibleModel: the model cannot hear.
        """
        from encoders.audio import RATE_HZ, chunk_speech, load_speech

        if "audio" not in self.backend.capabilities().modalities:
            raise IncompatibleModel(
                f"{self.backend.capabilities().name} cannot hear; choose a model with an audio tower"
            )
        speech = load_speech(*recording) if isinstance(recording, tuple) else load_speech(recording)
        segments = []
        for start, stop, piece in chunk_speech(speech, MAX_SECONDS):
            message = user(Audio(piece, RATE_HZ), TRANSCRIBE)
            events = self.backend.generate([message], GenerateOptions(max_new_tokens=96))
            segments.append(Segment(start, stop, collect(events).text))
        return Transcript(" ".join(s.text for s in segments if s.text), tuple(segments))

    def batch(self, recordings: Iterable[str | Path]) -> Iterator[Transcript]:
        """Transcribe many, with progress on a terminal."""
        from tqdm import tqdm

        for recording in tqdm(recordings, desc="recordings", disable=None):
            yield self(recording)
