"""OpenTelemetry: one span for every request, with the attributes of the gen_ai conventions.

It is an extra: `pip install "quintet[otel]"`, and `--otlp-traces-endpoint URL`. A span is made when its request is
over, from the timestamps that the request has collected; it continues the trace of the client's `traceparent` header,
if there is one. They are sent in batches by a thread of the library. What its environment variables (OTEL_...) say
holds, but for the endpoint.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from gateway.streams import Stream
from gateway.timings import NS_PER_S
from ipc.messages import REASON_NAMES, Sampling
from ipc.process import FatalError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PROVIDER = "quintet"
TRACE_HEADERS = ("traceparent", "tracestate")


class RequestTracer:
    """Makes the spans. `exporter` is for tests; else they go to `endpoint`, as protobuf over HTTP."""

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        """Raises FatalError when the library is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise FatalError(
                '--otlp-traces-endpoint needs OpenTelemetry: pip install "quintet[otel]", or leave the option out'
            ) from None
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: PROVIDER}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("quintet")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._error = Status(StatusCode.ERROR)

    def closed(self, stream: Stream) -> None:
        """A request is over for its client."""
        job = stream.job
        offset_ns = time.time_ns() - time.monotonic_ns()  # spans have the time of day
        name = f"{_operation(stream)} {job.model}"
        context = self._propagator.extract(job.trace_context)
        span = self._tracer.start_span(
            name, context, self._kind, attributes=attributes(stream), start_time=job.received_ns + offset_ns
        )
        if stream.failure is not None:
            span.set_status(self._error)
        for index, (_, tail) in enumerate(stream.ends):
            if tail.first_token_ns:
                span.add_event("first token", {"gen_ai.choice.index": index}, tail.first_token_ns + offset_ns)
        span.end(time.time_ns())

    def close(self) -> None:
        """Send what is left; waits for it."""
        self._provider.shutdown()


def attributes(stream: Stream) -> dict[str, Any]:
    """What a span says of a request: what it asked for, and what came of it."""
    job = stream.job
    sampling: Sampling = job.generates[0].sampling
    found: dict[str, Any] = {
        "gen_ai.operation.name": _operation(stream),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": job.model,
        "gen_ai.response.model": job.model,
        "gen_ai.response.id": job.request_id,
        "gen_ai.request.choice.count": job.n,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
    }
    if sampling.top_k:
        found["gen_ai.request.top_k"] = sampling.top_k
    if sampling.max_tokens:
        found["gen_ai.request.max_tokens"] = sampling.max_tokens
    if job.generates[0].output.stop:
        found["gen_ai.request.stop_sequences"] = list(job.generates[0].output.stop)
    usage = stream.usage()
    found["gen_ai.usage.input_tokens"] = usage["prompt_tokens"]
    found["gen_ai.usage.output_tokens"] = usage["completion_tokens"]
    found["gen_ai.usage.cache_read.input_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]
    ends = stream.ends
    if stream.failure is not None:
        found["error.type"] = str(stream.failure.status)
    elif len(ends) < len(stream.sequences):
        found["gen_ai.response.finish_reasons"] = ["left"]  # its client went away
    else:
        found["gen_ai.response.finish_reasons"] = [REASON_NAMES[tail.reason] for _, tail in ends]
    if ends:
        head, tail = min(ends, key=lambda end: end[1].first_token_ns)
        found["gen_ai.latency.time_in_queue"] = (head.scheduled_ns - head.queued_ns) / NS_PER_S
        found["gen_ai.server.time_to_first_token"] = (tail.first_token_ns - head.received_ns) / NS_PER_S
        found["gen_ai.latency.e2e"] = (max(end[1].finished_ns for end in ends) - head.received_ns) / NS_PER_S
    return found


def _operation(stream: Stream) -> str:
    generate = stream.job.generates[0]
    if generate.sampling.pooling:
        return "embeddings"
    return "chat" if generate.chat is not None else "text_completion"
