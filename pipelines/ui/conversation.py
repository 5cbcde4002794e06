"""A conversation as a value: what was asked, what was shown of it, what was answered at what cost.

The chat box's content comes in as a `Turn`; turns become the model's messages, and the messages
that Gradio's chatbot shows. Knows no component and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multimodal.backends import Finished, Token, Usage
from multimodal.messages import Message, Part, Study, Text, value_of
from pipelines.ui.guards import require_small
from pipelines.ui.strip import Strip, opened, strip_of
from pipelines.ui.uploads import parts_of

Shown = dict[str, Any]  # a message of gr.Chatbot


@dataclass(frozen=True)
class Cost:
    """What an answer took: seconds to its first token and to its end, and the model's accounts."""

    first_token_s: float
    usage: Usage

    @property
    def tokens_per_s(self) -> float:
        """Of the decoding alone; 0 where nothing was decoded."""
        seconds = self.usage.timings_s.get("decode", 0.0)
        return self.usage.new_tokens / seconds if seconds else 0.0


@dataclass(frozen=True)
class Turn:
    """One exchange. `strips` holds a picture of each study among the parts, in their order."""

    parts: tuple[Part, ...] = ()
    words: str = ""
    strips: tuple[Strip, ...] = ()
    answer: str = ""
    cost: Cost | None = None

    def unanswered(self) -> Turn:
        """The question alone."""
        return replace(self, answer="", cost=None)


def turn_of(words: str, files: Sequence[Path], folder: Path) -> Turn:
    """Words and files; DICOM files are gathered, and a study's strip is written, below a folder.

    Raises:
        InputError: a study that cannot be shown.
    """
    parts = parts_of(files, folder / "study")
    require_small(parts)
    studies = [part.study for part in parts if isinstance(part, Study)]
    strips = tuple(strip_of(study, folder) for study in studies if isinstance(study, Path))
    return Turn(parts, words.strip(), strips)


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    """The conversation as a model takes it, up to the last question."""
    messages = []
    for turn in turns:
        words = (Text(turn.words),) if turn.words or not turn.parts else ()
        parts = [_opened(part) for part in turn.parts]
        messages.append(Message("user", (*parts, *words)))
        if turn.answer and turn is not turns[-1]:
            messages.append(Message("assistant", (Text(turn.answer),)))
    return messages


def _opened(part: Part) -> Part:
    if isinstance(part, Study) and isinstance(part.study, Path):
        return replace(part, study=opened(part.study))
    return part


def answered(turn: Turn, events: Iterator[Token | Finished], clock: Any) -> Iterator[Turn]:
    """The turn with more and more of its answer, at the end with its cost.

    `clock` tells the seconds since the question was asked.
    """
    first: float | None = None
    for event in events:
        first = clock() if first is None else first
        if isinstance(event, Finished):
            yield replace(turn, answer=event.text, cost=Cost(first, event.usage))
        else:
            turn = replace(turn, answer=turn.answer + event.text)
            yield turn


def shown(turns: Sequence[Turn], told: Mapping[str, str]) -> list[Shown]:
    """The conversation as the chatbot takes it; `told` are the words of a language."""
    return [message for turn in turns for message in _shown(turn, told)]


def turn_at(turns: Sequence[Turn], index: int) -> int:
    """Which turn a message of `shown` belongs to."""
    seen = 0
    for number, turn in enumerate(turns):
        seen += len(_shown(turn, None))
        if index < seen:
            return number
    return len(turns) - 1


def _shown(turn: Turn, told: Mapping[str, str] | None) -> list[Shown]:
    strips = iter(turn.strips)
    out: list[Shown] = []
    for part in turn.parts:
        if isinstance(part, Study):
            strip = next(strips)
            out.append({"role": "user", "content": {"path": str(strip.path)}})
            out.append({"role": "user", "content": strip.caption})
        else:  # a picture, film or recording as the browser shows its file
            out.append({"role": "user", "content": {"path": str(value_of(part)[1])}})
    if turn.words:
        out.append({"role": "user", "content": plain(turn.words)})
    if turn.answer:
        out.append({"role": "assistant", "content": plain(turn.answer)})
    if turn.cost:
        out.append(_account(turn.cost, told) if told else {})
    return out


def plain(text: str) -> str:
    """Words for a place that renders Markdown: none of them becomes HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _account(cost: Cost, told: Mapping[str, str]) -> Shown:
    usage = cost.usage
    title = told["cost"].format(rate=cost.tokens_per_s, first=cost.first_token_s)
    lines = [f"{told.get(f'stage_{name}', name)}: {s:.2f} s" for name, s in usage.timings_s.items()]
    counts = told["cost_counts"].format(
        prompt=usage.prompt_tokens, new=usage.new_tokens, media=usage.encoded_media
    )
    lines.append(counts)
    return {
        "role": "assistant",
        "content": "  \n".join(lines),
        "metadata": {"title": title, "status": "done"},
    }
