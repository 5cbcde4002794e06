"""What the server keeps for each open tab: its study, its reading, what was asked and decided.

Nothing here knows Gradio. A room that is left stops its work and gives everything back.
"""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.errors import CrossReadError, MissingInput
from pipelines.ui.uploads import KEEP_S, one_input
from pipelines.ui.viewer import shelf

if TYPE_CHECKING:
    from encoders.dicom import Series, Study, Volume
    from pipelines.dictation import Listening, Segment, Transcript
    from pipelines.evidence import Decision, Reading

MAX_ROOMS, MAX_HELD_BYTES = (
    64,
    2**32,
)  # beyond it the tab used longest ago must open its study again
MAX_THUMBNAILS = 40
_THUMBNAIL = 72  # pixels


@dataclass
class Asked:
    """A question about the study and its answer so far."""

    question: str
    answer: str = ""
    num_encoded: int | None = None  # media encoded anew for it; None until it is answered


class Room:
    """One tab's study and what became of it."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self.stopped = threading.Event()
        self.given: list[str] = []  # files to open next
        self._forget()

    def _forget(self) -> None:
        self.found: Study | None = None
        self.series: Series | None = None
        self.volume: Volume | None = None
        self.reading: Reading | None = None
        self.asked: list[Asked] = []
        self.decisions: dict[int, Decision] = {}
        self.words: set[str] = set()  # the page's texts that speak of this study
        self.ear: Listening | None = None
        self.heard: tuple[Segment, ...] = ()  # from recordings, and by ears before
        self._thumbnails: dict[str, str] = {}
        self._tokens: list[str] = []

    def open(self, files: Sequence[Path]) -> None:
        """Scan what was given, in place of what was open.

        Raises:
            InputError: nothing given, or nothing that is DICOM.
        """
        from encoders.dicom import scan

        if not files:
            raise MissingInput("Give a study first: a folder, a zip, or the files of a series.")
        heard, ear = self.heard, self.ear
        self.close()
        self.heard, self.ear = heard, ear  # what stands on the page stays
        self.stopped.clear()
        self._held = ExitStack()
        self.found = scan(self._held.enter_context(one_input(files)))
        self.series = self.found.default()

    def listen(self, ear: Listening) -> None:
        """Hear by this ear from now on; what the one before heard is kept."""
        self.heard += self.ear.segments if self.ear else ()
        self.ear = ear

    def listen_anew(self) -> None:
        """Forget what was heard: the page's dictation is emptied or replaced."""
        self.heard, self.ear = (), None

    def transcript(self, dictated: str) -> Transcript | None:
        """What the page holds as dictated, with how surely it was heard where nobody has changed it."""
        from pipelines.dictation import Transcript

        if not dictated.strip():
            return None
        return Transcript(dictated.strip(), self.heard + (self.ear.segments if self.ear else ()))

    def choose(self, key: str) -> None:
        """Take another series of the study; what is done with the one before stops."""
        series = [s for s in self.found.series if s.key == key] if self.found else []
        if not series:
            raise MissingInput("that series is no longer open; open the study again")
        self.stopped.set()
        self.series = series[0]
        self.volume = self.reading = None
        self.asked, self.decisions = [], {}

    def let_through(self, allow_burned_in: bool) -> Series:
        """The chosen series, if it may be shown.

        Raises:
            BurnedInText: its pictures may name the patient, and the person did not ask for them.
        """
        from encoders.dicom import let_through

        assert self.series is not None
        self.series = let_through(self.series, allow_burned_in=allow_burned_in)
        return self.series

    def preview(self) -> dict[str, Any]:
        """The middle slice of the chosen series, on the shelf."""
        from encoders.dicom import load_preview

        assert self.series is not None
        return {**self._shelve(load_preview(self.series)), "preview": True}

    def load(self) -> dict[str, Any]:
        """The whole chosen series, on the shelf; what of the input is not used becomes its problem."""
        from encoders.dicom import load_volume

        assert self.found is not None
        assert self.series is not None
        volume = load_volume(self.series)
        self.volume = replace(volume, problems=(*self.found.problems, *volume.problems))
        return self._shelve(self.volume)

    def _shelve(self, volume: Volume) -> dict[str, Any]:
        told = shelf().put(volume)
        self._tokens.append(told["token"])
        for old in self._tokens[:-2]:  # the one before may still be on the screen
            shelf().release(old)
        self._tokens = self._tokens[-2:]
        return told

    def draw_thumbnails(self) -> None:
        """A small picture of each series that may be shown."""
        for series in (self.found.series if self.found else ())[:MAX_THUMBNAILS]:
            if series.key not in self._thumbnails:
                self._thumbnails[series.key] = thumbnail(series)

    def describe(self) -> dict[str, Any]:
        """The study in JSON types, without identifiers: series, reasons, what is not used."""
        from encoders.dicom import describe as describe_study
        from pipelines.terminal import grouped

        if self.found is None or self.series is None:
            return {}
        told = describe_study(self.found)["series"]
        listed = [
            {**one, "risky": is_risky(s), "thumbnail": self._thumbnails.get(s.key, "")}
            for one, s in zip(told, self.found.series, strict=True)
        ]
        problems = [(p.code, p.message, about) for p, about in grouped(self.found.problems)]
        flaws = (self.volume or self.series).problems
        if self.volume:
            flaws = flaws[len(self.found.problems) :]
        return {
            "series": listed, "chosen": self.series.key, "why": self.found.default_wishes,
            "problems": problems, "flaws": [(p.code, p.message, a) for p, a in grouped(flaws)],
            "documents": sorted({d.kind for d in self.found.documents}),
            "facts": (self.volume or self.series).info.to_dict(),
        }  # fmt: skip

    def judged(self) -> Reading:
        """The reading with the decisions made on it.

        Raises:
            MissingInput: there is none yet.
        """
        if self.reading is None:
            raise MissingInput("There is no reading yet: open a study and press Review first.")
        return self.reading.decide(self.decisions)

    def save(self) -> list[Path]:
        """The reading as JSON, one page, PDF, and DICOM objects in a zip, until the room is left."""
        from encoders.dicom import write_results
        from pipelines.export import as_result, render_pdf

        reading = self.judged()
        assert self.series is not None
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="crossread-")))
        files = [folder / name for name in ("reading.json", "reading.html", "reading.pdf")]
        files[0].write_text(reading.to_json(), encoding="utf-8")
        files[1].write_text(reading.to_html(), encoding="utf-8")
        files[2].write_bytes(render_pdf(reading))
        with tempfile.TemporaryDirectory(prefix="crossread-") as place:
            write_results(as_result(reading), self.series, Path(place))
            files.append(Path(shutil.make_archive(str(folder / "reading_dicom"), "zip", place)))
        return files

    @property
    def num_bytes(self) -> int:
        """What its voxels take."""
        return self.volume.voxels.nbytes if self.volume else 0

    def close(self) -> None:
        """Stop the work and give everything back."""
        self.stopped.set()
        for token in self._tokens:
            shelf().release(token)
        self._forget()
        self._held.close()


