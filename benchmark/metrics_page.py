"""A Quintet server's own figures, read from its metrics page: counters and histograms between two moments."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from benchmark.connection_pool import ConnectionPool

POLL_S = 0.2  # processes report every 0.4 s, and the page is made once a second
WAIT_S = 10.0

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Page:
    """All samples of one moment, by name and labels."""

    samples: dict[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float:
        """One sample; 0 when it is not there."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def by(self, name: str, label: str) -> dict[str, float]:
        """All samples of a name that has one label, by its value."""
        found = {}
        for (sample, labels), value in self.samples.items():
            if sample == name and [key for key, _ in labels] == [label]:
                found[next(iter(labels))[1]] = value
        return found


def parse_page(text: str) -> Page:
    """Raises ValueError when the text is no metrics page."""
    return Page(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


async def read_page(pool: ConnectionPool) -> Page | None:
    """The page as it is now; None for a server that has none of ours. Raises OSError."""
    parts: list[bytes] = []
    status = await pool.send(pool.head("GET", "/metrics") + b"\r\n", lambda part, now: parts.append(part))
    if status != 200:
        return None
    try:
        page = parse_page(b"".join(parts).decode())
    except ValueError:
        return None
    return page if page.by("quintet_process_ready", "process") else None


async def page_behind(pool: ConnectionPool, before: Page, tokens: int) -> Page | None:
    """The first page that knows of so many more tokens than `before`; None when none comes. Raises OSError."""
    deadline = time.monotonic() + WAIT_S
    wanted = before.value("quintet_generation_tokens_total") + tokens
    while time.monotonic() < deadline:
        page = await read_page(pool)
        if page is not None and page.value("quintet_generation_tokens_total") >= wanted:
            return page
        await asyncio.sleep(POLL_S)
    return None
