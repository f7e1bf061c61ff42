"""GET /metrics: all figures as Prometheus reads them, made once a second at most.

Of several gateways the first one makes the page for all: each of them hears of the same counts, but a moment sooner or
later, and a scraper that comes to one after the other must never see a count fall.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.company import Company
from gateway.metrics import catalog
from gateway.metrics.catalog import OWN, Samples
from gateway.metrics.figures import Figures
from gateway.metrics.vllm_names import vllm_metrics
from ipc.codec import Map

MAX_AGE_S = 1.0  # whoever asks more often gets the same text again


class MetricsPage:
    """The handler. `figures` gives those of this moment."""

    def __init__(self, figures: Callable[[], Figures], with_vllm_names: bool, company: Company) -> None:
        self._figures = figures
        self._company = company
        company.answer("metrics", self._page)
        self._with_vllm_names = with_vllm_names
        self._text = b""
        self._made = -MAX_AGE_S  # when, on the monotonic clock
        self._making: asyncio.Task[None] | None = None

    async def metrics(self, request: web.Request) -> web.Response:
        """The metrics of all processes, in Prometheus' text format. Raises ApiError 503 without a first gateway."""
        page = await self._company.ask_first("metrics", {})
        return web.Response(body=page["text"], headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _page(self, details: Map) -> Map:
        if self._making is None and time.monotonic() - self._made >= MAX_AGE_S:
            self._making = asyncio.create_task(self._make())
        if self._making is not None:
            await asyncio.shield(self._making)
        return {"text": self._text}

    async def _make(self) -> None:
        """Make the text family by family, so that nobody's tokens wait for more than one of them."""
        parts = []
        try:
            for family in families(self._figures(), self._with_vllm_names):
                parts.append(generate_latest(OneFamily(family)))
                await asyncio.sleep(0)
            self._text = b"".join(parts)
            self._made = time.monotonic()
        finally:
            self._making = None


@dataclass(frozen=True, slots=True)
class OneFamily(Collector):
    """A registry with a single metric family."""

    family: Metric

    def collect(self) -> list[Metric]:
        return [self.family]


def families(figures: Figures, with_vllm_names: bool) -> Iterator[Metric]:
    """Every metric family of the page."""
    for metric in OWN:
        yield family_of(metric, metric.read(figures))
    if with_vllm_names:
        for metric, samples in vllm_metrics(figures):
            yield family_of(metric, samples)


def family_of(metric: catalog.Metric, samples: Samples) -> Metric:
    """A metric with its samples as the client library knows it."""
    if metric.kind == "histogram":
        histograms = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in samples:
            if value is not None:
                histograms.add_metric(labels, _buckets(value), value["sum"])
        return histograms
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _buckets(histogram: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Counts of the values up to each bound, as text, the last one for all."""
    bounds = [*(_number(bound) for bound in histogram["bounds"]), "+Inf"]
    return list(zip(bounds, accumulate(histogram["counts"]), strict=True))


def _number(bound: float) -> str:
    """As Prometheus writes bounds: 1.0, 0.005."""
    return repr(float(bound))
