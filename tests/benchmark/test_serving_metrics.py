"""The figures of the serving benchmark against requests whose times are known: vLLM's names and definitions."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.client import Measured
from benchmark.serving.arrivals import Arrivals, Ramp
from benchmark.serving.metrics import details, level_metrics, meets, peaks
from benchmark.serving.prompts import Request
from benchmark.serving.traffic import Sent, Traffic


def sent(
    at: float, ttft: float = 0.1, gaps: tuple[float, ...] = (), tokens: int = 1, error: str = "", queue: float = 0.0
) -> Sent:
    measured = Measured(
        sent=at, ttft=ttft, latency=ttft + sum(gaps), itls=list(gaps), prompt_tokens=10, completion_tokens=tokens,
        finish_reason="length", error=error, metrics={"queue_time_ms": 5.0},
    )  # fmt: skip
    return Sent(Request("x", 10, tokens), measured, lag=0.002, client_queue=queue)


FIVE = [sent(100.0, 0.1, (0.2, 0.2), tokens=5), sent(100.0, 0.3, tokens=1, queue=0.05), sent(101.0, error="500: no")]


def test_the_figures_are_those_of_vllm() -> None:
    found = level_metrics(Traffic(FIVE, 100.0, duration=2.0, client_cpu_s=0.5), percentiles=(50, 99))
    assert (found["completed"], found["failed"], found["error_counts"]) == (2, 1, {"500: no": 1})
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (20, 6)
    assert (found["request_throughput"], found["output_throughput"], found["total_token_throughput"]) == (1, 3, 13)
    assert found["request_goodput"] is None
    assert found["mean_ttft_ms"] == pytest.approx(200)
    assert found["p99_ttft_ms"] == pytest.approx(np.percentile([100, 300], 99))
    # By the tokens, not by the pieces; an answer of one token has none.
    assert found["mean_tpot_ms"] == found["p50_tpot_ms"] == pytest.approx(400 / 4)
    assert found["mean_itl_ms"] == pytest.approx(200)
    assert "mean_e2el_ms" not in found
    assert found["tokens_per_piece"] == 6 / 4
    assert found["client_cores"] == 0.25
    assert found["client_lag_ms"] == pytest.approx(2)


def test_other_metrics_come_when_they_are_asked_for() -> None:
    names = ("e2el", "client_queue_time", "e2el_including_client_queue")
    found = level_metrics(Traffic(FIVE, 100.0, 2.0, 0.5), names, (90,))
    assert found["median_e2el_ms"] == pytest.approx(400)
    assert found["mean_client_queue_time_ms"] == pytest.approx(25)
    assert found["mean_e2el_including_client_queue_ms"] == pytest.approx(425)
    assert "mean_ttft_ms" not in found


def test_no_success_is_all_zeros() -> None:
    found = level_metrics(Traffic(FIVE[2:], 100.0, 2.0, 0.5), objectives={"ttft": 1.0})
    assert (found["completed"], found["mean_ttft_ms"], found["p99_itl_ms"], found["request_goodput"]) == (0, 0, 0, 0)
    assert (found["max_output_tokens_per_s"], found["max_concurrent_requests"]) == (0, 0)


@pytest.mark.parametrize(
    ("objectives", "good"),
    [
        ({"ttft": 100.0}, 1),
        ({"ttft": 300.0}, 2),
        ({"tpot": 50.0}, 1),  # one token counts as 0 ms each
        ({"ttft": 100.0, "tpot": 99.0}, 0),
        ({"e2el": 299.9}, 0),
    ],
)
def test_goodput_is_of_those_that_meet_every_objective(objectives: dict[str, float], good: int) -> None:
    assert sum(meets(one, objectives) for one in FIVE[:2]) == good
    found = level_metrics(Traffic(FIVE, 100.0, 2.0, 0.5), objectives=objectives)
    assert found["request_goodput"] == good / 2


def test_peaks_count_tokens_not_pieces() -> None:
    requests = [
        sent(10.0, ttft=0.5, gaps=(0.4, 0.6), tokens=30),  # pieces of ten tokens at 0.5, 0.9 and 1.5 s
        sent(11.2, ttft=0.1, tokens=4),  # at 1.3 s
        sent(11.5, ttft=0.1, tokens=1),  # begins when the first one ends
    ]
    assert peaks(requests) == (20.0, 1 + 1)


def test_details_have_an_entry_for_every_request() -> None:
    found = details(Traffic(FIVE, 100.0, 2.0, 0.5))
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 3)
    assert found["errors"] == ["", "", "500: no"]
    assert found["output_lens"] == [5, 1, 1]
    assert found["server_queue_times"][0] == 0.005
    assert found["server_ttfts"][0] is None


# -- arrivals ----------------------------------------------------------------------------------------------------------


def test_without_a_rate_all_arrive_at_once() -> None:
    assert Arrivals().times_s(3, np.random.default_rng(0)) == [0, 0, 0]


@pytest.mark.parametrize("burstiness", [0.2, 1.0, 5.0, float("inf")])
def test_the_last_arrives_when_the_rate_says(burstiness: float) -> None:
    times = Arrivals(rate=8.0, burstiness=burstiness).times_s(4000, np.random.default_rng(1))
    assert times == sorted(times)
    assert times[-1] == pytest.approx(4000 / 8)
    # The coefficient of variation of a gamma distribution is one by the root of its shape.
    gaps = np.diff(times)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, abs=0.15 * burstiness**-0.5 + 1e-9)


def test_a_seed_gives_the_same_arrivals() -> None:
    one, same, other = (Arrivals(2.0).times_s(9, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(("strategy", "middle"), [("linear", 5.5), ("exponential", 10**0.5)])
def test_a_ramp_goes_from_one_rate_to_the_other(strategy: str, middle: float) -> None:
    ramp = Ramp(strategy, 1.0, 10.0)
    assert [ramp.rate(index, 5) for index in (0, 2, 4)] == pytest.approx([1, middle, 10])
    times = Arrivals(burstiness=float("inf"), ramp=ramp).times_s(5, np.random.default_rng(0))
    assert times[0] == 1.0
    assert times[4] - times[3] == pytest.approx(0.1)
