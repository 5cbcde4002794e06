"""Token by token to text: sampling, stop strings, and pieces that never have to be taken back.

Knows no model: logits and token ids in, tokens and text out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multimodal.backends import GenerateOptions

_UNFINISHED = "�"  # what a decoder makes of the first bytes of a longer character


def pick(logits: torch.Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    """One token of `[vocabulary]`: greedy at temperature 0, else nucleus sampling.

    Holtzman et al. 2020, arXiv 1904.09751: the fewest likeliest tokens that hold `top_p`.
    """
    if options.temperature == 0:
        return int(logits.argmax())
    probability = (logits.cpu() / options.temperature).softmax(-1)
    ordered, index = probability.sort(descending=True)
    keep = ordered.cumsum(0) - ordered < options.top_p
    return int(index[torch.multinomial(ordered * keep, 1, generator=generator)])


class TextStream:
    """Grows an answer's text; what might yet become a stop string or a character is held back.

    Attributes:
        text: everything handed out so far.
        stopped: whether a stop string was met; it and what follows are left out.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after this token and was not handed out before."""
        self._tokens.append(token)
        whole = self._decoded()
        cut = min((whole.find(stop) for stop in self._stops if stop in whole), default=None)
        if cut is not None:
            self.stopped = True
            return self._up_to(whole[:cut])
        return self._up_to(whole[: len(whole) - self._undecided(whole)])

    def close(self) -> str:
        """What was held back; nothing after a stop string."""
        return "" if self.stopped else self._up_to(self._decoded())

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)

    def _undecided(self, whole: str) -> int:
        """Length of the end that is an unfinished character or the beginning of a stop string."""
        unfinished = len(whole) - len(whole.rstrip(_UNFINISHED))
        begun = (
            size
            for stop in self._stops
            for size in range(1, len(stop))
            if whole.endswith(stop[:size])
        )
        return max(unfinished, max(begun, default=0))

    def _up_to(self, certain: str) -> str:
        piece = certain[len(self.text) :]
        self.text += piece
        return piece
