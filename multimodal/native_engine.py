"""How a checkpoint of transformers is run on the engine: many requests together.

A causal language model whose attention the engine cannot pack runs there too, one request after the
other. Prompts in, events out.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from dataclasses import replace

from multimodal.backends import Finished, Load, Token
from multimodal.engine.assembly import Assembled
from multimodal.engine.doctor import Diagnosis
from multimodal.engine.engine import Engine
from multimodal.events import EventStream
from multimodal.native_loop import Request
from multimodal.native_merging import Merger
from multimodal.native_split import SplitModel


class EngineLoop:
    """Runs requests on an engine of their own.

    Args:
        merger: makes embeddings of prompts.
        assembled: the engine of the model that writes.
    """

    def __init__(self, merger: Merger | SplitModel, assembled: Assembled) -> None:
        self._merger, self._assembled = merger, assembled
        self.model = assembled.model
        self.engine, self.one_by_one = self._assembled.engine, self._assembled.one_by_one
        weakref.finalize(self, Engine.close, self.engine)

    def capacity(self) -> int:
        """Positions that fit into memory."""
        return self.engine.runner.capacity()

    def load(self) -> Load:
        """How busy the engine is now.

        Raises:
            ModelUnavailable: a part of the model is gone.
        """
        self._merger.check()
        load = self.engine.load()
        return replace(load, measured=load.measured | self._merger.measures.told())

    def diagnose(self) -> Diagnosis:
        """What the engine chose on this machine, and why; runs a few steps to see."""
        return self._assembled.diagnose()

    def forget(self) -> None:
        """Let go of encoded media; the engine itself gives room to whoever needs it."""
        self._merger.forget()

    def close(self) -> None:
        """End its thread; requests under way end as cancelled."""
        self.engine.close()
        self._merger.close()

    def answer(self, request: Request) -> Iterator[Token | Finished]:
        """The events of a request; closing the iterator cancels it."""
        started = time.perf_counter()
        embedded = self._merger.embed(request.prompt, request.options.tenant)
        encode_s = request.encode_s + time.perf_counter() - started
        stream = EventStream(lambda: self.engine.cancel(sequence))
        answer = replace(request, encode_s=encode_s).answer(stream.put, embedded.num_encoded)
        sequence = request.sequence(embedded.embeds, embedded.content, answer.tell, embedded.turns)
        self.engine.submit(sequence)
        return stream
