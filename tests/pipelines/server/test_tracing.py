"""Spans by OpenTelemetry's own in-memory exporter: what they tell, and what they never do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from encoders.errors import InvalidOption
from multimodal.backends import Finished, Usage
from pipelines.server import tracing
from pipelines.server.cluster import build
from pipelines.server.process import run_server
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running, serving
from tests.pipelines.server.test_readings import REPORT, Reader

SPENT = {"prefill": 0.1, "decode": 0.3}
# vLLM's, beside the conventions' own
LATENCIES = {
    f"gen_ai.latency.time_in_{what}" for what in ("queue", "model_prefill", "model_decode")
}


class Spending(Gated):
    def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
        for event in super().generate(messages, options):
            if isinstance(event, Finished):
                event = Finished(event.text, "length", Usage(50, 3, 0, SPENT))
            yield event


@contextmanager
def traced(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, list[ReadableSpan]]]:  # fmt: skip
    """A server with spans; the list is filled when the server has ended."""
    kept, spans = InMemorySpanExporter(), list[ReadableSpan]()
    monkeypatch.setattr(tracing, "exporter", lambda: kept)
    with serving(backend, Settings(otel=True)) as server:
        yield server, spans
    spans += kept.get_finished_spans()


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_an_answers_span_lies_in_its_requests_and_tells_what_it_cost(
    monkeypatch: pytest.MonkeyPatch,
):
    with traced(Spending().open(), monkeypatch) as (server, spans), server.http() as http:
        body = server.chat(temperature=0.5, top_p=0.9, seed=7, max_tokens=11)
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    answer, request = spans
    assert (request.name, request.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert answer.name == "chat fake"
    assert answer.parent is not None
    assert answer.parent.span_id == request.context.span_id
    assert request.parent is None
    seen = told(answer)
    assert 0 <= seen.pop("gen_ai.latency.time_in_queue") < 60
    assert 0 <= seen.pop("gen_ai.response.time_to_first_chunk") < 60
    assert seen == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "crossread",
        "gen_ai.request.model": "fake", "gen_ai.response.model": "fake",
        "gen_ai.request.max_tokens": 11, "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9, "gen_ai.request.top_k": 0, "gen_ai.request.seed": 7,
        "gen_ai.request.frequency_penalty": 0.0, "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.output.type": "text", "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 50, "gen_ai.usage.output_tokens": 3,
        "gen_ai.latency.time_in_model_prefill": 0.1, "gen_ai.latency.time_in_model_decode": 0.3,
    }  # fmt: skip
    assert {answer.status.status_code, request.status.status_code} == {StatusCode.UNSET}
    conventions = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    assert set(told(answer)) <= conventions | LATENCIES


def test_a_callers_trace_goes_on(monkeypatch: pytest.MonkeyPatch):
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with traced(Gated().open(), monkeypatch) as (server, spans), server.http() as http:
        headers = {"traceparent": f"00-{trace}-{caller}-01"}  # W3C Trace Context, 3.2
        http.post("/v1/chat/completions", json=server.chat(stream=True), headers=headers)
    answer, request = spans
    assert {f"{span.context.trace_id:032x}" for span in spans} == {trace}
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == caller
    assert "error.type" not in told(answer)  # whoever has the last event hangs up


def test_every_question_of_a_reading_lies_in_one_trace(
    monkeypatch: pytest.MonkeyPatch, phantom_series: Path
):
    with traced(Reader(), monkeypatch) as (server, spans), server.http() as http:
        files = sorted(phantom_series.iterdir())
        names = [server.client().files.create(file=f, purpose="user_data").id for f in files]
        answer = http.post("/v1/readings", json={"study": names, "report": REPORT})
        assert answer.status_code == 200
    (request,) = [s for s in spans if s.kind is SpanKind.SERVER]
    answers = [s for s in spans if s is not request]
    assert len(answers) == answer.json()["reading"]["usage"]["questions"] > 1
    assert {s.parent and s.parent.span_id for s in answers} == {request.context.span_id}


def test_no_word_of_anybody_is_in_a_span(monkeypatch: pytest.MonkeyPatch):
    """Words of the request, its stop string, a schema, and of the error that it brings."""
    schema = {"type": "object", "properties": {"Zebra": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "Zebra", "schema": schema}}
    with traced(Gated().open(), monkeypatch) as (server, spans), server.http() as http:
        for text in ("Zebra^Quagga", "poison Zebra^Quagga"):
            http.post(
                "/v1/chat/completions",
                json=server.chat(text, stop="Zebra", response_format=form),
                headers={"X-Request-ID": "Zebra", "User-Agent": "Zebra"},
            )
        http.post("/v1/chat/completions", json=server.chat("Zebra", tools=[{"Zebra": 1}]))
    written = "".join(span.to_json() for span in spans)
    assert "Zebra" not in written
    assert "Mustermann" not in written
    assert "word" not in written  # of the answers
    assert not any(span.events for span in spans)
    assert [told(s)["gen_ai.output.type"] for s in spans if s.name == "chat fake"] == ["json"] * 2


def test_a_failure_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch):
    with traced(Gated().open(), monkeypatch) as (server, spans), server.http() as http:
        http.post("/v1/chat/completions", json=server.chat("poison"))
        http.post("/v1/chat/completions", json=server.chat(n=2))
    kinds = {(s.name, told(s)["error.type"], s.status.status_code) for s in spans}
    assert kinds == {
        ("chat fake", "runtime_error", StatusCode.ERROR),
        ("POST /v1/chat/completions", "runtime_error", StatusCode.ERROR),
        ("POST /v1/chat/completions", "validation_error", StatusCode.ERROR),
    }
    assert all(s.status.description is None for s in spans)


def test_there_are_none_unless_asked_for(monkeypatch: pytest.MonkeyPatch):
    def never() -> Any:
        raise AssertionError("an exporter was made")

    monkeypatch.setattr(tracing, "exporter", never)
    with serving(Gated().open()) as server, server.http() as http:
        assert http.post("/v1/chat/completions", json=server.chat()).status_code == 200


def test_without_opentelemetry_the_flag_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidOption, match=r"pip install 'crossread\[otel\]'"):
        run_server(Gated, Settings(otel=True), port=0)
    with pytest.raises(InvalidOption, match=r"pip install 'crossread\[otel\]'"):
        build({"folder": "x", "otel": True})
