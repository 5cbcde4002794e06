"""A backend in a process of its own: whatever it does, and if it dies, this process answers.

Calls go over a pipe and events come back. A process that ends is started again, and everyone who
waited for it gets an error; so is one whose backend cannot say how busy it is. Knows no model.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from encoders.errors import CrossReadError, ModelError, ModelUnavailable
from multimodal.backends import (
    Backend,
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Novelty,
    Token,
    Usage,
)
from multimodal.events import EventStream
from multimodal.messages import Message, Study
from multimodal.shipping import Receiver, Sender

_LOG = logging.getLogger(__name__)
HEARTBEAT_S = 0.2
NICE = 5  # of the child: the parent answers at once, however many cores the model keeps at work
_LONGEST_PAUSE_S = 30.0  # between two starts of a process that does not come up
_DIED = "the process that runs the model ended and is started again; ask once more"
_NOT_YET = "the model is being loaded; ask again in a moment"


@dataclass(frozen=True)
class _Value:
    """What a call other than `generate` returned."""

    value: Any


class BackendProcess:
    """Any backend, run in a child process that is started again when it dies.

    Args:
        load: makes the backend, in the child; picklable, as `functools.partial(load_backend, path)`.
        wait: whether to return only when the model is loaded.
        silent_s: longest silence of a process that counts as alive.

    Attributes:
        restarts: how often the process was started again.

    Raises:
        CrossReadError: what `load` raised, if `wait`.
    """

    def __init__(
        self, load: Callable[[], Backend], *, wait: bool = True, silent_s: float = 10.0
    ) -> None:
        self.restarts = 0
        self._load, self._silent_s = load, silent_s
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Callable[[Any], None]] = {}  # where each answer's events go
        self._pipe: Connection | None = None
        self._sender = Sender()
        self._process: Any = None
        self._capabilities: Capabilities | None = None
        self._busy, self._heard = Load(), 0.0
        self._failure: Exception | None = None
        self._ready, self._closed = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="backend-process", daemon=True)
        self._keeper.start()
        if wait:
            self.wait_ready()

    @property
    def alive(self) -> bool:
        """Whether the model is loaded and its process was heard of lately."""
        return self._ready.is_set() and time.monotonic() - self._heard < self._silent_s

    @property
    def pid(self) -> int | None:
        """Of the child, None between two of them."""
        return self._process.pid if self._process is not None else None

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the model is loaded.

        Raises:
            CrossReadError: what `load` raised.
            ModelUnavailable: it takes longer than that.
        """
        good = self._ready.wait(timeout_s)
        if self._failure is not None:
            raise self._failure
        if not good:
            raise ModelUnavailable(_NOT_YET)

    def capabilities(self) -> Capabilities:
        """What the backend can do, known since it was first loaded."""
        if self._capabilities is None:
            raise ModelUnavailable(_NOT_YET)
        return self._capabilities

    def load(self) -> Load:
        """How busy the backend was at its last heartbeat; answered here, whatever it does."""
        counters = {**self._busy.counters, "restarts": self.restarts}
        return replace(self._busy, counters=counters)

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events; see `Backend.generate`.

        Raises:
            ModelUnavailable: the process ended, or is not there yet.
        """
        return self._ask("generate", messages, options)

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What `generate` would take; see `Backend.estimate`."""
        return self._value("estimate", messages, options)

    def novelty(self, study: Study) -> Novelty | None:
        """How unlike the validated studies this one is; see `Backend.novelty`."""
        return self._value("novelty", study)

    def close(self) -> None:
        """End the process; requests under way end as cancelled."""
        self._closed.set()
        self._send(("close",))
        self._keeper.join(5.0)
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._keeper.join(5.0)

    # --- calls ---------------------------------------------------------------------------------

    def _value(self, name: str, *arguments: Any) -> Any:
        answer: Any = next(self._ask(name, *arguments))
        return answer.value

    def _ask(self, name: str, *arguments: Any) -> EventStream:
        number = next(self._numbers)
        stream = EventStream(lambda: self._cancel(number))
        with self._lock:
            if not self._ready.is_set() or self._pipe is None:
                raise ModelUnavailable(_DIED if self.restarts else _NOT_YET)
            self._waiting[number] = stream.put
        if not self._send((name, number, *arguments)):
            self._tell(number, ModelUnavailable(_DIED))
        return stream

    def _cancel(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._send(("cancel", number))

    def _send(self, message: tuple[Any, ...]) -> bool:
        with self._lock:
            try:
                assert self._pipe is not None
                for parcel in self._sender.packed(message):
                    self._pipe.send(parcel)
            except (OSError, AssertionError):
                return False
        return True

    def _tell(self, number: int, event: Any) -> None:
        put = self._waiting.get(number)
        if put is None:
            return
        if not isinstance(event, Token):
            self._waiting.pop(number, None)
        put(event)

    # --- the child's life ----------------------------------------------------------------------

    def _keep(self) -> None:
        """Start the child, listen to it, start it again; runs until `close`."""
        pause_s = 0.0
        while not self._closed.wait(pause_s):
            try:
                came_up = self._run_once()
            except (pickle.PicklingError, AttributeError, TypeError):
                self._failure = ModelError(
                    "what loads the model cannot be sent to another process; give a function of a"
                    " module, or a functools.partial of one"
                )
            if self._failure is not None:
                self._ready.set()
                return
            pause_s = 0.0 if came_up else min(2 * pause_s + 0.5, _LONGEST_PAUSE_S)
            if not self._closed.is_set():
                self.restarts += 1

    def _run_once(self) -> bool:
        """One child, from its start to its end; whether it got as far as being ready."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._load), daemon=True)
        self._process.start()
        theirs.close()
        with self._lock:
            self._pipe, self._sender = ours, Sender()
        try:
            while True:
                self._hear(ours.recv())
        except (EOFError, OSError):
            pass
        came_up = self._ready.is_set()
        with self._lock:
            self._ready.clear()
            self._pipe = None
            ours.close()
            left, self._waiting = self._waiting, {}
        gone: Any = ModelUnavailable(_DIED)
        if self._closed.is_set():
            gone = Finished("", "cancelled", Usage(0, 0, 0))
        for put in left.values():
            put(gone)
        self._process.join()
        return came_up

    def _hear(self, message: tuple[Any, ...]) -> None:
        kind, *values = message
        self._heard = time.monotonic()
        if kind == "event":
            self._tell(*values)
        elif kind == "load":
            self._busy = values[0]
        elif kind == "ready":
            self._capabilities = values[0]
            self._ready.set()
        elif self._capabilities is None:  # it never came up: to try again would fail again
            self._failure = values[0]


# --- the child ---------------------------------------------------------------------------------


def _serve(pipe: Connection, load: Callable[[], Backend]) -> None:
    """The child's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us
    os.nice(NICE)
    child = _Child(pipe)
    try:
        backend = load()
        child.send("load", backend.load())
        child.send("ready", backend.capabilities())
    except Exception as error:  # whatever it is, the parent has to be told
        child.send("failed", _portable(error))
        return
    threading.Thread(target=child.beat, args=(backend,), daemon=True).start()
    child.listen(backend)
    backend.close()


class _Child:
    """The child's end of the pipe, and the answers it makes."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock, self._receiver = pipe, threading.Lock(), Receiver()
        self._answers: dict[int, Any] = {}
        self._ended = threading.Event()

    def send(self, *message: Any) -> None:
        """Tell the parent; if it is gone, nobody is left to be told."""
        with self._lock:
            try:
                self._pipe.send(message)
            except OSError:
                self._ended.set()

    def beat(self, backend: Backend) -> None:
        """Tell how busy the backend is, over and over; if it cannot say, it is gone, and so are we."""
        while not self._ended.is_set():
            try:
                load = backend.load()
            except Exception as error:  # whatever it is: the parent starts another process
                if self._ended.is_set():  # or is closing this one
                    return
                _LOG.error("the model is gone (%s)", type(error).__name__)
                os._exit(1)  # at once, whoever is still at work in here
            self.send("load", load)
            self._ended.wait(HEARTBEAT_S)

    def listen(self, backend: Backend) -> None:
        """Take calls until the parent closes or is gone."""
        while not self._ended.is_set():
            try:
                call = self._receiver.unpacked(self._pipe.recv())
            except (EOFError, OSError):
                break
            if call is None:
                continue
            name, *rest = call
            if name == "close":
                break
            if name == "cancel":
                _close(self._answers.pop(rest[0], None))
                continue
            self._answers[rest[0]] = None
            threading.Thread(target=self._run, args=(backend, name, *rest), daemon=True).start()
        self._ended.set()

    def _run(self, backend: Backend, name: str, number: int, *arguments: Any) -> None:
        try:
            result = getattr(backend, name)(*arguments)
            if name != "generate":
                self.send("event", number, _Value(result))
                return
            for event in self._noted(number, result):
                self.send("event", number, event)
        except Exception as error:  # a request's own failure, which its asker has to be told
            self.send("event", number, _portable(error))
        finally:
            self._answers.pop(number, None)

    def _noted(self, number: int, events: Any) -> Iterator[Token | Finished]:
        """The events, as long as nobody cancels them."""
        if number in self._answers:
            self._answers[number] = events
        for event in events:
            if number not in self._answers:
                break
            yield event
        _close(events)


def _close(events: Any) -> None:
    """Cancel an answer; a plain generator that is just running ends at its next event instead."""
    try:
        if events is not None and hasattr(events, "close"):
            events.close()
    except ValueError:  # "generator already executing"
        pass


def _portable(error: Exception) -> Exception:
    """An error as it may cross: ours as they are, others by their name, as they may quote anything."""
    if isinstance(error, CrossReadError):
        return error
    return ModelError(f"the model failed with {type(error).__name__}; see the log of its process")
