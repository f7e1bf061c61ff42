"""One span a request, for OpenTelemetry."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.streams import Stream
from gateway.tracing import RequestTracer
from ipc.messages import Refusal
from ipc.process import FatalError
from tests.gateway.scripted_ring import ScriptedRing

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


@pytest.fixture
def spans(ring: ScriptedRing) -> Iterator[InMemorySpanExporter]:
    """What the gateway on the scripted ring exports."""
    exporter = InMemorySpanExporter()
    tracer = ring.engine.observer.tracer = RequestTracer("", exporter)
    yield exporter
    tracer.close()


def only(spans: InMemorySpanExporter, ring: ScriptedRing) -> ReadableSpan:
    assert ring.engine.observer.tracer is not None
    ring.engine.observer.tracer._provider.force_flush()
    [span] = spans.get_finished_spans()
    return span


async def test_a_span_continues_the_clients_trace(
    ring: ScriptedRing, http: aiohttp.ClientSession, spans: InMemorySpanExporter, chat_body: dict[str, object]
) -> None:
    ring.script = lambda generate: ring.answer(generate, ["a", "b"])
    body = chat_body | {"request_id": "mine", "temperature": 0.5, "max_tokens": 2, "stop": ["x"]}
    async with http.post("/v1/chat/completions", json=body, headers=HEADERS) as response:
        assert response.status == 200
        await response.read()
    span = only(spans, ring)
    assert span.name == "chat tiny"
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.attributes is not None
    found = dict(span.attributes)
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "tiny", "gen_ai.response.id": "mine",
        "gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": 2, "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("length",), "gen_ai.latency.time_in_queue": pytest.approx(0.001),
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert span.status.is_ok or span.status.is_unset
    assert span.resource.attributes["service.name"] == "quintet"
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time > span.start_time


async def test_a_failed_request_is_an_error(
    ring: ScriptedRing, http: aiohttp.ClientSession, spans: InMemorySpanExporter, chat_body: dict[str, object]
) -> None:
    ring.script = lambda generate: ring.refuse(generate, Refusal(429, "overloaded_error", "the queue is full"))
    async with http.post("/v1/chat/completions", json=chat_body, headers={"traceparent": "nonsense"}) as response:
        assert response.status == 429
    span = only(spans, ring)
    assert span.parent is None
    assert not span.status.is_ok
    assert span.attributes is not None
    assert span.attributes["error.type"] == "429"


async def test_spans_reach_a_collector(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, object]
) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    tracer = ring.engine.observer.tracer = RequestTracer(f"http://127.0.0.1:{server.server_port}/v1/traces")
    ring.script = lambda generate: ring.answer(generate, ["a"])
    async with http.post("/v1/chat/completions", json=chat_body) as response:
        await response.read()
    tracer.close()
    server.shutdown()
    thread.join()
    server.server_close()
    message = ExportTraceServiceRequest.FromString(received[0])
    [span] = message.resource_spans[0].scope_spans[0].spans
    assert span.name == "chat tiny"


async def test_a_span_that_cannot_be_made_harms_nobody(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(stream: Stream) -> None:
        raise RuntimeError("broken")

    tracer = ring.engine.observer.tracer = RequestTracer("", InMemorySpanExporter())
    monkeypatch.setattr(tracer, "closed", broken)
    ring.script = lambda generate: ring.answer(generate, ["a"])
    async with http.post("/v1/chat/completions", json=chat_body) as response:
        assert response.status == 200
    assert ring.engine.in_flight()["requests"] == 0
    tracer.close()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(FatalError, match=r"quintet\[otel\]"):
        RequestTracer("http://localhost:4318/v1/traces")
