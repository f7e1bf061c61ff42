"""What many requests amount to: throughput, percentiles, failures. The same for live and simulated runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.client import Measured
from benchmark.load import Run

# Of a response's `timings`, those that are averaged.
STAGES = ("tokenize_ms", "queue_ms", "batch_wait_ms", "prefill_ms", "decode_ms", "execution_ms")


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of values in rising order: the smallest that `percent` % of them do not exceed.

    Raises ValueError when there are no values.
    """
    if not ordered:
        raise ValueError("no values, no percentile")
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and nearest-rank percentiles of one quantity, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of these values; None when there are none."""
        if not values:
            return None
        ordered = np.sort(np.array(values)).tolist()
        return cls(math.fsum(ordered) / len(ordered), *(percentile(ordered, percent) for percent in (50, 90, 99)))


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """What the client saw. Failed requests are in `failed` and `errors`, and in no other figure."""

    requests: int
    succeeded: int
    failed: int
    wall_s: float
    req_s: float  # successes a second
    output_tok_s: float
    latency: Spread | None
    ttft: Spread | None
    tbt: Spread | None  # gaps between pieces of text within a request; None for unary ones
    stages_ms: dict[str, float]  # means of what the responses' `timings` say; see gateway/timings.py
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    client_cores: float  # how much of a core the client itself took
    errors: dict[str, int]  # the commonest ones, with their numbers


def summarize(run: Run) -> ClientFigures:
    good = [measured for measured in run.measured if measured.succeeded]
    wrong = Counter(m.error or f"finish_reason {m.finish_reason}" for m in run.measured if not m.succeeded)
    completion_tokens = sum(measured.completion_tokens for measured in good)
    return ClientFigures(
        requests=len(run.measured),
        succeeded=len(good),
        failed=len(run.measured) - len(good),
        wall_s=run.wall_s,
        req_s=len(good) / run.wall_s,
        output_tok_s=completion_tokens / run.wall_s,
        latency=Spread.of([measured.latency for measured in good]),
        ttft=Spread.of([measured.ttft for measured in good]),
        tbt=Spread.of([gap for measured in good for gap in measured.itls]),
        stages_ms=_stages(good),
        prompt_tokens=sum(measured.prompt_tokens for measured in good),
        cached_tokens=sum(measured.cached_tokens for measured in good),
        completion_tokens=completion_tokens,
        client_cores=run.client_cpu_s / run.wall_s,
        errors=dict(wrong.most_common(5)),
    )


def _stages(measured: Sequence[Measured]) -> dict[str, float]:
    """The mean of each stage over the requests that went through it; a server may say nothing of some or all."""
    means = {}
    for stage in STAGES:
        times = [one.timings[stage] for one in measured if one.timings.get(stage) is not None]
        if times:
            means[stage] = math.fsum(times) / len(times)
    return means
