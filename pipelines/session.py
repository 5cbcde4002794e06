"""A study under questions: asks a model about one volume and keeps the accounts of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar, cast

from encoders.features import Problem
from multimodal import prompts
from multimodal.backends import Backend, Finished, GenerateOptions, Token, Usage
from multimodal.measuring import Sizes, median_mm
from multimodal.messages import Message, Study, Text, user
from multimodal.review import Key, MeasuredMm, Presence, measure_of, sizes_of

if TYPE_CHECKING:
    from encoders.dicom import Volume
    from pipelines.evidence import Reading

Found = TypeVar("Found")
ABSTAINS = "The study is outside what this model was validated on; it gives no answer."


@dataclass(frozen=True)
class Step:
    """A piece of work begins or goes on.

    Attributes:
        stage: of the reading.
        done: pieces of the stage that are done.
        total: pieces of the stage; 0 where nobody knows.
        words: what the model has answered so far, where it answers in words of its own.
    """

    stage: str
    done: int = 0
    total: int = 0
    words: str = ""


def kept(events: Iterator[Step | Found], found: list[Found]) -> Iterator[Step | Found]:
    """Everything passes; what is no step is kept."""
    for event in events:
        if not isinstance(event, Step):
            found.append(event)
        yield event


@dataclass
class Session:
    """One study being read: what was asked, what it cost, what is to be warned of.

    `presence` is the probability of every finding that was asked for, `seen` that of each by what is seen
    of it alone, `measured` the size in mm that it would have.
    """

    backend: Backend
    volume: Volume
    warnings: list[Problem] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    spent: list[Usage] = field(default_factory=list)
    presence: dict[Key, float] = field(default_factory=dict)
    seen: Presence = field(default_factory=dict)
    measured: MeasuredMm = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[name] = time.perf_counter() - started

    def ask(self, prompt: str, *, choices: tuple[str, ...] = (), tokens: int = 96,
            form: str = "") -> Finished:  # fmt: skip
        """One question about the study, as in `speak`, its words only once they are whole."""
        asked = self.speak(Step(""), prompt, choices=choices, tokens=tokens, form=form)
        while True:
            try:
                next(asked)
            except StopIteration as end:
                return cast("Finished", end.value)

    def size(self, name: str, side: prompts.Side | None) -> float | None:
        """The size in mm of a finding: the median of those it may have, or what the model writes."""
        if self.backend.capabilities().review is not None:
            return median_mm(self.sizes(name, side))
        answer = self.ask(prompts.ask_size(name, side), tokens=8, form=prompts.SIZE_FORM)
        return prompts.parse_size_mm(answer.text)

    def sizes(self, name: str, side: prompts.Side | None) -> Sizes:
        """The sizes that a finding may have; none from a model that does not say how sure it is."""
        answer = self.ask(prompts.ask_size(name, side), choices=prompts.SIZES)
        measured_mm = measure_of(name, side, self.measured)
        return sizes_of(name, answer.choices, measured_mm, self.backend.capabilities().review)

    def speak(
        self,
        step: Step,
        prompt: str,
        *,
        choices: tuple[str, ...] = (),
        ground: bool = False,
        tokens: int = 96,
        form: str = "",
    ) -> Generator[Step, None, Finished]:
        """One question about the study, in a conversation of its own; `step` with the words so far.

        A model that does not know the forms of `multimodal.prompts` is held to `form` where that is
        possible for certain: its answer can then be parsed. A model trained on them answers freely.
        """
        able = self.backend.capabilities()
        held = bool(form) and able.json_schema and not able.knows_forms
        schema = prompts.schema_of(form) if held else None
        options = GenerateOptions(
            max_new_tokens=tokens, choices=choices, ground=ground, json_schema=schema
        )
        finished, words = None, ""
        for event in self.backend.generate(self.told(prompt), options):
            if isinstance(event, Finished):
                finished = event
            else:
                words += event.text
                yield replace(step, words=words)
        assert finished is not None, "a backend must end with Finished"
        self.spent.append(finished.usage)
        return replace(finished, text=prompts.unquoted(finished.text)) if held else finished

    def tell(self, question: str) -> Generator[Token, None, str]:
        """The answer's tokens as they are made; returns its text."""
        text = ""
        for event in self.backend.generate(self.told(question)):
            if isinstance(event, Finished):
                self.spent.append(event.usage)
                text = event.text
            else:
                yield event
        return text

    def told(self, words: str) -> list[Message]:
        """The question as messages, and how to answer for a model that was not trained on our questions."""
        asked = [user(Study(self.volume), words)]
        if self.backend.capabilities().knows_forms:
            return asked
        return [Message("system", (Text(prompts.FORMS),)), *asked]


def follow_up(
    backend: Backend, volume: Volume, reading: Reading, question: str
) -> Iterator[Token | Finished]:
    """Ask on about a study that was read; what was encoded for the reading is not encoded again.

    Of a study out of range it tells that it gives no answer.
    """
    if reading.out_of_range:
        yield Token(ABSTAINS)
        yield Finished(ABSTAINS, "stop", Usage(0, 0, 0))
        return
    yield from backend.generate(Session(backend, volume).told(question))
