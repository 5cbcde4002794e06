"""Token by token to text: stop strings, and pieces that never have to be taken back.

Knows no model: token ids in, text and events out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from multimodal.backends import Finished, GenerateOptions, Logprob, Token
from multimodal.engine.sequence import Ended, Outcome, Picked, Scored

_UNFINISHED = "�"  # what a decoder makes of the first bytes of a longer character
_WINDOW, _KEPT = 48, 12  # tokens decoded at once at most, and kept of them as context


class TextStream:
    """Grows an answer's text; what might yet become a stop string or a character is held back.

    Attributes:
        text: everything handed out so far.
        stopped: whether a stop string was met; it and what follows are left out.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []  # those that are still decoded, the oldest for context only
        self._before, self._context = "", 0  # text of those left out; letters of the context
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
        """The whole text. Of a long answer only the end is decoded again at each token."""
        told = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        whole = self._before + told[self._context :]
        if len(self._tokens) >= _WINDOW and not told.endswith(_UNFINISHED):
            self._tokens = self._tokens[-_KEPT:]
            context = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
            self._before, self._context = whole, len(context)
        return whole

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


@dataclass
class Answer:
    """Turns the engine's outcomes of one request into its events.

    Attributes:
        put: takes the events.
        finished: the last event but for what only the end can tell.
        calibration: (temperature, offset) of the choices, see `MultimodalConfig`; it turns scores
            into probabilities, and the answer stays the choice of the highest score.
    """

    put: Callable[[Token | Finished | Exception], None]
    tokenizer: Any
    options: GenerateOptions
    finished: Finished
    calibration: tuple[float, float] = (1.0, 0.0)
    asked_s: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._stream = TextStream(self.tokenizer, self.options.stop)
        self._timings_s = dict(self.finished.usage.timings_s)
        self._chances: dict[str, float] = {}
        self._chosen = ""
        self._num_new, self._first_s = 0, 0.0

    def tell(self, outcome: Outcome) -> bool:
        """Take an outcome; false ends the answer (a stop string was met)."""
        if isinstance(outcome, Exception):
            self.put(outcome)
        elif isinstance(outcome, Picked):
            self._first_s = self._first_s or time.perf_counter()
            self._num_new += 1
            piece = self._stream.push(outcome.token)
            logprobs = () if outcome.logprob is None else (self._logprob(outcome),)
            if piece or logprobs:
                self.put(Token(piece, logprobs))
            return not self._stream.stopped
        elif isinstance(outcome, Scored):
            self._first_s = time.perf_counter()
            scores = torch.tensor(outcome.scores)
            self._chosen = self.options.choices[int(scores.argmax())]
            temperature, offset = self.calibration
            scores = scores / temperature
            scores[0] += offset
            self._chances = dict(zip(self.options.choices, scores.softmax(0).tolist(), strict=True))
        else:
            self._end(outcome)
        return True

    def _end(self, outcome: Ended) -> None:
        if piece := self._stream.close():
            self.put(Token(piece))
        now_s = time.perf_counter()
        first_s = self._first_s or now_s
        self._timings_s |= {"prefill": first_s - self.asked_s, "decode": now_s - first_s}
        usage = replace(self.finished.usage, new_tokens=self._num_new, timings_s=self._timings_s)
        text = self._chosen or self._stream.text.strip()
        self.put(replace(
            self.finished, text=text, reason=outcome.reason, usage=usage, choices=self._chances
        ))  # fmt: skip

    def _logprob(self, picked: Picked) -> Logprob:
        assert picked.logprob is not None
        top = tuple((self.tokenizer.decode([token]), value) for token, value in picked.top)
        return Logprob(self.tokenizer.decode([picked.token]), picked.logprob, picked.token, top)
