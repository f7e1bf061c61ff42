"""Percentiles and what counts as a success."""

from __future__ import annotations

import pytest

from benchmark.client import Measured
from benchmark.load import Run
from benchmark.summary import Spread, percentile, summarize


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [(1, 50, 1), (1, 99, 1), (2, 50, 1), (3, 50, 2), (10, 90, 9), (11, 90, 10), (100, 99, 99), (101, 99, 100)],
)
def test_percentiles_are_nearest_rank(count: int, percent: int, rank: int) -> None:
    assert percentile([float(value) for value in range(1, count + 1)], percent) == rank


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    assert Spread.of([]) is None


def test_a_spread_sorts_its_values() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(mean=2.0, p50=2.0, p90=3.0, p99=3.0)


def measured(latency: float, finish_reason: str = "stop", error: str = "") -> Measured:
    return Measured(
        0.0, ttft=latency / 2, latency=latency, itls=[latency / 2], prompt_tokens=10, completion_tokens=5,
        finish_reason=finish_reason, error=error,
    )  # fmt: skip


def test_failures_are_counted_and_enter_nothing_else() -> None:
    one_cut, one_lost = measured(50.0, finish_reason="length"), measured(90.0, error="504: too late")
    figures = summarize(Run([measured(1.0), one_cut, measured(3.0), one_lost], 0.0, 4.0, 1.0))
    assert (figures.requests, figures.succeeded, figures.failed) == (4, 2, 2)
    assert figures.errors == {"finish_reason length": 1, "504: too late": 1}
    assert figures.req_s == 0.5
    assert figures.latency == Spread(2.0, 1.0, 3.0, 3.0)
    assert figures.ttft == Spread(1.0, 0.5, 1.5, 1.5)
    assert (figures.prompt_tokens, figures.completion_tokens, figures.output_tok_s) == (20, 10, 2.5)
    assert figures.client_cores == 0.25


def test_nothing_but_failures_has_no_latency() -> None:
    figures = summarize(Run([measured(1.0, error="gone")], 0.0, 1.0, 0.0))
    assert (figures.latency, figures.ttft, figures.tbt, figures.req_s) == (None, None, None, 0.0)


def test_stages_are_means_over_those_who_report_them() -> None:
    first, second = measured(1.0), measured(1.0)
    first.timings = {"queue_ms": 1.0, "decode_ms": None, "batch_id": 7}
    second.timings = {"queue_ms": 3.0, "decode_ms": 8.0}
    assert summarize(Run([first, second], 0.0, 1.0, 0.0)).stages_ms == {"queue_ms": 2.0, "decode_ms": 8.0}
