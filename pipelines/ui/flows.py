"""What happens in a reading room, as values for the page: open, review, ask on, listen.

Generators that give a page something to show at every step; no Gradio and no words of the page.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from encoders.errors import BurnedInText, MissingInput, UnreadableAudio
from multimodal.backends import Backend, Finished, Token
from multimodal.messages import Audio, Study
from pipelines import pipeline
from pipelines.dictation import Listening, Transcript
from pipelines.evidence import Discrepancy, Finding, Reading
from pipelines.session import Step, follow_up
from pipelines.ui.guards import require_small
from pipelines.ui.rooms import Asked, Room, describe_asked, describe_reading

MAX_SOUND_S = 120  # that a microphone may have waiting
RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".mp4")


@dataclass(frozen=True)
class Opened:
    """The study browser's value and the viewer's; None for the viewer where it keeps its own."""

    study: dict[str, Any]
    volume: dict[str, Any] | None = None


def open_study(room: Room, files: Sequence[Path]) -> Iterator[Opened]:
    """List the series, show one slice of the default one, then all of it.

    Raises:
        InputError: nothing of it can be read.
    """
    room.open(files)
    yield Opened(room.describe())
    yield from show_series(room, allow_burned_in=False)


def choose_series(room: Room, key: str, allow_burned_in: bool) -> Iterator[Opened]:
    """Show another series; pictures that may name a patient only where the person asks for them.

    Raises:
        InputError: it is gone, or cannot be decoded.
    """
    room.choose(key)
    yield from show_series(room, allow_burned_in=allow_burned_in)


def show_series(room: Room, *, allow_burned_in: bool) -> Iterator[Opened]:
    """One slice at once, then every series' thumbnail, then all slices.

    Raises:
        InputError: too many pixels for this page, or none that can be decoded.
    """
    try:
        series = room.let_through(allow_burned_in)
    except BurnedInText:
        room.draw_thumbnails()
        yield Opened(room.describe(), {"note": "risky"})  # a press on the series shows it
        return
    require_small([Study(series)])
    yield Opened(room.describe(), room.preview())
    room.draw_thumbnails()
    yield Opened(room.describe())
    volume = room.load()
    yield Opened(room.describe(), volume)


def review(
    room: Room, backend: Backend, report: str, dictated: str = ""
) -> Iterator[dict[str, Any]]:
    """Read the open series with its report, typed and dictated; stops between two questions once the
    room says so.

    Raises:
        MissingInput: no study is open.
        CrossReadError: what the pipeline raises.
    """
    if room.volume is None or room.series is None:
        raise MissingInput("Open a study first, and wait until its slices are there.")
    room.stopped.clear()
    room.reading, room.asked, room.decisions = None, [], {}
    findings: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    step = Step("look")
    read = pipeline("ct-report", backend)
    heard = room.transcript(dictated)
    with closing(read(room.volume, report.strip() or None, heard, stream=True)) as events:  # type: ignore[type-var]
        for event in events:
            if room.stopped.is_set():
                yield {"state": "stopped", "findings": findings, "points": points}
                return
            if isinstance(event, Step):
                step = event
            elif isinstance(event, Finding):
                findings.append(asdict(event))
            elif isinstance(event, Discrepancy):
                points.append(asdict(event))
            elif isinstance(event, Reading):
                about = {
                    **event.study,
                    "series_key": room.series.key,
                }  # of a volume nobody knows it
                room.reading = replace(event, study=about)
            yield {"state": "running", "step": asdict(step), "findings": findings, "points": points}
    yield done(room)


def waiting() -> dict[str, Any]:
    """What is shown until it is this review's turn."""
    return {"state": "running", "step": asdict(Step("waiting")), "findings": [], "points": []}


def done(room: Room) -> dict[str, Any]:
    """A finished reading with what was asked and decided since."""
    assert room.reading is not None
    return {
        "state": "done", "reading": describe_reading(room.reading),
        "asked": describe_asked(room.asked), "decisions": {str(n): d for n, d in room.decisions.items()},  # JSON has no other keys
    }  # fmt: skip


def ask(room: Room, backend: Backend, question: str) -> Iterator[dict[str, Any]]:
    """A further question about the study that was read; its answer as it grows.

    Raises:
        MissingInput: there is no reading yet, or no question.
    """
    reading = room.judged()
    if not question.strip() or room.volume is None:
        raise MissingInput("Type a question first.")
    room.stopped.clear()
    asked = Asked(question.strip())
    room.asked.append(asked)
    yield done(room)
    for event in follow_up(backend, room.volume, reading, asked.question):
        if room.stopped.is_set():
            return
        if isinstance(event, Token):
            asked.answer += event.text
        elif isinstance(event, Finished):
            asked.answer, asked.num_encoded = event.text, event.usage.encoded_media
        yield done(room)


def hear(room: Room, backend: Backend, recording: Path) -> Iterator[str]:
    """The words of a recording, as far as they are heard; the room keeps how surely.

    Raises:
        CrossReadError: what the pipeline raises.
    """
    require_small([Audio(recording)])
    heard: list[str] = []
    for event in pipeline("dictation", backend)(recording, stream=True):
        if not isinstance(event, Transcript):
            if not heard:  # it can be heard: the page's words are replaced
                room.listen_anew()
            room.heard += (event,)
            heard.append(event.text)
            yield " ".join(words for words in heard if words)


def listen(ear: Listening, sound: str, rate_hz: int) -> str:
    """All words so far, with a second or so more of 16-bit sound in base64.

    Raises:
        UnreadableAudio: what was sent is no sound.
    """
    import numpy as np

    try:
        samples = np.frombuffer(base64.b64decode(sound, validate=True), "<i2")
    except ValueError as error:
        raise UnreadableAudio("the microphone sent something that is no sound") from error
    if not 8_000 <= rate_hz <= 192_000 or len(samples) > MAX_SOUND_S * rate_hz:
        raise UnreadableAudio("the microphone sent too much at once, or at an odd rate")
    return ear.feed(samples, int(rate_hz))
