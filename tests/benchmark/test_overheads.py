"""The simulator's constants: read, written, and taken apart from what processes spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.calibrate import DEPENDS_ON, fit
from benchmark.control_plane import Level
from benchmark.overheads import DEFAULT, PROCESSES, Cost, Overheads, OverheadsError, load_overheads, save_overheads

COSTS = {name: Cost(request_us=100.0 + index, step_us=10.0, token_us=1.5) for index, name in enumerate(PROCESSES)}


def test_overheads_are_read_as_they_were_written(tmp_path: Path) -> None:
    overheads = Overheads(cores=2, hop_us=80.5, spread_us=[50.0, 2000.0], streamed=COSTS, unary=COSTS)
    save_overheads(tmp_path / "o.json", overheads, {"date": "2026-11-22"})
    assert load_overheads(tmp_path / "o.json") == overheads


def test_the_default_is_in_the_repository() -> None:
    overheads = load_overheads(DEFAULT)
    assert set(overheads.streamed) == set(overheads.unary) == set(PROCESSES)
    assert overheads.streamed["gateway"].token_us > overheads.unary["gateway"].token_us


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"cores": 2, "hop_us": 1, "spread_us": [], "streamed": {}, "unary": {}}']
)
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text(content)
    with pytest.raises(OverheadsError, match=r"o\.json is no file of overheads"):
        load_overheads(path)


def test_a_cost_with_an_unknown_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    save_overheads(path, Overheads(2, 80.5, [50.0], COSTS, COSTS), {})
    content = json.loads(path.read_text())
    content["unary"]["model"]["minute_us"] = 1.0
    path.write_text(json.dumps(content))
    with pytest.raises(OverheadsError, match="minute_us"):
        load_overheads(path)


def level(process: str, cost: Cost, requests: int, steps: int, tokens: int) -> Level:
    spent_us = cost.request_us * requests + cost.step_us * steps + cost.token_us * tokens
    return Level(
        streams=1, pace=0.0, requests=requests, tokens=tokens, wall_s=1.0, tokens_s=tokens, steps=steps,
        tokens_a_step=tokens / steps, events_a_token=1.0, ttft_ms_median=1.0,
        cpu_us_a_token={process: spent_us / tokens}, cores={}, messages={},
    )  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES)
def test_a_fit_finds_what_went_in(process: str) -> None:
    parts = DEPENDS_ON[process]
    true = Cost(
        request_us=150.0 if "request_us" in parts else 0.0,
        step_us=80.0 if "step_us" in parts else 0.0,
        token_us=2.5 if "token_us" in parts else 0.0,
    )
    loads = ((200, 400, 40_000), (10, 1000, 2_000), (4000, 2000, 4000), (300, 500, 12_000))
    found = fit(process, [level(process, true, *amounts) for amounts in loads])
    assert found.request_us == pytest.approx(true.request_us, abs=0.01)
    assert found.step_us == pytest.approx(true.step_us, abs=0.01)
    assert found.token_us == pytest.approx(true.token_us, abs=0.01)
