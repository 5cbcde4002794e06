"""Studies cross to another process once; later calls name them by their digest.

A CT of 512 slices is 256 MiB and a reading asks some twenty questions about it. Both ends keep the
same few studies because the sender says what to keep and what to drop, in the order of the pipe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from multimodal.messages import Message, Part, Study

NUM_KEPT = 4


@dataclass(frozen=True)
class Named:
    """A study that the other end has."""

    digest: str


@dataclass(frozen=True)
class Keep:
    """A study to be kept."""

    digest: str
    study: Any


@dataclass(frozen=True)
class Drop:
    """A study that will not be named again."""

    digest: str


class Sender:
    """The end that has the studies."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, None] = OrderedDict()

    def packed(self, call: tuple[Any, ...]) -> Iterator[Any]:
        """What to send for a call: studies that are new, then the call that names them."""
        studies = {s.digest: s for value in call for s in _studies(value)}
        for digest, study in studies.items():
            if digest not in self._kept:
                yield Keep(digest, study)
            self._kept[digest] = None
            self._kept.move_to_end(digest)
        yield tuple(
            _swapped(value, lambda s: Named(s.digest) if _has_digest(s) else s) for value in call
        )
        while len(self._kept) > max(NUM_KEPT, len(studies)):
            yield Drop(self._kept.popitem(last=False)[0])


class Receiver:
    """The end that keeps studies for a while."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def unpacked(self, sent: Any) -> tuple[Any, ...] | None:
        """The call as it was meant; None for what is no call."""
        if isinstance(sent, Keep):
            self._kept[sent.digest] = sent.study
        elif isinstance(sent, Drop):
            self._kept.pop(sent.digest, None)
        else:
            return tuple(_swapped(value, self._study) for value in sent)
        return None

    def _study(self, study: Any) -> Any:
        return self._kept[study.digest] if isinstance(study, Named) else study


def _has_digest(study: Any) -> bool:
    return bool(getattr(study, "digest", ""))


def _studies(value: Any) -> Iterator[Any]:
    """Studies of an argument that are worth keeping."""
    parts = [part for message in _messages(value) for part in message.parts]
    for part in (value, *parts):
        if isinstance(part, Study) and _has_digest(part.study):
            yield part.study


def _messages(value: Any) -> Sequence[Message]:
    is_chat = isinstance(value, list | tuple) and all(isinstance(m, Message) for m in value)
    return value if is_chat else ()


def _swapped(value: Any, swap: Any) -> Any:
    """An argument with every study swapped for what stands for it."""

    def swapped(part: Part) -> Part:
        return replace(part, study=swap(part.study)) if isinstance(part, Study) else part

    if isinstance(value, Study):
        return swapped(value)
    if not _messages(value):
        return value
    return [replace(message, parts=tuple(map(swapped, message.parts))) for message in value]
