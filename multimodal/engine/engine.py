"""The engine's thread: admits, runs a step, picks tokens, and lets nobody's failure reach another.

Requests come from any thread as `Sequence`s; outcomes are told on the engine's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

import torch

from encoders.errors import ContextOverflow, InvalidPixels, ModelError
from multimodal.backends import Load, Reason
from multimodal.engine.runner import Runner
from multimodal.engine.sampling import pick
from multimodal.engine.scheduler import Limits, Scheduler
from multimodal.engine.sequence import Ended, Outcome, Picked, Scored, Segment, Sequence
from multimodal.measures import Measures

_LOG = logging.getLogger(__name__)
NOT_FINITE = "the model answers with NaN or infinite values; check the media of this request"
_RATE_SHARE = 0.1  # of the newest step in the measured rate


@dataclass
class Counters:
    """Totals since the start."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0


@dataclass
class Engine:
    """Runs many sequences at once; `start` it, `submit` from any thread, `close` it.

    Args:
        runner: the model.
        limits: asked before every step.
        measured: told of every step: its rows and seconds.
        threads: of torch, on the engine's thread; 0 leaves them as they are.
    """

    runner: Runner
    limits: Callable[[], Limits] = Limits
    measured: Callable[[int, float], None] = lambda rows, seconds: None
    threads: int = 0
    counters: Counters = field(default_factory=Counters)
    measures: Measures = field(default_factory=Measures)

    def __post_init__(self) -> None:
        self._scheduler = Scheduler()
        self._news = threading.Condition()
        self._came: list[Sequence] = []
        self._closed = False
        self._rate = 0.0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Take a request.

        Raises:
            ContextOverflow: it is longer than all the room there is.
            InvalidPixels: its embeddings hold NaN or infinite values, or are of another width.
            ModelError: the engine is closed.
        """
        self._check(sequence)
        with self._news:
            if self._closed:
                raise ModelError("the model was closed; load it again")
            self._came.append(sequence)
            self._news.notify()

    def cancel(self, sequence: Sequence) -> None:
        """End a request, from any thread; nothing happens if it has ended."""
        sequence.cancelled = True
        with self._news:
            self._news.notify()

    def load(self) -> Load:
        """How busy the engine is now."""
        with self._news:
            waiting = [*self._came, *self._scheduler.waiting]
            running = list(self._scheduler.running)
        backlog = sum(s.length - s.done for s in (*waiting, *running) if s.is_prefilling)
        limits = self.limits()
        return Load(
            len(running), len(waiting), limits.slots, self.runner.used(), backlog, self._rate,
            limits.chunk, vars(self.counters).copy(), self.measures.told(),
        )  # fmt: skip

    def close(self) -> None:
        """End the thread; requests under way end as cancelled."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    # --- the engine's thread ---------------------------------------------------------------------

    def _loop(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            while self._gather():
                try:
                    self._step()
                except Exception as error:  # our own: all are told, and we go on
                    _LOG.exception("a step of the engine failed outside of the model")
                    for sequence in list(self._scheduler):
                        self._fail(sequence, error)
            for sequence in list(self._scheduler):
                self._end(sequence, "cancelled")

    def _gather(self) -> bool:
        """Take in what came, waiting while there is nothing to do; false once closed."""
        with self._news:
            while not (self._came or self._closed or list(self._scheduler)):
                self._news.wait()
            self._scheduler.waiting.extend(self._came)
            self._came.clear()
            return not self._closed

    def _step(self) -> None:
        now_s = time.monotonic()
        for sequence in list(self._scheduler):
            if sequence.cancelled or sequence.is_late(now_s):
                self._end(sequence, "cancelled" if sequence.cancelled else "timeout")
        limits = self.limits()
        for sequence in self._scheduler.admit(limits.slots, self.runner.open):
            sequence.begun_s = now_s
            self.counters.reused_tokens += sequence.reused
        segments = self._scheduler.plan(limits.chunk)
        if not segments:
            return
        started = time.perf_counter()
        results = self._run(segments)
        self._measure(sum(s.count for s in segments), time.perf_counter() - started)
        for segment, _ in results:
            self._note(segment)
        self._advance([(s.sequence, logits) for s, logits in results if s.num_logits])

    def _run(self, segments: list[Segment]) -> list[tuple[Segment, torch.Tensor]]:
        """Logits of every segment; those that fail, or are not finite, end their request alone."""
        good = []
        for segment, result in zip(segments, self.runner.run(segments), strict=True):
            if isinstance(result, Exception):
                self._fail(segment.sequence, result)
            else:
                good.append((segment, result))
        return self._finite(good)

    def _finite(
        self, results: list[tuple[Segment, torch.Tensor]]
    ) -> list[tuple[Segment, torch.Tensor]]:
        """The results without NaN or infinite logits; the others' requests fail."""
        peaks = [logits.amax() for _, logits in results if logits.numel()]
        fine = iter(torch.stack(peaks).isfinite().tolist() if peaks else ())
        good = []
        for segment, logits in results:
            if not logits.numel() or next(fine):
                good.append((segment, logits))
            else:
                self._fail(segment.sequence, InvalidPixels(NOT_FINITE))
        return good

    def _note(self, segment: Segment) -> None:
        """Keep count of what a segment ran; alternatives leave nothing behind."""
        if segment.ids is None:
            self.counters.prompt_tokens += segment.count
        if not segment.groups:
            segment.sequence.done += segment.count

    def _advance(self, results: Listed[tuple[Sequence, torch.Tensor]]) -> None:
        """Score the choices and pick tokens, and end whoever is through."""
        answers = []
        for sequence, logits in results:
            if sequence.choices:
                self._score(sequence, logits)
            else:
                answers.append((sequence, logits))
        if not answers:
            return
        sequences = [sequence for sequence, _ in answers]
        picked = pick(torch.cat([logits for _, logits in answers]), sequences)
        for sequence, choice in zip(sequences, picked, strict=True):
            try:
                self._take(sequence, choice)
            except Exception as error:  # of a grammar or a listener: this request's own
                self._fail(sequence, error)

    def _take(self, sequence: Sequence, choice: Picked) -> None:
        if choice.token in sequence.ends:
            self._end(sequence, "stop")
            return
        sequence.tokens.append(choice.token)
        self.counters.new_tokens += 1
        if sequence.constraint is not None:
            sequence.constraint.advance(choice.token)
        if not sequence.tell(choice):
            self._end(sequence, "stop")
        elif len(sequence.tokens) >= sequence.options.max_new_tokens:
            self._end(sequence, "length")

    def _score(self, sequence: Sequence, logits: torch.Tensor) -> None:
        """Sum the log-probabilities of each choice once its tokens are run."""
        if sequence.first_logits is None:
            sequence.first_logits = logits
            if any(len(choice) > 1 for choice in sequence.choices):
                return
            logits = logits[:0]
        scores, at = [], 0
        for choice in sequence.choices:
            rows = torch.cat([sequence.first_logits, logits[at : at + len(choice) - 1]])
            at += len(choice) - 1
            told = rows.log_softmax(-1).gather(1, torch.tensor(choice, device=rows.device)[:, None])
            scores.append(float(told.sum()))
        sequence.tell(Scored(tuple(scores)))
        self._end(sequence, "stop")

    # --- ends --------------------------------------------------------------------------------------

    def _end(self, sequence: Sequence, reason: Reason) -> None:
        self.counters.cancelled += reason == "cancelled"
        self.counters.timed_out += reason == "timeout"
        self._remove(sequence, Ended(reason), keep=True)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self.counters.failed += 1
        self._remove(sequence, error, keep=False)

    def _remove(self, sequence: Sequence, last: Outcome, *, keep: bool) -> None:
        if sequence not in list(self._scheduler):  # it failed and is gone already
            return
        with self._news:
            self._scheduler.remove(sequence)
        if sequence.place is not None:
            self.runner.close(sequence, keep=keep)
        try:
            sequence.tell(last)
        except Exception:  # a listener that fails must not hurt the others
            _LOG.exception("a request's listener failed")

    def _measure(self, rows: int, seconds: float) -> None:
        self.measures.observe("iteration_tokens", rows)
        self.measures.observe("step_seconds", seconds)
        rate = rows / max(seconds, 1e-9)
        self._rate += (rate - self._rate) * (_RATE_SHARE if self._rate else 1.0)
        self.measured(rows, seconds)

    def _check(self, sequence: Sequence) -> None:
        if sequence.size > self.runner.capacity():
            raise ContextOverflow(
                f"the prompt and its answer take {sequence.size} tokens, but there is memory for"
                f" {self.runner.capacity()}; shorten the text, give fewer pictures"
                " or let it answer in fewer tokens"
            )
        if len(sequence.embeds) != sequence.length:
            raise InvalidPixels(
                f"{len(sequence.embeds)} embeddings were made for a prompt of {sequence.length}"
                " tokens; build prompt and media with the same processor"
            )
        if not bool(sequence.embeds.isfinite().all()):
            raise InvalidPixels("the media give NaN or infinite embeddings; export them again")
