"""A recording written down by a model, and how surely: text in pieces with their log-probabilities.

A digit that is misheard is as well spelt as one that is not; the model that wrote it down knows better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multimodal.backends import Backend, Finished, GenerateOptions, Token
from multimodal.messages import Audio, user
from multimodal.prompts import TRANSCRIBE

MAX_TOKENS = 96


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
    options = GenerateOptions(max_new_tokens=MAX_TOKENS, logprobs=0)
    pieces: list[Piece] = []
    held: list[float] = []  # of tokens whose text comes with a later one
    for event in backend.generate([user(Audio(samples, rate_hz), TRANSCRIBE)], options):
        if isinstance(event, Finished):
            finished = event
        elif isinstance(event, Token):
            held += [token.logprob for token in event.logprobs]
            if event.text:
                pieces.append(Piece(event.text, sum(held) if held else None))
                held = []
    return finished, tuple(pieces)


def surely(pieces: Sequence[Piece], sentences: Sequence[str]) -> list[float]:
    """How likely each sentence of a transcript was said as it stands; 1 of what is not in it.

    Args:
        pieces: of the transcript, in order.
        sentences: in the same order.
    """
    text, start, found = "".join(piece.text for piece in pieces), 0, []
    for sentence in sentences:
        at = text.find(sentence, start)
        if at < 0:
            found.append(1.0)
            continue
        start, place, total = at + len(sentence), 0, 0.0
        for piece in pieces:
            if place < start and place + len(piece.text) > at:
                total += piece.logprob or 0.0
            place += len(piece.text)
        found.append(math.exp(min(total, 0.0)))
    return found
