"""What is noted of requests while they pass through: for the metrics page, and the last ones for those who watch."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from gateway.metrics.requests import RequestMetrics
from gateway.request import Job
from gateway.streams import Sequence, Stream
from gateway.timings import NS_PER_MS
from ipc.messages import REASON_NAMES, Tail

REMEMBERED = 128  # sequences that have ended


class Observer:
    """The engine tells it what happens; it never waits, and changes nothing."""

    def __init__(self) -> None:
        self.metrics = RequestMetrics()
        self.num_ended = 0  # sequences, of all times
        self._ended: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    def submitted(self, job: Job) -> None:
        """A request goes into the ring."""
        self.metrics.asked(job.n, job.generates[0].sampling.max_tokens)

    def text(self, sequences: list[Sequence], time_ns: int) -> None:
        """Text has come for these sequences, from the step whose result came at `time_ns`."""
        self.metrics.text(sequences, time_ns)

    def ended(self, sequence: Sequence, tail: Tail) -> None:
        """A sequence has come to its end."""
        self.metrics.end(sequence, tail)
        self._remember(sequence, REASON_NAMES[tail.reason], tail)

    def left(self, stream: Stream) -> None:
        """A request is over for its client; those of its sequences that go on are aborted."""
        for sequence in stream.sequences:
            if not sequence.over:
                self._remember(sequence, "left", None)

    def ended_since(self, number: int) -> list[dict[str, Any]]:
        """The sequences that ended behind the first `number` of all, as far as they are remembered."""
        missed = min(self.num_ended - number, len(self._ended))
        return list(self._ended)[len(self._ended) - missed :]

    def _remember(self, sequence: Sequence, reason: str, tail: Tail | None) -> None:
        self.num_ended += 1
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
        self._ended.append(entry)


def _ms(time_ns: int) -> float | None:
    """A moment, or a time, in milliseconds; None for what has not happened."""
    return round(time_ns / NS_PER_MS, 3) if time_ns else None
