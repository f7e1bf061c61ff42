"""A line in the log every ten seconds while the server is busy; none while it is idle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from gateway.metrics.figures import Figures

INTERVAL_S = 10.0

log = logging.getLogger(__name__)


class Activity:
    """Compares the counts of now with those of ten seconds ago."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self._last: tuple[float, dict[str, float]] | None = None

    async def run(self) -> None:
        """Log until cancelled."""
        while True:
            self.look(time.monotonic())
            await asyncio.sleep(INTERVAL_S)

    def look(self, now: float) -> None:
        """Log what happened since the last look, if anything did."""
        figures = self._figures()
        counts = _counts(figures)
        if self._last is not None and counts != self._last[1]:
            then, before = self._last
            log.info("%s", line(figures, {name: counts[name] - before[name] for name in counts}, now - then))
        self._last = now, counts


def _counts(figures: Figures) -> dict[str, float]:
    tally = figures.tally
    return {
        "ended": sum(tally.get("ends", {}).values()),
        "prefilled": tally.get("step_tokens", {}).get("prefill", 0),
        "generated": tally.get("generated_tokens", 0),
        "queried": figures.scheduler.get("prefix_queries", 0),
        "hits": figures.scheduler.get("prefix_hits", 0),
        "steps": figures.scheduler.get("steps", 0),
    }


def line(figures: Figures, grown: dict[str, float], seconds: float) -> str:
    """What the log says of some seconds."""
    now = figures.scheduler_now
    blocks = now.get("blocks_total", 0)
    parts = [
        f"{grown['ended'] / seconds:.1f} req/s",
        f"{grown['prefilled'] / seconds:.0f} prompt tok/s",
        f"{grown['generated'] / seconds:.0f} tok/s",
        f"running {now.get('running', 0)}",
        f"waiting {now.get('waiting', 0) + now.get('held', 0)}",
        f"KV {100 * now.get('blocks_in_use', 0) / blocks if blocks else 0:.1f} %",
    ]
    if grown["queried"]:
        parts.append(f"prefix hits {100 * grown['hits'] / grown['queried']:.0f} %")
    return ", ".join(parts)
