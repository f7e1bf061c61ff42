"""What the requests of a level amount to: the names and the definitions of `vllm bench serve`, and some of our own.

Everything is over the requests that succeeded. Percentiles are interpolated linearly, as numpy does it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmark.serving.traffic import Sent, Traffic

METRICS = ("ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue")
SLO_METRICS = ("ttft", "tpot", "e2el")

DEFINITIONS = {
    "ttft": "send -> first piece of the answer; a piece is an event with a choice, of a chat one with content, "
    "reasoning or tool calls",
    "tpot": "(e2el - ttft) / (output tokens - 1), of answers with more than one token",
    "itl": "gap between pieces, not divided by the tokens in them",
    "e2el": "send -> last piece; the event with the usage does not count",
    "client_queue_time": "arrival -> send: the wait for --max-concurrency; part of no other time but "
    "e2el_including_client_queue",
    "output tokens": "usage.completion_tokens, never the number of pieces; input tokens are usage.prompt_tokens",
    "duration": "first arrival -> end of the last answer; throughputs are totals by it",
    "request_goodput": "requests a second that meet every objective of --goodput (tpot counts as 0 for one token)",
    "max_output_tokens_per_s": "the most tokens of any whole second from the first send; an answer's tokens count "
    "evenly for its pieces",
    "max_concurrent_requests": "the most requests between send and last piece",
    "latencies, queue_times": "e2el and client_queue_time of every request in seconds, 0 for what failed",
    "percentiles": "interpolated linearly, over the requests that succeeded",
    "rtfx": "of audio models; always 0",
    "client_cores": "CPU time of this client by the duration: near 1 the client measures itself",
    "client_lag_ms": "how late the client was when a request was due",
}
"""What the figures mean; written into every file of results."""


def level_metrics(
    traffic: Traffic,
    metrics: Sequence[str] = ("ttft", "tpot", "itl"),
    percentiles: Sequence[float] = (99,),
    objectives: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The figures of one level under the keys of `vllm bench serve`; `objectives` are upper bounds in milliseconds."""
    good = [sent for sent in traffic.sent if not sent.measured.error]
    failed = [sent for sent in traffic.sent if sent.measured.error]
    values = times_s(good)
    input_tokens = sum(_input_tokens(sent) for sent in good)
    output_tokens = sum(sent.measured.completion_tokens for sent in good)
    tokens_per_s, concurrent = peaks(good)
    goodput = None
    if objectives:
        goodput = sum(meets(sent, objectives) for sent in good) / traffic.duration
    result: dict[str, Any] = {
        "duration": traffic.duration,
        "completed": len(good),
        "failed": len(failed),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(good) / traffic.duration,
        "request_goodput": goodput,
        "output_throughput": output_tokens / traffic.duration,
        "total_token_throughput": (input_tokens + output_tokens) / traffic.duration,
        "max_output_tokens_per_s": tokens_per_s,
        "max_concurrent_requests": concurrent,
        "rtfx": 0.0,
        "latencies": [sent.measured.latency for sent in traffic.sent],
        "queue_times": [sent.client_queue for sent in traffic.sent],
    }
    for name in metrics:
        result |= spread_ms(name, values[name], percentiles)
    pieces = sum(len(sent.measured.itls) + 1 for sent in good)
    return result | {
        "total_cached_tokens": sum(sent.measured.cached_tokens for sent in good),
        "tokens_per_piece": output_tokens / pieces if pieces else 0.0,
        "client_cores": traffic.client_cpu_s / traffic.duration,
        "client_us_per_piece": 1e6 * traffic.client_cpu_s / pieces if pieces else 0.0,
        "client_lag_ms": 1000 * max((sent.lag for sent in traffic.sent), default=0.0),
        "error_counts": dict(Counter(sent.measured.error for sent in failed).most_common(10)),
    }


def details(traffic: Traffic) -> dict[str, list[Any]]:
    """One entry a request, failed ones included, in the order of their arrival."""
    measured = [sent.measured for sent in traffic.sent]
    return {
        "input_lens": [_input_tokens(sent) for sent in traffic.sent],
        "output_lens": [one.completion_tokens for one in measured],
        "start_times": [one.sent for one in measured],
        "ttfts": [one.ttft for one in measured],
        "itls": [one.itls for one in measured],
        "generated_texts": [one.text for one in measured],
        "errors": [one.error for one in measured],
        "server_queue_times": [_seconds(one.metrics.get("queue_time_ms")) for one in measured],
        "server_ttfts": [_seconds(one.metrics.get("time_to_first_token_ms")) for one in measured],
    }


def times_s(good: Sequence[Sent]) -> dict[str, list[float]]:
    """The values of every metric over requests that succeeded, in seconds."""
    return {
        "ttft": [sent.measured.ttft for sent in good],
        "tpot": [sent.measured.tpot for sent in good if sent.measured.completion_tokens > 1],
        "itl": [gap for sent in good for gap in sent.measured.itls],
        "e2el": [sent.measured.latency for sent in good],
        "client_queue_time": [sent.client_queue for sent in good],
        "e2el_including_client_queue": [sent.client_queue + sent.measured.latency for sent in good],
    }


def spread_ms(name: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles of one metric; zeros when it has no values."""
    milliseconds = 1000 * np.array(values if len(values) else [0.0])
    spread = {
        f"mean_{name}_ms": float(np.mean(milliseconds)),
        f"median_{name}_ms": float(np.median(milliseconds)),
        f"std_{name}_ms": float(np.std(milliseconds)),
    }
    for percent in percentiles:
        spread[f"p{percent:g}_{name}_ms"] = float(np.percentile(milliseconds, percent))
    return spread


def meets(sent: Sent, objectives: Mapping[str, float]) -> bool:
    """Whether a request that succeeded meets all objectives, which are in milliseconds."""
    measured = sent.measured
    has = {"ttft": measured.ttft, "tpot": measured.tpot, "e2el": measured.latency}
    return all(1000 * has[name] <= limit for name, limit in objectives.items())


def peaks(good: Sequence[Sent]) -> tuple[float, int]:
    """The most output tokens of a second, and the most requests in flight."""
    if not good:
        return 0.0, 0
    first = min(sent.measured.sent for sent in good)
    last = max(sent.measured.sent + sent.measured.latency for sent in good)
    tokens = np.zeros(math.ceil(last - first) + 1)
    changes = []
    for sent in good:
        measured = sent.measured
        gaps = np.cumsum([measured.sent - first + measured.ttft, *measured.itls])
        np.add.at(tokens, gaps.astype(int), measured.completion_tokens / len(gaps))
        changes += [(measured.sent, 1), (measured.sent + measured.latency, -1)]
    in_flight = np.cumsum([change for _, change in sorted(changes)])
    return float(tokens.max()), int(in_flight.max())


def _input_tokens(sent: Sent) -> int:
    return sent.measured.prompt_tokens or sent.request.prompt_tokens


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
