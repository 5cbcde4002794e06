"""How a checkpoint that only reads is run: by the engine, many requests together.

A causal language model whose attention the engine cannot pack runs there too, one request after the
other. Token ids in, events out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch

from multimodal.backends import Finished, Load, Token
from multimodal.engine.assembly import assemble, objective_of
from multimodal.engine.engine import Engine
from multimodal.events import EventStream
from multimodal.native_loop import Request


class EngineLoop:
    """Runs requests on an engine of their own."""

    def __init__(self, model: Any, max_len: int, objective: str | None = None) -> None:
        self.model = model
        assembled = assemble(model, max_len, objective_of(objective))
        self.engine, self.one_by_one = assembled.engine, assembled.one_by_one
        weakref.finalize(self, Engine.close, self.engine)

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
