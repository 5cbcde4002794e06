"""Speech -> text: a recording of any length, transcribed piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from encoders.errors import IncompatibleModel
from multimodal.backends import Backend, GenerateOptions, collect
from multimodal.messages import Audio, user
from multimodal.prompts import TRANSCRIBE
from pipelines.batch import Failed, run_each

if TYPE_CHECKING:
    import numpy as np

    Recording = str | Path | tuple[np.ndarray, int]

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

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is an iterable of str
        self, recording: Recording, *, stream: Literal[False] = False
    ) -> Transcript: ...
    @overload
    def __call__(
        self, recording: Recording, *, stream: Literal[True]
    ) -> Iterator[Segment | Transcript]: ...
    @overload
    def __call__(self, recording: Iterable[Recording]) -> Iterator[Transcript | Failed]: ...

    def __call__(
        self, recording: Recording | Iterable[Recording], *, stream: bool = False
    ) -> Transcript | Iterator[Segment | Transcript] | Iterator[Transcript | Failed]:
        """Transcribe a file or (samples, rate in Hz), or every one of an iterable.

        With `stream` the segments come as they are heard, the `Transcript` last.

        Raises:
            UnreadableAudio, MissingInput: the recording cannot be used.
            IncompatibleModel: the model cannot hear.
        """
        if "audio" not in self.backend.capabilities().modalities:
            raise IncompatibleModel(
                f"{self.backend.capabilities().name} cannot hear; choose a model with an audio tower"
            )
        if not isinstance(recording, str | Path | tuple):
            return run_each(recording, self._one, "recordings")
        one = cast("Recording", recording)
        return self._hear(one) if stream else self._one(one)

    def _one(self, recording: Recording) -> Transcript:
        return [e for e in self._hear(recording) if isinstance(e, Transcript)][-1]

    def _hear(self, recording: Recording) -> Iterator[Segment | Transcript]:
        from encoders.audio import RATE_HZ, chunk_speech, load_speech

        speech = load_speech(*recording) if isinstance(recording, tuple) else load_speech(recording)
        segments = []
        for start, stop, piece in chunk_speech(speech, MAX_SECONDS):
            message = user(Audio(piece, RATE_HZ), TRANSCRIBE)
            events = self.backend.generate([message], GenerateOptions(max_new_tokens=96))
            segments.append(Segment(start, stop, collect(events).text))
            yield segments[-1]
        yield Transcript(" ".join(s.text for s in segments if s.text), tuple(segments))
