"""The scenarios are those of the system that they are compared with, to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmark.presets import LONG, MEDIUM, PLAIN, SCENARIOS, SHORT
from ipc import mock_vocabulary


@pytest.mark.parametrize(
    ("prompt", "num_bytes", "num_tokens"), [(PLAIN, 27, 6), (SHORT, 12, 3), (MEDIUM, 94, 23), (LONG, 590, 147)]
)
def test_prompts_have_their_published_sizes(prompt: str, num_bytes: int, num_tokens: int) -> None:
    assert (len(prompt.encode()), len(mock_vocabulary.encode(prompt))) == (num_bytes, num_tokens)


@pytest.mark.parametrize(
    ("name", "requests", "concurrency", "timeout_ms", "warm_up"),
    [
        ("smoke", 100, 10, 3_000, 0),
        ("baseline_no_batching", 300, 10, 30_000, 0),
        ("dynamic_default", 1000, 100, 10_000, 0),
        ("cache_miss", 1000, 100, 60_000, 0),
        ("cache_hit", 1000, 100, 60_000, 1),
        ("mixed_prompt", 1000, 100, 60_000, 0),
        ("block_pressure", 320, 32, 60_000, 0),
    ],
)
def test_presets_are_the_published_ones(
    name: str, requests: int, concurrency: int, timeout_ms: int, warm_up: int
) -> None:
    preset = SCENARIOS[name]
    assert (preset.num_requests, preset.concurrency, preset.timeout_ms, preset.warm_up) == (
        requests, concurrency, timeout_ms, warm_up,
    )  # fmt: skip
    assert len(preset.chains()) == requests


def test_salts_decide_what_can_hit() -> None:
    salts = {name: [chain.cache_salt for chain in SCENARIOS[name].chains()] for name in ("cache_miss", "cache_hit")}
    assert len(set(salts["cache_miss"])) == 1000
    assert set(salts["cache_hit"]) == {"shared"}


def test_mixed_prompts_take_turns() -> None:
    chains = SCENARIOS["mixed_prompt"].chains()
    assert [chain.turns for chain in chains[:4]] == [(SHORT,), (MEDIUM,), (LONG,), (SHORT,)]


def test_conversations_cover_every_index_once() -> None:
    scenario = replace(SCENARIOS["multi_turn"], num_requests=20)
    chains = scenario.chains()
    indexes = [chain.first_index + turn for chain in chains for turn in range(len(chain.turns))]
    assert indexes == list(range(20))
    assert len(chains[-1].turns) == 20 % scenario.num_turns
    assert len({chain.turns[0] for chain in chains}) == len(chains)


def test_arrivals_repeat_from_their_seed() -> None:
    scenario = replace(SCENARIOS["mixed_prompt"], rate=50.0)
    times = scenario.arrivals_s(7)
    assert times == scenario.arrivals_s(7)
    assert times != scenario.arrivals_s(8)
    assert times == sorted(times)
    assert len(times) == 1000


def test_arrivals_have_their_rate() -> None:
    scenario = replace(SCENARIOS["mixed_prompt"], rate=50.0, num_requests=20_000)
    # The standard deviation of the mean gap is its value by the root of the count: 0.7 %.
    assert scenario.arrivals_s(1)[-1] == pytest.approx(20_000 / 50.0, rel=0.05)


def test_bursts_arrive_together() -> None:
    scenario = SCENARIOS["bursty"]
    times = scenario.arrivals_s(3)
    bursts = [times[first : first + scenario.burst] for first in range(0, len(times), scenario.burst)]
    assert all(len(set(burst)) == 1 for burst in bursts)
    assert len({burst[0] for burst in bursts}) == len(bursts) == 20
