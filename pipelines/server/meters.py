"""What is counted: Prometheus metrics under `crossread_`, with vLLM's label for the model.

No label or value comes from a request's content: no names, no words, no addresses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from multimodal.backends import Load, Usage
from pipelines.server.admission import Admission
from pipelines.server.engine_metrics import MEDIA, EngineMetrics
from pipelines.server.vllm_names import in_vllms_names

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_KNOWN: Mapping[str, Sequence[str]] = {
    "modality": ("text", *MEDIA),
    "reason": ("queue_full", "tenant_limit", "queue_timeout", "draining"),
    "stage": ("input", "model", "timeout", "slow_reader"),
    "where": ("waiting", "running"),
    "endpoint": ("chat", "completions", "transcriptions", "readings"),
    "finished_reason": ("stop", "length", "timeout"),
}
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Meters:
    """The metrics of one server; safe to use from any thread.

    Args:
        model: name of the model, the value of the label `model_name`.
        made_by: more labels of `model_info`: its weights, preprocessing and our version.
        compat: "vllm" tells what vLLM has too under its names as well.
    """

    def __init__(self, model: str, made_by: Mapping[str, str], compat: str = "") -> None:
        disable_created_metrics()  # a second series for every one, which nobody looks at
        self.registry = CollectorRegistry()
        self._model, self._compat = model, compat
        self.last_event = time.monotonic()
        histogram, counter = self._histogram, self._counter
        self._ttft = histogram("time_to_first_token_seconds", "From coming in to the first token.")
        self._itl = histogram("inter_token_latency_seconds", "Between two tokens.", _FAST)
        self._queue = histogram("queue_time_seconds", "Waiting for a turn.")
        self._prefill = histogram("prefill_time_seconds", "Reading a prompt.")
        self._decode = histogram("decode_time_seconds", "Writing an answer.")
        words = "From coming in to the end of the answer"
        self._e2e = histogram("e2e_request_latency_seconds", f"{words}.", label="endpoint")
        self._e2e_squares = counter(
            "e2e_request_latency_seconds_squared",
            f"{words}, squared: for its deviation.",
            "endpoint",
        )
        self._prompt = counter("prompt_tokens", "Tokens read.", "modality")
        self._new = counter("generation_tokens", "Tokens written.")
        self._media = counter("encoded_media", "Media encoded anew, not taken from a cache.")
        self._refused = counter("admission_rejections", "Requests not let in.", "reason")
        self._done = counter("request_success", "Answers given.", "finished_reason")
        self._errors = counter("request_errors", "Requests that failed.", "stage")
        self._stopped = counter("cancelled", "Requests stopped before their end.", "where")
        self._engine = EngineMetrics(model)
        self.registry.register(self._engine)
        self._info("model_info", "What answers.", {"model_name": model, **made_by})
        self._info("build_info", "What it runs on.", _build())

    def watch(self, admission: Admission, places: int) -> None:
        """Tell how many are inside whenever somebody asks."""
        self._gauge("num_requests_running", "At work.", lambda: admission.running)
        self._gauge("num_requests_waiting", "Waiting.", lambda: admission.waiting)
        self._gauge("waiting_prompt_tokens", "Of those waiting.", lambda: admission.waiting_tokens)
        self._gauge("max_requests_waiting", "How many may wait.", lambda: places)

    def first_token(self, seconds: float) -> None:
        """A request's first token, so long after it came."""
        self.last_event = time.monotonic()
        self._ttft.observe(seconds)

    def token(self, seconds: float) -> None:
        """One more token, so long after the last."""
        self.last_event = time.monotonic()
        self._itl.observe(seconds)

    def answered(self, usage: Usage) -> None:
        """What one answer of the model cost."""
        self.last_event = time.monotonic()
        told = usage.media_tokens
        rest = usage.prompt_tokens - sum((told or {}).values())
        for kind, tokens in (told or {}).items():
            self._prompt.labels(self._model, kind).inc(tokens)
        self._prompt.labels(self._model, "untold" if told is None else "text").inc(rest)
        self._new.inc(usage.new_tokens)
        self._media.inc(usage.encoded_media)
        for name, histogram in (("prefill", self._prefill), ("decode", self._decode)):
            if name in usage.timings_s:
                histogram.observe(usage.timings_s[name])

    def queued(self, seconds: float) -> None:
        """How long a request waited for its turn."""
        self._queue.observe(seconds)

    def finished(self, endpoint: str, seconds: float, reason: str) -> None:
        """A request was answered."""
        self._done.labels(self._model, reason).inc()
        self._e2e.labels(self._model, endpoint).observe(seconds)
        self._e2e_squares.labels(self._model, endpoint).inc(seconds**2)

    def refused(self, reason: str) -> None:
        """A request was not let in."""
        self._refused.labels(self._model, reason).inc()

    def failed(self, stage: str) -> None:
        """A request failed."""
        self._errors.labels(self._model, stage).inc()

    def stopped(self, where: str) -> None:
        """A request was stopped before its end."""
        self._stopped.labels(self._model, where).inc()

    def take(self, load: Load) -> None:
        """What the backend says of itself."""
        self._engine.load = load

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        told = generate_latest(self.registry)
        return told + in_vllms_names(self.registry) if self._compat == "vllm" else told

    def _info(self, name: str, what: str, labels: Mapping[str, str]) -> None:
        gauge = Gauge(f"crossread_{name}", what, tuple(labels), registry=self.registry)
        gauge.labels(**labels).set(1)

    def _gauge(self, name: str, what: str, tell: Callable[[], float]) -> None:
        gauge = Gauge(f"crossread_{name}", what, ("model_name",), registry=self.registry)
        gauge.labels(self._model).set_function(tell)

    def _histogram(
        self, name: str, what: str, buckets: Sequence[float] = _SECONDS, label: str = ""
    ) -> Histogram:
        labels = ("model_name", label) if label else ("model_name",)
        histogram = Histogram(
            f"crossread_{name}", what, labels, buckets=buckets, registry=self.registry
        )
        return self._zeroed(histogram, label)

    def _counter(self, name: str, what: str, label: str = "") -> Counter:
        labels = ("model_name", label) if label else ("model_name",)
        counter = Counter(f"crossread_{name}", what, labels, registry=self.registry)
        return self._zeroed(counter, label)

    def _zeroed(self, metric: Any, label: str) -> Any:
        """The metric with a zero for each known value of its label, for rates to start from."""
        for value in _KNOWN.get(label, ()):
            metric.labels(self._model, value)
        return metric if label else metric.labels(self._model)


def _build() -> dict[str, str]:
    """Versions of what an answer may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    told = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "transformers", "crossread"):
        try:
            told[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was never installed
            told[name] = "unknown"
    return told
