"""The comparison of policies: repeatable, and each policy does what it is there for."""

from __future__ import annotations

import random

import pytest

from benchmark.overheads import FREE
from benchmark.policies import mean_of, rows, run
from benchmark.workloads import WORKLOADS, text
from ipc import mock_vocabulary


def test_priority_serves_the_urgent_ones_and_the_sum_stays() -> None:
    fcfs = run(WORKLOADS["urgent"], "fcfs", 0, [], FREE)
    priority = run(WORKLOADS["urgent"], "priority", 0, [], FREE)
    assert priority["groups"]["urgent"]["ttft_ms"] < fcfs["groups"]["urgent"]["ttft_ms"] / 3
    assert priority["groups"]["batch"]["ttft_ms"] > fcfs["groups"]["batch"]["ttft_ms"]
    assert priority["ttft_ms"] == pytest.approx(fcfs["ttft_ms"], rel=0.02)
    assert run(WORKLOADS["urgent"], "fcfs", 0, [], FREE) == fcfs
    lines = rows("urgent", {"fcfs": mean_of([fcfs]), "priority": mean_of([priority])})
    assert lines[1]["figure"] == "TTFT of batch"


def test_a_prompt_has_the_length_that_it_should_and_shares_no_beginning() -> None:
    rng = random.Random(1)
    prompts = [mock_vocabulary.encode(text(rng, 50)) for _ in range(20)]
    assert {len(prompt) for prompt in prompts} == {50}
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 20
