"""How a checkpoint that only reads is run: by the engine, many requests together.

A causal language model whose attention the engine cannot pack runs there too, one request after the
other. Token ids in, events out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch

from encoders.errors import IncompatibleModel
from multimodal.backends import Finished, Load, Token
from multimodal.engine.adaptive import MOST_SLOTS, Adaptive
from multimodal.engine.engine import Engine
from multimodal.engine.memory import num_places
from multimodal.engine.runner import PackedRunner, PlainRunner, Runner
from multimodal.events import EventStream
from multimodal.native_loop import Request


class EngineLoop:
    """Runs requests on an engine of their own."""

    def __init__(self, model: Any, max_len: int, objective: str = "even") -> None:
        self.model, self.one_by_one = model, ""
        adaptive = Adaptive(objective)
        with torch.inference_mode():
            self.engine = Engine(self._runner(max_len), adaptive.limits, adaptive.measured)
        weakref.finalize(self, Engine.close, self.engine)

    def _runner(self, max_len: int) -> Runner:
        try:
            return PackedRunner(self.model, num_places(self.model, max_len, MOST_SLOTS))
        except IncompatibleModel as error:
            self.one_by_one = str(error)
            return PlainRunner(self.model)

    def capacity(self) -> int:
        """Positions that fit into memory."""
        return self.engine.runner.capacity()

    def load(self) -> Load:
        """How busy the engine is now."""
        return self.engine.load()

    def forget(self) -> None:
        """Nothing: the engine gives room to whoever needs it."""

    def close(self) -> None:
        """End its thread; requests under way end as cancelled."""
        self.engine.close()

    def answer(self, request: Request) -> Iterator[Token | Finished]:
        """The events of a request; closing the iterator cancels it."""
        stream = EventStream(lambda: self.engine.cancel(sequence))
        answer = request.answer(stream.put)
        with torch.inference_mode():
            embeds = self.model.get_input_embeddings()(request.ids.to(self.model.device))
        sequence = request.sequence(embeds, answer.tell)
        self.engine.submit(sequence)
        return stream
