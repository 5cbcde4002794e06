"""ZeroGPU: a Space's GPU is lent for one call at a time, to a process forked for it.

Threads do not survive a fork, so the child gives the model an engine of its own; what it encodes is
gone with it. Wherever no GPU is lent, a backend stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from multimodal.backends import (
    Backend,
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Novelty,
    Token,
)
from multimodal.local import LocalBackend
from multimodal.messages import Message, Study

LENT_S = 60  # for one answer; who asks for less is served sooner


def on_zero_gpu(backend: Backend) -> Backend:
    """The backend with its work where the GPU is lent; itself where none is."""
    if not os.environ.get("SPACES_ZERO_GPU") or not isinstance(backend, LocalBackend):
        return backend
    import spaces

    return ZeroBackend(backend, spaces.GPU)


class ZeroBackend:
    """A local backend each of whose answers is made in a process with a GPU."""

    def __init__(self, backend: LocalBackend, gpu: Any) -> None:
        home = os.getpid()

        def here() -> LocalBackend:
            return backend if os.getpid() == home else backend.renewed()

        def generate(
            messages: Sequence[Message], options: GenerateOptions | None
        ) -> Iterator[Token | Finished]:
            yield from here().generate(messages, options)

        def novelty(study: Study) -> Novelty | None:
            return here().novelty(study)

        self._backend = backend
        self._generate, self._novelty = (gpu(duration=LENT_S)(f) for f in (generate, novelty))

    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._backend.capabilities()

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events; see `Backend.generate`."""
        return self._generate(messages, options)

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What `generate` would take; see `Backend.estimate`."""
        return self._backend.estimate(messages, options)

    def load(self) -> Load:
        """How busy the backend is."""
        return self._backend.load()

    def close(self) -> None:
        """Let go of what is held here."""
        self._backend.close()

    def novelty(self, study: Study) -> Novelty | None:
        """How unlike the validated studies this one is; see `Backend.novelty`."""
        return self._novelty(study)
