"""The latest point of the plots on the live page: what happened within the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.metrics.figures import Figures

WINDOW_NS = 2_000_000_000  # what a point looks back on
QUANTILES = {"p50": 0.5, "p99": 0.99}


class Series:
    """Makes a point from what the counts were up to WINDOW_NS ago and what they are now."""

    def __init__(self) -> None:
        self._past: deque[tuple[int, dict[str, Any]]] = deque()

    def point(self, figures: Figures, now_ns: int) -> dict[str, Any]:
        """Rates a second, and times in milliseconds; null for what did not happen."""
        now = {
            "generated": figures.tally.get("generated_tokens", 0),
            "prefilled": figures.tally.get("step_tokens", {}).get("prefill", 0),
            "steps": figures.scheduler.get("steps", 0),
            "ended": sum(figures.tally.get("ends", {}).values()),
            "ttft": figures.histogram("ttft"),
            "inter_token": figures.histogram("inter_token"),
            "e2e": figures.histogram("e2e"),
        }
        while len(self._past) > 1 and now_ns - self._past[0][0] > WINDOW_NS:
            self._past.popleft()
        if self._past and now_ns - self._past[-1][0] > WINDOW_NS:
            self._past.clear()  # nobody watched meanwhile
        then_ns, then = self._past[0] if self._past else (now_ns, now)
        self._past.append((now_ns, now))
        seconds = (now_ns - then_ns) / 1e9

        def rate(name: str) -> float:
            return round(max(0, now[name] - then[name]) / seconds, 2) if seconds else 0.0

        return {
            "generated_tokens_s": rate("generated"),
            "prefill_tokens_s": rate("prefilled"),
            "steps_s": rate("steps"),
            "requests_s": rate("ended"),
            "ttft_ms": quantiles(then["ttft"], now["ttft"]),
            "itl_ms": quantiles(then["inter_token"], now["inter_token"]),
            "e2e_ms": quantiles(then["e2e"], now["e2e"]),
        }


def quantiles(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Mean and quantiles in milliseconds of what came into a histogram of seconds meanwhile; None when nothing did."""
    if then is None or now is None:
        return None
    counts = [after - before for before, after in zip(then["counts"], now["counts"], strict=True)]
    total = sum(counts)
    if total <= 0:
        return None
    found = {"mean": (now["sum"] - then["sum"]) / total}
    found |= {name: _quantile(now["bounds"], counts, share) for name, share in QUANTILES.items()}
    return {name: round(1000 * seconds, 3) for name, seconds in found.items()}


def _quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float:
    """The value below which a share of the counts lies, by linear interpolation within its bucket."""
    wanted = share * sum(counts)
    before = 0.0
    for index, count in enumerate(counts):
        if count and before + count >= wanted:
            low = bounds[index - 1] if index else 0.0
            high = bounds[index] if index < len(bounds) else low
            return low + (high - low) * (wanted - before) / count
        before += count
    return bounds[-1]
