"""A recording written down by a model, and how surely: text in pieces with their log-probabilities.

A digit that is misheard is as well spelt as one that is not; the model that wrote it down knows better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from encoders.errors import Refused
from multimodal.backends import Backend, Finished, GenerateOptions, Token
from multimodal.messages import Audio, user
from multimodal.prompts import TRANSCRIBE

_ENDS = frozenset(".!?;:。！？；：")


@dataclass(frozen=True)
class Piece:
    """A piece of what was heard, and the logarithm of how likely it was said, None where nobody tells."""

    text: str
    logprob: float | None = None


def write_down(
    backend: Backend, samples: np.ndarray, rate_hz: int
) -> tuple[Finished, tuple[Piece, ...]]:
    """A model's transcript of mono samples `[n]` that fit its window.

    Raises:
        CrossReadError: what the backend raises.
    """
    options = GenerateOptions(max_new_tokens=96, logprobs=0)
    messages = [user(Audio(samples, rate_hz), TRANSCRIBE)]
    try:
        return _collect(backend.generate(messages, options))
    except Refused:  # perhaps to tell how likely its words are
        return _collect(backend.generate(messages, replace(options, logprobs=None)))


def _collect(events: Iterator[Token | Finished]) -> tuple[Finished, tuple[Piece, ...]]:
    pieces: list[Piece] = []
    held: list[float] = []  # of tokens whose text comes with a later one
    finished = None
    for event in events:
        if isinstance(event, Finished):
            finished = event
            continue
        held += [token.logprob for token in event.logprobs]
        if event.text:
            pieces.append(Piece(event.text, sum(held) if held else None))
            held = []
    assert finished is not None, "a backend must end with Finished"
    return finished, tuple(pieces)


def how_surely(pieces: Sequence[Piece], sentences: Sequence[str]) -> list[float]:
    """How likely each sentence was said as it stands; 1 of what was not heard so, but written.

    Of what was heard twice the later counts. Spaces do not.
    """
    letters, begins, owners = _letters(pieces)
    found, used = [1.0] * len(sentences), [False] * len(letters)
    for number in reversed(range(len(sentences))):
        wanted = "".join(sentences[number].split())
        at = _last(letters, wanted, begins, used)
        if at is not None:
            place = slice(at, at + len(wanted))
            used[place] = [True] * len(wanted)
            told = [pieces[owner].logprob or 0.0 for owner in sorted(set(owners[place]))]
            found[number] = math.exp(min(sum(told), 0.0))
    return found


def _letters(pieces: Sequence[Piece]) -> tuple[str, list[bool], list[int]]:
    """All but spaces; of each letter whether a sentence may begin with it, and whose it is."""
    letters, begins, owners, before = [], [], [], " "
    for owner, piece in enumerate(pieces):
        for letter in piece.text:
            if not letter.isspace():
                letters.append(letter)
                begins.append(before.isspace() or before in _ENDS)
                owners.append(owner)
            before = letter
    return "".join(letters), begins, owners


def _last(letters: str, wanted: str, begins: Sequence[bool], used: Sequence[bool]) -> int | None:
    """Where it stands last as whole words that no other sentence has taken."""
    at = letters.rfind(wanted) if wanted else -1
    while at >= 0 and (not begins[at] or any(used[at : at + len(wanted)])):
        at = letters.rfind(wanted, 0, at + len(wanted) - 1)
    return at if at >= 0 else None
