"""Bounds of the histograms. Each holds every bound that vLLM has, so that its dashboards work, and finer ones below:
a small model is done before vLLM's first bound. Times are in seconds."""

from __future__ import annotations

TTFT = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1,
    2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
# Between two outputs of one sequence; also a sequence's mean time a token.
INTER_TOKEN = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05,
    0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
_LONG = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
LATENCY = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, *_LONG)  # prefill, decode, inference, end to end
QUEUE = (0.0001, 0.0002, 0.0005, *LATENCY)  # waiting, and every stage that a process has of its own
CHOICES = (1, 2, 5, 10, 20)
LONGEST_CONTEXT = 1 << 20


def token_counts(longest: int = LONGEST_CONTEXT) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, ... up to `longest`."""
    return tuple(step * 10**power for power in range(10) for step in (1, 2, 5) if step * 10**power <= longest)
