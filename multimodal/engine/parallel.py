"""One model on several ranks of torch.distributed, its layers split (tensor parallel).

Rank 0 schedules; what it opens, runs and closes it tells the others, whose runners hold their own
shares of keys and values at the same places and make the same passes beside it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from encoders.errors import ModelUnavailable
from multimodal.engine import sequence as seq
from multimodal.engine.runner import PackedRunner

_LEADER = 0
GONE = "a process that runs a share of the model ended; the model has to be loaded again (a server does)"


class LeadingRunner:
    """Rank 0's runner; every other rank runs `follow` on a runner of its own.

    Several threads may use it: what one does is done on all ranks before the next thing begins. Once
    a rank is gone, everything but `close` raises `ModelUnavailable`.
    """

    def __init__(self, runner: PackedRunner) -> None:
        self._runner, self._turn = runner, threading.Lock()
        self._numbers = itertools.count()
        self._known: dict[seq.Sequence, int] = {}

    def open(self, sequence: seq.Sequence) -> bool:
        """See `Runner.open`."""
        number = next(self._numbers)
        described = (sequence.options, sequence.embeds, sequence.content, sequence.choices)
        with self._turn:
            _tell("open", number, *described)
            good = self._runner.open(sequence)
            if good:
                self._known[sequence] = number
        return good

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """`[n, hidden]` of token ids; the table may be split, so all ranks look them up."""
        with self._turn:
            _tell("embed", tuple(ids))
            return _embed(self._runner, ids)

    def close(self, sequence: seq.Sequence, *, keep: bool) -> None:
        """See `Runner.close`."""
        with self._turn:
            described = (tuple(sequence.tokens), sequence.done, keep)
            with suppress(ModelUnavailable):  # whoever waits is told of their end all the same
                _tell("close", self._known.pop(sequence), *described)
            self._runner.close(sequence, keep=keep)

    def run(self, segments: Sequence[seq.Segment]) -> list[torch.Tensor | Exception]:
        """See `Runner.run`."""
        described = [
            (self._known[s.sequence], s.sequence.done, s.count, s.num_logits, s.ids, s.groups)
            for s in segments
        ]
        with self._turn:
            _tell("run", described)
            results = self._runner.run(segments)
            if any(isinstance(result, Exception) for result in results):
                _tell("ping", None)  # was it the request, or is a rank gone? then this fails too
        return results

    def used(self) -> float:
        """See `Runner.used`."""
        return self._runner.used()

    def capacity(self) -> int:
        """See `Runner.capacity`."""
        return self._runner.capacity()

    def stop(self) -> None:
        """Let the other ranks go."""
        with self._turn, suppress(ModelUnavailable):
            _tell("stop")


@torch.inference_mode()
def follow(runner: PackedRunner) -> None:
    """Do what rank 0 does, until it stops."""
    known: dict[int, seq.Sequence] = {}
    while (told := _hear())[0] != "stop":
        kind, first, *rest = told
        if kind == "open":
            options, embeds, content, choices = rest
            sequence = seq.Sequence(options, embeds, content, bool, choices=choices)
            if runner.open(sequence):
                known[first] = sequence
        elif kind == "embed":
            _embed(runner, first)
        elif kind == "close":
            tokens, done, keep = rest
            sequence = known.pop(first)
            sequence.tokens, sequence.done = list(tokens), done
            runner.close(sequence, keep=keep)
        elif kind == "run":
            runner.run([_segment(known, *described) for described in first])


def _embed(runner: PackedRunner, ids: Sequence[int]) -> torch.Tensor:
    embedding = runner.model.get_input_embeddings()
    return embedding(torch.tensor(list(ids), device=runner.model.device))


def _segment(
    known: dict[int, seq.Sequence],
    number: int,
    done: int,
    count: int,
    num_logits: int,
    ids: tuple[int, ...] | None,
    groups: tuple[int, ...],
) -> seq.Segment:
    known[number].done = done
    return seq.Segment(known[number], count, num_logits, ids, groups)


def _tell(*message: Any) -> None:
    try:
        dist.broadcast_object_list([message], src=_LEADER)
    except RuntimeError as error:  # gloo's and NCCL's word for a peer that is not there
        raise ModelUnavailable(GONE) from error


def _hear() -> tuple[Any, ...]:
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=_LEADER)
    return box[0]
