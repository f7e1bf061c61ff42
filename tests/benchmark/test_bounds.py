"""Throughput beside what was published and what is possible."""

from __future__ import annotations

import pytest

from benchmark.bounds import Caps, ratios

FREE = Caps(lanes=1, max_num_seqs=256, max_num_step_seqs=0, max_num_batched_tokens=8192)
CAPPED = Caps(lanes=1, max_num_seqs=128, max_num_step_seqs=32, max_num_batched_tokens=2048)


def test_a_throughput_is_compared_with_seed_and_bounds() -> None:
    found = ratios("cache_miss", 1000, 100, "seed", FREE, 67.3)
    assert found is not None
    assert found.times_seed == pytest.approx(20.5, abs=0.05)
    assert found.percent_of_one_lane == pytest.approx(100.0)
    assert found.percent_of_unlimited == pytest.approx(65.2, abs=0.05)
    assert found.percent_of_capped is None


def test_the_capped_bound_needs_its_caps() -> None:
    found = ratios("cache_hit", 1000, 100, "seed", CAPPED, 11.34)
    assert found is not None
    assert found.percent_of_capped == pytest.approx(50.0)
    four_lanes = Caps(4, 128, 32, 2048)
    found = ratios("cache_hit", 1000, 100, "seed", four_lanes, 11.34)
    assert found is not None
    assert found.percent_of_capped is None


@pytest.mark.parametrize(
    ("scenario", "requests", "concurrency", "profile"),
    [
        ("smoke", 100, 10, "seed"),
        ("cache_miss", 500, 100, "seed"),
        ("cache_miss", 1000, 0, "seed"),
        ("cache_miss", 1000, 100, "linear"),
    ],
)
def test_other_workloads_are_not_compared(scenario: str, requests: int, concurrency: int, profile: str) -> None:
    assert ratios(scenario, requests, concurrency, profile, FREE, 50.0) is None


def test_caps_are_said_in_words() -> None:
    assert str(CAPPED) == "1 lane, steps of 32 sequences / 2048 tokens, 128 residents"
    assert str(Caps(4, 256, 0, 512)) == "4 lanes, steps of any number of sequences / 512 tokens, 256 residents"
