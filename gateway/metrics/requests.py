"""What this gateway measures of requests, from the timestamps that they collect on their way round the ring."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from gateway.metrics import buckets
from gateway.streams import Sequence
from ipc.histogram import Histogram
from ipc.messages import Head, Tail

NS_PER_S = 1e9

# What a request spends its time on, from the gateway to the gateway, in the order in which it happens.
STAGES = ("tokenize", "to_scheduler", "queue", "batch_wait", "first_step", "decode", "deliver")
# What there is a histogram of, in seconds or as a count. "time_per_token" is a sequence's mean after its first token.
BOUNDS = {
    "ttft": buckets.TTFT,
    "inter_token": buckets.INTER_TOKEN,
    "time_per_token": buckets.INTER_TOKEN,
    "e2e": buckets.LATENCY,
    "queue": buckets.QUEUE,
    "inference": buckets.LATENCY,
    "prefill": buckets.LATENCY,
    "decode": buckets.LATENCY,
    "execution": buckets.LATENCY,
    "refusal": buckets.LATENCY,
    "prompt_tokens": buckets.token_counts(),
    "generation_tokens": buckets.token_counts(),
    "params_max_tokens": buckets.token_counts(),
    "params_n": buckets.CHOICES,
}
STATUS_CLASSES = ("2xx", "4xx", "5xx", "left")  # of responses; "left" had nobody any more to be sent to


class RequestMetrics:
    """Histograms of sequences and counters of responses. Everything is a sum, so that gateways add up."""

    def __init__(self) -> None:
        self._histograms = {name: Histogram(bounds) for name, bounds in BOUNDS.items()}
        self._stages = {stage: Histogram(buckets.QUEUE) for stage in STAGES}
        self._inter_token = self._histograms["inter_token"]
        self._refused = 0
        self._responses: dict[tuple[str, str], int] = {}  # by route and class of status
        self._last_ns = -1  # the time of the step whose text came last

    # -- while a sequence runs -----------------------------------------------------------------------------------------

    def text(self, sequences: list[Sequence], time_ns: int) -> None:
        """These sequences got a piece of text each, by the step whose result came at `time_ns`.

        Most of them got their piece before from the step before: their gaps are one and the same.
        """
        regular = 0
        for sequence in sequences:
            last = sequence.last_ns
            sequence.last_ns = time_ns
            if last == self._last_ns:
                regular += 1
            elif last:
                self._inter_token.observe((time_ns - last) / NS_PER_S)
            elif sequence.head is not None and not sequence.whole:
                self._observe("ttft", (time_ns - sequence.head.received_ns) / NS_PER_S)
        if regular:
            self._inter_token.observe((time_ns - self._last_ns) / NS_PER_S, regular)
        self._last_ns = time_ns

    def end(self, sequence: Sequence, tail: Tail) -> None:
        """A sequence is over. What never ran has no times to count."""
        head = sequence.head
        if head is None or not tail.first_token_ns or not head.scheduled_ns:
            return
        first, last, tokens = tail.first_token_ns, tail.finished_ns, tail.completion_tokens
        decode_s = (last - first) / NS_PER_S
        self._observe("e2e", (last - head.received_ns) / NS_PER_S)
        self._observe("queue", (head.scheduled_ns - head.queued_ns) / NS_PER_S)
        self._observe("inference", (last - head.scheduled_ns) / NS_PER_S)
        self._observe("prefill", (first - head.scheduled_ns) / NS_PER_S)
        self._observe("decode", decode_s)
        self._observe("execution", tail.execution_ns / NS_PER_S)
        self._observe("prompt_tokens", head.prompt_tokens)
        self._observe("generation_tokens", tokens)
        if tokens > 1:
            self._observe("time_per_token", decode_s / (tokens - 1))
        if sequence.whole:
            # Its text came in one piece: the first token's time is known, of the other gaps only the mean is.
            self._observe("ttft", (first - head.received_ns) / NS_PER_S)
            if tokens > 1:
                self._inter_token.observe(decode_s / (tokens - 1), tokens - 1)
        self._observe_stages(head, tail)

    def _observe_stages(self, head: Head, tail: Tail) -> None:
        moments = (
            head.received_ns, head.tokenized_ns, head.queued_ns, head.scheduled_ns, tail.started_ns,
            tail.first_token_ns, tail.finished_ns, time.monotonic_ns(),
        )  # fmt: skip
        for stage, (before, after) in zip(STAGES, pairwise(moments), strict=True):
            if before and after:
                self._stages[stage].observe(max(0, after - before) / NS_PER_S)

    # -- requests and responses ----------------------------------------------------------------------------------------

    def asked(self, n: int, max_tokens: int) -> None:
        """A request goes into the ring; `max_tokens` is 0 when it may fill the context."""
        self._observe("params_n", n)
        if max_tokens:
            self._observe("params_max_tokens", max_tokens)

    def refuse(self) -> None:
        """A request is refused before it goes into the ring, because too many are under way."""
        self._refused += 1

    def answered(self, route: str, status: int | None) -> None:
        """A response has been sent, or (None) its client has left. `route` is one of our own, never a client's word."""
        key = (route, "left" if status is None else f"{status // 100}xx")
        self._responses[key] = self._responses.get(key, 0) + 1

    def refused(self, seconds: float) -> None:
        """A response has said that the server is too busy, or not there, so long after its request's first byte."""
        self._observe("refusal", seconds)

    def expect(self, routes: list[str]) -> None:
        """Begin to count the responses of these routes at 0."""
        for route in routes:
            for status in STATUS_CLASSES:
                self._responses.setdefault((route, status), 0)

    def export(self) -> dict[str, Any]:
        """All of it as plain data, to travel in a beat."""
        return {
            "histograms": {name: histogram.export() for name, histogram in self._histograms.items()},
            "stages": {stage: histogram.export() for stage, histogram in self._stages.items()},
            "refused": self._refused,
            "responses": [[route, status, count] for (route, status), count in self._responses.items()],
        }

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)
