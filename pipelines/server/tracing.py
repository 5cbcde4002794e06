"""OpenTelemetry's spans: one for each request, and in it one for each answer of the model, by `gen_ai`.

Off unless asked for. Attributes are the model's name, options that are numbers, counts, times and the
class of an error: nothing that anybody said, showed or is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from encoders.errors import InvalidOption
from multimodal.backends import Finished, GenerateOptions, Token
from pipelines.server.failures import code_of

_TOLD = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
_LATENCIES = {"prefill": "time_in_model_prefill", "decode": "time_in_model_decode"}  # as vLLM's


def exporter() -> Any:
    """Sends spans by OTLP over HTTP, to where `OTEL_EXPORTER_OTLP_ENDPOINT` says.

    Raises:
        InvalidOption: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise InvalidOption("--otel needs OpenTelemetry: pip install 'crossread[otel]'") from None
    return OTLPSpanExporter()


@dataclass(frozen=True)
class Trace:
    """One request's spans; none without a tracer."""

    model: str = ""
    tracer: Any = None
    context: Any = None

    @contextmanager
    def answer(
        self, options: GenerateOptions, queue_s: float
    ) -> Iterator[Callable[[Token | Finished], None]]:
        """The span of one answer of the model; gives what takes its events."""
        if self.tracer is None:
            yield lambda _: None
            return
        told = {f"gen_ai.request.{name}": getattr(options, name) for name in _TOLD}
        attributes = {name: value for name, value in told.items() if value is not None} | {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "crossread",
            "gen_ai.request.model": self.model,
            "gen_ai.response.model": self.model,
            "gen_ai.request.max_tokens": options.max_new_tokens,
            "gen_ai.output.type": "json" if options.json_schema else "text",
            "gen_ai.latency.time_in_queue": queue_s,
        }
        span = self.tracer.start_span(f"chat {self.model}", self.context, attributes=attributes)
        answer = _Answer(span)
        with _ended(span, lambda: answer.is_whole):
            yield answer.take


class Tracing:
    """The spans of one server.

    Args:
        model: name of the model.
        on: whether there are any.

    Raises:
        InvalidOption: OpenTelemetry is not installed.
    """

    def __init__(self, model: str, *, on: bool) -> None:
        self._model = model
        self._provider: Any = None
        if not on:
            return
        sends = exporter()
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "crossread"}))
        self._provider.add_span_processor(BatchSpanProcessor(sends))

    @contextmanager
    def request(self, path: str, headers: Mapping[str, str]) -> Iterator[Trace]:
        """A request's span, a child of its caller's by W3C's `traceparent`."""
        if self._provider is None:
            yield Trace()
            return
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        caller = TraceContextTextMapPropagator().extract(headers)
        tracer = self._provider.get_tracer("crossread")
        route = {"http.request.method": "POST", "http.route": path}
        span = tracer.start_span(f"POST {path}", caller, SpanKind.SERVER, route)
        with _ended(span):
            yield Trace(self._model, tracer, set_span_in_context(span))

    def close(self) -> None:
        """Send what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


class _Answer:
    """An answer under way, as its span tells of it."""

    def __init__(self, span: Any) -> None:
        self._span, self._started, self._has_begun = span, time.monotonic(), False
        self.is_whole = False

    def take(self, event: Token | Finished) -> None:
        if isinstance(event, Token):
            if not self._has_begun:
                waited_s = time.monotonic() - self._started
                self._span.set_attribute("gen_ai.response.time_to_first_chunk", waited_s)
            self._has_begun = True
            return
        self.is_whole = True
        usage = event.usage
        self._span.set_attribute("gen_ai.response.finish_reasons", (event.reason,))
        self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", usage.new_tokens)
        for stage, name in _LATENCIES.items():
            if stage in usage.timings_s:
                self._span.set_attribute(f"gen_ai.latency.{name}", usage.timings_s[stage])


@contextmanager
def _ended(span: Any, is_whole: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """End a span with the block; of an error the class is told and never the words.

    What comes after a whole answer (whoever has it stops listening) is no error.
    """
    from opentelemetry.trace import StatusCode

    try:
        yield
    except BaseException as error:  # cancelling too; it goes on its way
        if not is_whole():
            span.set_attribute("error.type", getattr(error, "code", code_of(error)))
            span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()
