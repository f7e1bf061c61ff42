"""The benchmarks against a real server with the mock: that they run, and that what they report adds up."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import control_plane, scenarios, simulate
from benchmark.ring_costs import codec_us, hop_us, spread_us, step_messages
from benchmark.server import Server
from ipc.codec import decode, encode


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--model=mock"]) as started:
        yield started


def test_a_scenario_with_a_server_of_its_own(tmp_path: Path) -> None:
    figures, table = tmp_path / "figures.json", tmp_path / "figures.csv"
    argv = ["--scenario", "cache_hit", "--requests", "12", "--concurrency", "4", f"--json={figures}", f"--csv={table}"]
    assert scenarios.main([*argv, "--", "--mock-profile=instant", "--max-num-step-seqs=3"]) == 0
    found = json.loads(figures.read_text())
    assert found["kind"] == "live"
    assert (found["client"]["succeeded"], found["client"]["failed"]) == (12, 0)
    assert found["caps"]["max_num_step_seqs"] == 3
    assert found["server"]["prefix_hits"] == found["client"]["cached_tokens"] == 12 * 144
    assert found["server"]["blocks"]["in_use"] == 0
    assert 1 <= found["server"]["mean_batch"] <= 3
    assert {"gateway", "tokenizer", "scheduler", "model", "detokenizer"} <= set(found["server"]["cores"])
    assert found["ratios"] is None  # another number of requests than the published figures are for
    (row,) = csv.DictReader(table.open())
    assert (row["scenario"], row["requests"], row["failed"]) == ("cache_hit", "12", "0")


@pytest.mark.parametrize("way", [[], ["--unary"], ["--rate", "500"]], ids=["streamed", "unary", "open loop"])
def test_a_scenario_against_a_server_that_runs(way: list[str], server: Server, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    argv = ["--scenario", "multi_turn", "--requests", "12", "--concurrency", "2", f"--base-url={server.url}/"]
    assert scenarios.main([*argv, *way, f"--json={path}"]) == 0
    found = json.loads(path.read_text())
    assert found["client"]["succeeded"] == 12
    assert found["client"]["completion_tokens"] == 12 * 71
    # Each turn finds what the turns before it have left in the cache.
    assert found["client"]["cached_tokens"] > 12 * 100
    assert found["server"]["cores"] == {}


def test_replicas_behind_one_address_beside_simulated_ones(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "compared.json"
    argv = ["--scenario", "multi_turn", "--requests", "12", "--concurrency", "2", "--replicas", "2", "--compare-live"]
    code = simulate.main([*argv, "--runs", "2", f"--base-url={server.url}/", f"--json={path}"])
    found = json.loads(path.read_text())
    assert code == (0 if found["comparison"]["agrees"] else 1)
    saved = [run["client"]["cached_tokens"] for run in found["live"]]
    assert saved == [found["comparison"]["live_saved"]] * 2, "a run finds nothing of the one before it"
    assert [run["router"] for run in found["simulated"]] == ["prefix"] * 2
    assert found["comparison"]["saved_deviation"] == pytest.approx(0, abs=0.1)
    assert "10 % of throughput and of saved prompt tokens" in capsys.readouterr().out
    assert simulate.main([*argv, "--base-url=http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9/flush_cache: " in capsys.readouterr().err


def test_failures_are_shown_and_make_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with Server(["--model=mock", "--mock-profile=seed"]) as slow:
        argv = ["--scenario", "smoke", "--requests", "4", "--timeout-ms", "50", f"--base-url={slow.url}"]
        assert scenarios.main(argv) == 1
    shown = capsys.readouterr().out
    assert "0 / 4" in shown
    assert "the request was not finished within its 50 ms" in shown


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert scenarios.main(["--base-url", "http://127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert "Connect" in error or "refused" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("pace", [0.0, 5000.0])
def test_a_level_of_the_control_plane(pace: float) -> None:
    level = control_plane.measure_level(streams=4, pace=pace, tokens=20, total_tokens=100, stream=True, options=[])
    assert (level.requests, level.tokens) == (8, 160)
    assert level.steps >= 40
    assert set(level.cpu_us_a_token) == {
        "supervisor", "gateway", "tokenizer", "scheduler", "model", "detokenizer", "client",
    }  # fmt: skip
    assert level.messages["scheduler"] >= level.requests + level.steps


def test_the_messages_of_a_step_survive_the_wire() -> None:
    for batch in (1, 40):
        for message in step_messages(batch):
            assert decode(encode(message, 1)) == (1, message)
    assert {name: cost["bytes"] > 0 for name, cost in codec_us(2, repeats=3).items()} == dict.fromkeys(
        ("Plan", "Result", "Tokens", "Text"), True
    )


def test_a_hop_is_measured_between_two_processes() -> None:
    found = hop_us(round_trips=20)
    assert 0 < found["median_us"] <= found["p90_us"]


def test_wake_ups_are_measured_as_deciles() -> None:
    found = spread_us(wakes=10)
    assert len(found) == 10
    assert 0 < found[0] <= found[-1]
    assert found == sorted(found)
