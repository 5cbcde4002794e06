"""Who may come in: counted at once, before a body is read or a medium looked at.

A `Ticket` is a place: first among those waiting, then among those running, given back when its
last holder leaves. Lives on the event loop's thread alone; knows no HTTP and no model.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from time import monotonic

from multimodal.backends import Usage
from pipelines.server.failures import ApiError
from pipelines.server.settings import Settings
from pipelines.server.tracing import Trace

_WEIGHT = 0.2  # of the newest measurement in a running mean


class Mean:
    """A running mean of measurements; None before the first."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, measured: float) -> None:
        """Take in one more."""
        old = measured if self.value is None else self.value
        self.value = old + _WEIGHT * (measured - old)


class Admission:
    """The places of one server.

    Args:
        settings: its limits, fitted to a backend.
        shared: whether several tenants share it, so that each has a share only.
        closed: why nobody is let in; "" while the door is open.
        refuse: told the reason of every refusal.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        shared: bool = False,
        closed: Callable[[], str] = lambda: "",
        refuse: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings, self._shared, self._refuse = settings, shared, refuse
        self._turns = asyncio.Semaphore(settings.max_running)
        self._tenants: Counter[str] = Counter()
        self._service_s, self._prefill_rate = Mean(), Mean()
        self._empty = asyncio.Event()
        self._empty.set()
        self.running = self.waiting = self.waiting_tokens = 0
        self.closed = closed
        self._busy_since = 0.0

    def enter(self, tenant: str) -> Ticket:
        """A place among those waiting.

        Raises:
            ApiError: 503 while the server is not open, 429 where there is no place.
        """
        if why := self.closed():
            self._refuse(why)
            raise ApiError(503, f"the server is {why}; try again later", why, retry_after_s=5)
        if self._is_full:
            raise self._full("all places are taken")
        if self._has_its_share(tenant):
            words = f"this key has {self._tenants[tenant]} requests in flight"
            raise self._full(words, "tenant_limit")
        return Ticket(self, tenant)

    def would_refuse(self, tenant: str) -> bool:
        """Whether `enter` would raise."""
        return bool(self.closed()) or self._is_full or self._has_its_share(tenant)

    def busy_s(self) -> float:
        """How long requests have been running without a pause."""
        return monotonic() - self._busy_since if self.running else 0.0

    async def until_empty(self) -> None:
        """Wait for the last request to leave."""
        await self._empty.wait()

    @property
    def retry_after_s(self) -> float:
        """How long those who wait will take at the measured rate."""
        each_s = self._service_s.value or 1.0
        return math.ceil((self.waiting + 1) * each_s / self._settings.max_running)

    @property
    def _is_full(self) -> bool:
        settings = self._settings
        return self.running + self.waiting >= settings.max_running + settings.max_waiting

    def _has_its_share(self, tenant: str) -> bool:
        share = max(1, round(self._settings.tenant_share * self._settings.max_waiting))
        return self._shared and self._tenants[tenant] >= share

    def _full(self, why: str, code: str = "queue_full") -> ApiError:
        self._refuse(code)
        after_s = self.retry_after_s
        return ApiError(429, f"{why}; try again in {after_s:.0f} s", code, retry_after_s=after_s)

    def _weigh(self, tokens: int) -> None:
        rate = self._prefill_rate.value
        limit_s = self._settings.max_prefill_s
        if rate and self.waiting_tokens and (self.waiting_tokens + tokens) / rate > limit_s:
            raise self._full(f"the waiting prompts take more than {limit_s:g} s to read")

    def _count(self, tenant: str, change: int) -> None:
        self._tenants[tenant] += change
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self._empty.clear() if self._tenants else self._empty.set()


class Ticket:
    """A place; several may hold it, and it is free again when the last of them leaves."""

    def __init__(self, admission: Admission, tenant: str) -> None:
        self._admission, self.tenant = admission, tenant
        self._holders, self.tokens, self.trace = 1, 0, Trace()
        self._last: list[Callable[[], None]] = []
        self.entered, self.started = monotonic(), 0.0
        admission.waiting += 1
        admission._count(tenant, 1)

    def weigh(self, tokens: int) -> None:
        """Count the tokens of its prompt among those that wait.

        Raises:
            ApiError: 429, more than the model can read in the time allowed.
        """
        self._admission._weigh(tokens)
        self.tokens = tokens
        self._admission.waiting_tokens += tokens

    def learn(self, usage: Usage) -> None:
        """How long the model took to read a prompt; from any thread."""
        read_s = usage.timings_s.get("prefill", 0.0)
        if usage.prompt_tokens and read_s > 0:
            self._admission._prefill_rate.add(usage.prompt_tokens / read_s)

    async def start(self) -> None:
        """Wait for a turn, in the order of coming.

        Raises:
            ApiError: 504, it took too long.
        """
        admission, limit_s = self._admission, self._admission._settings.queue_s
        try:
            async with asyncio.timeout(limit_s):
                await admission._turns.acquire()
        except TimeoutError:
            admission._refuse("queue_timeout")
            raise ApiError(
                504, f"no turn within {limit_s:g} s; try again later", "queue_timeout",
                retry_after_s=admission.retry_after_s,
            ) from None  # fmt: skip
        self.started = monotonic()
        self._stop_waiting()
        if not admission.running:
            admission._busy_since = self.started
        admission.running += 1

    def hold(self) -> None:
        """One more holder."""
        self._holders += 1

    def finally_do(self, act: Callable[[], None]) -> None:
        """Have something done when the last holder leaves."""
        self._last.append(act)

    def leave(self) -> None:
        """One holder less."""
        self._holders -= 1
        if self._holders:
            return
        admission = self._admission
        if self.started:
            admission.running -= 1
            admission._turns.release()
            admission._service_s.add(monotonic() - self.started)
        else:
            self._stop_waiting()
        admission._count(self.tenant, -1)
        for act in self._last:
            act()

    def _stop_waiting(self) -> None:
        self._admission.waiting -= 1
        self._admission.waiting_tokens -= self.tokens
