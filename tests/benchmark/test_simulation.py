"""The simulator: every request ends exactly once, memory adds up, and the same run gives the same bytes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.client import Measured
from benchmark.experiment import Experiment, add_arguments, experiment
from benchmark.overheads import FREE, PROCESSES, Cost, Overheads
from benchmark.presets import LONG
from benchmark.ring_model import Request, Ring
from benchmark.simulation import simulate
from ipc.options import OptionError

ROOT = Path(__file__).resolve().parent.parent.parent
COSTLY = Overheads(
    cores=2,
    hop_us=60.0,
    spread_us=[50.0, 100.0, 2000.0],
    streamed={name: Cost(request_us=200.0, step_us=100.0, token_us=5.0) for name in PROCESSES},
    unary={name: Cost(request_us=200.0, step_us=100.0, token_us=1.0) for name in PROCESSES},
)


def asked(*argv: str) -> Experiment:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return experiment(parser.parse_args(argv))


@pytest.mark.parametrize(
    "argv",
    [
        ["--scenario", "mixed_prompt", "--requests", "60", "--concurrency", "20"],
        ["--scenario", "mixed_prompt", "--requests", "60", "--concurrency", "20", "--unary"],
        ["--scenario", "mixed_prompt", "--requests", "60", "--concurrency", "20", "--", "--mock-lanes=4"],
        ["--scenario", "cache_hit", "--requests", "40", "--concurrency", "10"],
        ["--scenario", "multi_turn", "--requests", "40", "--concurrency", "5"],
        ["--scenario", "bursty", "--requests", "100"],
        ["--scenario", "smoke", "--rate", "30", "--requests", "40"],
        ["--scenario", "block_pressure", "--requests", "64"],
        ["--scenario", "baseline_no_batching", "--requests", "12", "--concurrency", "3"],
    ],
    ids=" ".join,
)
def test_every_request_comes_to_its_own_end(argv: list[str]) -> None:
    run, steps, figures = simulate(asked(*argv), COSTLY)
    assert all(measured.succeeded for measured in run.measured)
    assert figures.client.requests == len(run.measured) == int(argv[argv.index("--requests") + 1])
    # A silent token, and the 71 words of the answer.
    assert {measured.completion_tokens for measured in run.measured} == {72}
    assert all(0 < measured.ttft <= measured.latency for measured in run.measured)
    if figures.stream:
        assert {len(measured.itls) for measured in run.measured} == {70}
    blocks = figures.server.blocks
    assert blocks["in_use"] == 0
    assert blocks["free"] + blocks["cached"] == blocks["total"]
    assert figures.server.steps == len(steps)


def test_pressure_preempts_and_a_warm_prefix_hits() -> None:
    _, _, pressed = simulate(asked("--scenario", "block_pressure", "--requests", "64"), COSTLY)
    assert pressed.server.preemptions > 0
    _, _, warm = simulate(asked("--scenario", "cache_hit", "--requests", "40"), COSTLY)
    assert warm.server.prefix_hits == 40 * 144  # of 147 tokens, the nine full blocks
    _, _, cold = simulate(asked("--scenario", "cache_miss", "--requests", "40"), COSTLY)
    assert cold.server.prefix_hits == 0


def test_the_ring_calls_back_once_for_each_request() -> None:
    options = asked("--scenario", "mixed_prompt", "--", "--max-num-queued-reqs=8", "--max-num-seqs=4").options
    ring, ends = Ring(options, COSTLY, stream=True), Counter[int]()
    reasons: dict[int, Measured] = {}

    def sent(number: int, timeout_ms: int) -> Request:
        def done(measured: Measured) -> None:
            ends[number] += 1
            reasons[number] = measured

        return Request(f"{number} {LONG}", "", timeout_ms, done)

    for number in range(40):
        ring.send(sent(number, 500 if number % 4 == 0 else 60_000))
    ring.loop.run()
    assert ends == Counter(range(40))
    outcomes = Counter(measured.error[:3] or measured.finish_reason for measured in reasons.values())
    assert set(outcomes) == {"stop", "429", "504"}
    assert ring.stats()["blocks_in_use"] == 0
    assert ring.stats()["sequences"] == 0


def test_a_conversation_ends_with_its_first_failure() -> None:
    run, _, figures = simulate(asked("--scenario", "multi_turn", "--requests", "12", "--timeout-ms", "100"), COSTLY)
    assert figures.client.succeeded == 0
    assert [measured.error[:3] for measured in run.measured] == ["504", *["the"] * 5] * 2


def test_without_overheads_steps_follow_each_other_without_a_gap() -> None:
    _, steps, _ = simulate(asked("--scenario", "cache_miss", "--requests", "8", "--concurrency", "4"), FREE)
    busy_s = sum(step.finished_s - step.started_s for step in steps)
    assert busy_s == pytest.approx(steps[-1].finished_s - steps[0].started_s)


def test_overheads_add_to_the_latency_of_a_single_request() -> None:
    alone = asked("--scenario", "cache_miss", "--requests", "1", "--concurrency", "1")
    (free,) = simulate(alone, FREE)[0].measured
    (costly,) = simulate(alone, COSTLY)[0].measured
    # Client, gateway, tokenizer and scheduler have each had some of their 200 us before the first step.
    assert costly.ttft - free.ttft > 0.4e-3
    assert costly.latency > free.latency


def test_more_lanes_are_faster() -> None:
    one = asked("--scenario", "cache_miss", "--requests", "60", "--concurrency", "20")
    _, _, narrow = simulate(one, COSTLY)
    _, _, wide = simulate(one.with_launch(["--mock-lanes=20"]), COSTLY)
    assert wide.client.req_s > narrow.client.req_s
    assert (narrow.caps.lanes, wide.caps.lanes) == (1, 20)


def test_a_seed_of_the_arrivals_changes_the_run() -> None:
    one = asked("--scenario", "smoke", "--rate", "30", "--requests", "40")
    other = replace(one, seed=1)
    assert simulate(one, COSTLY)[2] == simulate(one, COSTLY)[2]
    assert simulate(one, COSTLY)[2].client != simulate(other, COSTLY)[2].client


def test_only_the_mock_is_simulated() -> None:
    with pytest.raises(OptionError, match="only the mock can be simulated, got 'smollm2-135m'"):
        simulate(asked("--", "--model=smollm2-135m"), FREE)


@pytest.mark.parametrize(
    "scenario", [["mixed_prompt"], ["multi_turn"], ["block_pressure"], ["multi_turn", "--replicas=3"]], ids=" ".join
)
def test_two_processes_with_different_hash_seeds_write_the_same_bytes(scenario: list[str], tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.json"
        subprocess.run(
            [sys.executable, "-m", "benchmark.simulate", "--scenario", *scenario, "--requests", "48", "--rate", "40",
             f"--json={path}", "--", "--scheduling-policy=lpm", "--mock-lanes=2"],
            check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        written.append(path.read_bytes())
    assert written[0] == written[1]
