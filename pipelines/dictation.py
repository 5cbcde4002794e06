"""Speech -> text: a recording of any length, transcribed piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from encoders.errors import IncompatibleModel, InvalidMessage
from multimodal.backends import Backend, Usage, total_usage
from multimodal.heard import Piece, how_surely, write_down
from pipelines.batch import Failed, run_each

if TYPE_CHECKING:
    import numpy as np

    Recording = str | Path | tuple[np.ndarray, int]

MAX_SECONDS = 8.0  # sentences fit, and every tower's window is longer


@dataclass(frozen=True)
class Segment:
    """What was said between two moments, and in which pieces it was heard."""

    start_s: float
    end_s: float
    text: str
    pieces: tuple[Piece, ...] = field(default=(), repr=False)

    @property
    def probability(self) -> float | None:
        """That all of its words were said so; None where the model does not tell."""
        if all(piece.logprob is None for piece in self.pieces):
            return None
        return how_surely(self.pieces, ["".join(piece.text for piece in self.pieces)])[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        times = {"start_s": self.start_s, "end_s": self.end_s}
        return {**times, "text": self.text, "probability": self.probability}


@dataclass(frozen=True)
class Transcript:
    """A transcribed recording, and what each segment cost."""

    text: str
    segments: tuple[Segment, ...]
    spent: tuple[Usage, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        segments = [segment.to_dict() for segment in self.segments]
        return {"text": self.text, "segments": segments, "usage": total_usage(self.spent)}

    def how_surely(self, sentences: Sequence[str]) -> list[float]:
        """How likely each of its sentences was said as it stands; 1 where nobody tells."""
        between = Piece(" ")
        pieces = [piece for segment in self.segments for piece in (*segment.pieces, between)]
        return how_surely(pieces, sentences)


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
        self._require_hearing()
        if not _is_recording(recording):
            if stream:
                raise InvalidMessage("stream one recording at a time; many come as transcripts")
            return run_each(cast("Iterable[Recording]", recording), self.transcribe, "recordings")
        one = cast("Recording", recording)
        return self._hear(one) if stream else self.transcribe(one)

    def transcribe(self, recording: Recording) -> Transcript:
        """The transcript of one recording; raises as a call does."""
        self._require_hearing()
        return [e for e in self._hear(recording) if isinstance(e, Transcript)][-1]

    def _require_hearing(self) -> None:
        if "audio" not in self.backend.capabilities().modalities:
            raise IncompatibleModel(
                f"{self.backend.capabilities().name} cannot hear; choose a model with an audio tower"
            )

    def _hear(self, recording: Recording) -> Iterator[Segment | Transcript]:
        from encoders.audio import RATE_HZ, chunk_speech, load_speech

        speech = load_speech(*recording) if isinstance(recording, tuple) else load_speech(recording)
        segments: list[Segment] = []
        spent: list[Usage] = []
        for start, stop, piece in chunk_speech(speech, MAX_SECONDS):
            finished, pieces = write_down(self.backend, piece, RATE_HZ)
            segments.append(Segment(start, stop, finished.text, pieces))
            spent.append(finished.usage)
            yield segments[-1]
        text = " ".join(s.text for s in segments if s.text)
        yield Transcript(text, tuple(segments), tuple(spent))


class Listening:
    """A dictation while it is spoken: feed it sound, it tells the words so far.

    A phrase is settled once a pause follows it; the newest words may still change. What was
    dictated `before` stays in front.

    Attributes:
        segments: what was heard so far, the newest last.
    """

    def __init__(self, backend: Backend, before: str = "") -> None:
        self._transcribe = DictationPipeline(backend).transcribe
        self._settled = [before.strip()]
        self.segments: tuple[Segment, ...] = ()
        self._num_settled = 0
        self._sound: list[np.ndarray] = []
        self._rate_hz = 0

    def feed(self, samples: np.ndarray, rate_hz: int) -> str:
        """More sound, `[n]` or `[n, channels]` at one rate -> everything heard so far.

        Raises:
            UnreadableAudio: samples that are none.
            IncompatibleModel: the model cannot hear.
        """
        import numpy as np

        from encoders.audio import RATE_HZ, find_phrases, load_speech

        if rate_hz != self._rate_hz:
            self._sound, self._rate_hz = [], rate_hz
        sound = np.concatenate([*self._sound, samples])
        speech = load_speech(sound, rate_hz)
        kept, newest = max(len(speech) - RATE_HZ, 0), ""
        segments = self.segments[: self._num_settled]
        for start, stop in find_phrases(speech):
            heard = self._transcribe((speech[start:stop], RATE_HZ))
            segments += heard.segments
            if stop < len(speech) - RATE_HZ / 2:  # a pause has followed
                self._settled.append(heard.text)
                self._num_settled = len(segments)
                kept = max(kept, stop)
            else:
                kept, newest = start, heard.text
        self.segments = segments
        self._sound = [sound[round(kept * rate_hz / RATE_HZ) :]]
        return " ".join(words for words in (*self._settled, newest) if words)


def _is_recording(value: object) -> bool:
    """A pair of samples and rate is one recording, as are samples alone (refused when read)."""
    import numpy as np

    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[0], np.ndarray)
    return isinstance(value, str | Path | np.ndarray)
