"""How fast the queue drains, for the answer to when a refused request should come again."""

from __future__ import annotations

from collections import deque

WINDOW_NS = 10_000_000_000
BUCKET_NS = 500_000_000
SHORTEST_S, LONGEST_S = 1.0, 120.0  # what clients obey: shorter makes them hurry, longer makes them give up


class DrainRate:
    """Requests, and tokens of their prompts, that left the server during the last seconds, in buckets of half a one."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, int, int]] = deque()  # bucket number, requests, tokens
        self._since = 0  # when the first one left, ns

    def left(self, tokens: int, now: int) -> None:
        """A request that had been taken in has ended, whatever its end."""
        self._since = self._since or now
        number = now // BUCKET_NS
        if self._buckets and self._buckets[-1][0] == number:
            _, requests, sum_of_tokens = self._buckets.pop()
            self._buckets.append((number, requests + 1, sum_of_tokens + tokens))
        else:
            self._forget(now)
            self._buckets.append((number, 1, tokens))

    def retry_after_s(self, requests: int, tokens: int, now: int) -> float:
        """How long it takes until so many requests, with so many tokens, have left at the present rate.

        Between 1 and 120 s. When nothing has left for 10 s the rate is unknown, and that time is the answer.
        """
        self._forget(now)
        gone = sum(bucket[1] for bucket in self._buckets)
        gone_tokens = sum(bucket[2] for bucket in self._buckets)
        if not gone or not gone_tokens:
            return WINDOW_NS / 1e9
        span_s = min(WINDOW_NS, max(BUCKET_NS, now - self._since)) / 1e9
        wait_s = max(requests / gone, tokens / gone_tokens) * span_s
        return min(LONGEST_S, max(SHORTEST_S, wait_s))

    def _forget(self, now: int) -> None:
        while self._buckets and self._buckets[0][0] * BUCKET_NS < now - WINDOW_NS:
            self._buckets.popleft()