class Rooms:
    """The rooms of all tabs, by Gradio's name for a session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rooms: OrderedDict[str, tuple[Room, float]] = OrderedDict()

    def of(self, session: str | None) -> Room:
        """A session's room, an empty one if it has none; rooms long unused are closed.

        Who has no session gets a room for this one moment.
        """
        if session is None:
            return Room()
        with self._lock:
            room = self._rooms.pop(session, (Room(), 0.0))[0]
            self._rooms[session] = (room, time.monotonic())
            closing = list(self._too_old())
        for old in closing:
            old.close()
        return room

    def leave(self, session: str | None) -> None:
        """Its tab is gone."""
        with self._lock:
            left = self._rooms.pop(session or "", None)
        if left:
            left[0].close()

    def _too_old(self) -> Iterator[Room]:
        now = time.monotonic()
        while len(self._rooms) > 1:
            session, (room, used) = next(iter(self._rooms.items()))
            held = sum(one.num_bytes for one, _ in self._rooms.values())
            if now - used <= KEEP_S and len(self._rooms) <= MAX_ROOMS and held <= MAX_HELD_BYTES:
                return
            del self._rooms[session]
            yield room


def is_risky(series: Series) -> bool:
    """Whether its pictures may show patient data as text."""
    return any(p.code == "BURNED_IN_RISK" for p in series.problems)


def thumbnail(series: Series) -> str:
    """The middle slice as a data address; "" where it may not or cannot be drawn."""
    from PIL import Image

    from encoders.dicom import load_pictures, load_preview
    from encoders.dicom.display import hanging, unit_of, upright, voi_of

    if is_risky(series):
        return ""
    try:
        if series.files[0].stored.samples > 1:
            (picture,) = load_pictures(series, 1)
            image = Image.fromarray(picture.squared())
        else:
            volume = load_preview(series)
            voi = hanging(volume.info)[0] if volume.calibrated else voi_of(volume)
            grey = np.rint(255 * unit_of(volume, voi, 0)).astype(np.uint8)
            image = Image.fromarray(np.ascontiguousarray(upright(volume.grid).apply(grey)))
    except CrossReadError:
        return ""  # why is told when the series is opened
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def describe_reading(reading: Reading) -> dict[str, Any]:
    """A reading as the page draws it: its values, its report in passages, warnings by kind."""
    from pipelines.html import mark_report
    from pipelines.terminal import grouped

    points = list(reading.discrepancies)
    passages = [
        {"text": p.text, "point": None if p.point is None else points.index(p.point)}
        for p in mark_report(reading.report or "", points)
    ]
    alarms = [w.message for w in reading.warnings if w.code == "OUT_OF_RANGE"]
    others = grouped([w for w in reading.warnings if w.code != "OUT_OF_RANGE"])
    told = reading.to_dict()
    return {
        **{name: told[name] for name in ("agreement", "model", "usage", "timings_s")},
        "findings": told["findings"], "points": told["discrepancies"], "passages": passages,
        "alarms": alarms, "warnings": [(p.code, p.message, about) for p, about in others],
    }  # fmt: skip


def describe_asked(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Questions and answers in JSON types."""
    return [asdict(one) for one in asked]
