"""What is noted of requests while they pass through: for the metrics page, and the last ones for those who watch."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from gateway.metrics.requests import RequestMetrics
from gateway.request import Job
from gateway.streams import Sequence, Stream
from gateway.timings import NS_PER_MS
from gateway.tracing import RequestTracer
from ipc.messages import REASON_NAMES, Tail
from ipc.spans import READ, Spans

REMEMBERED = 128  # sequences that have ended
RECORDED = 1 << 14  # sequences in a profile

log = logging.getLogger(__name__)


class Ended:
    """The last sequences that have ended, for readers who come back for what is new."""

    def __init__(self) -> None:
        self.count = 0  # of all times
        self._last: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    def add(self, entry: dict[str, Any]) -> None:
        self.count += 1
        self._last.append(entry)

    def since(self, number: int) -> list[dict[str, Any]]:
        """Those behind the first `number` of all, as far as they are remembered."""
        missed = min(self.count - number, len(self._last))
        return list(self._last)[len(self._last) - missed :]


class Observer:
    """The engine tells it what happens; it never waits, and changes nothing."""

    def __init__(self) -> None:
        self.spans = Spans()  # the process's own, once there is one
        self._over: dict[int, tuple[Sequence, Tail, int]] = {}  # while recording: by rid, and when their end came
        # Sequences whose responses are sent, the last ones: the fields of `Recorded`.
        self._recorded: deque[list[Any]] = deque(maxlen=RECORDED)
        self.metrics = RequestMetrics()
        self.tracer: RequestTracer | None = None  # makes a span of each request
        self.ended_sequences = Ended()

    def submitted(self, job: Job) -> None:
        """A request has gone into the ring."""
        if self.spans.on:
            for generate in job.generates:
                self.spans.add(READ, generate.received_ns, generate.rid, generate.n)
        self.metrics.asked(job.n, job.generates[0].sampling.max_tokens)

    def text(self, sequences: list[Sequence], time_ns: int) -> None:
        """Text has come for these sequences, from the step whose result came at `time_ns`."""
        self.metrics.text(sequences, time_ns)

    def ended(self, sequence: Sequence, tail: Tail) -> None:
        """A sequence has come to its end."""
        self.metrics.end(sequence, tail)
        self._remember(sequence, REASON_NAMES[tail.reason], tail)
        if self.spans.on:
            self._over[tail.rid] = (sequence, tail, time.monotonic_ns())

    def closed(self, stream: Stream) -> None:
        """A request is over for its client; those of its sequences that go on are aborted."""
        for sequence in stream.sequences:
            if not sequence.over:
                self._remember(sequence, "left", None)
        if self.spans.on:
            now = time.monotonic_ns()
            for rid in stream.rids:
                if (end := self._over.pop(rid, None)) is not None:
                    self._recorded.append(_recorded(*end, now))
        if self.tracer is not None:
            try:
                self.tracer.closed(stream)
            except Exception:
                log.exception("there is no span of request %s", stream.job.request_id)

    def record(self, on: bool) -> list[list[Any]]:
        """Begin or end to keep the ways of sequences, for a profile. What was kept until now."""
        recorded = [] if on else list(self._recorded)
        self._recorded.clear()
        self._over.clear()
        return recorded

    def _remember(self, sequence: Sequence, reason: str, tail: Tail | None) -> None:
        head, job = sequence.head, sequence.job
        now = time.monotonic_ns()
        entry = {
            "id": job.request_id,
            "index": sequence.index,
            "reason": reason,
            "status": tail.refusal.status if tail is not None and tail.refusal is not None else None,
            "output_tokens": sequence.num_tokens if tail is None else tail.completion_tokens,
            "received_ms": _ms(job.received_ns),
            "ended_ms": _ms(now),
        }
        if head is not None:
            entry |= {
                "prompt_tokens": head.prompt_tokens,
                "cached_tokens": head.cached_tokens,
                "tokenized_ms": _ms(head.tokenized_ns),
                "queued_ms": _ms(head.queued_ns),
                "scheduled_ms": _ms(head.scheduled_ns),
            }
        if tail is not None:
            entry |= {
                "started_ms": _ms(tail.started_ns),
                "first_token_ms": _ms(tail.first_token_ns),
                "finished_ms": _ms(tail.finished_ns),
                "preemptions": tail.preemptions,
                "execution_ms": _ms(tail.execution_ns),
                "batch_size": round(tail.batch_size, 2),
            }
        self.ended_sequences.add(entry)


def _recorded(sequence: Sequence, tail: Tail, delivered_ns: int, sent_ns: int) -> list[Any]:
    """The fields of `gateway.profiling.parts.Recorded`, in their order."""
    head, job = sequence.head, sequence.job
    generate = job.generates[sequence.index // job.n]
    return [
        tail.rid, generate.rid, job.request_id, REASON_NAMES[tail.reason], head.prompt_tokens if head else 0,
        tail.completion_tokens, tail.first_step, job.received_ns, head.tokenized_ns if head else 0,
        head.queued_ns if head else 0, head.scheduled_ns if head else 0, tail.started_ns, tail.first_token_ns,
        tail.finished_ns, delivered_ns, sent_ns,
    ]  # fmt: skip


def _ms(time_ns: int) -> float | None:
    """A moment, or a time, in milliseconds; None for what has not happened."""
    return round(time_ns / NS_PER_MS, 3) if time_ns else None
