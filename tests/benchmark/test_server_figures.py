"""Differences between two looks at a server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from benchmark import server_figures as module
from benchmark.server_figures import (
    ELSEWHERE,
    NoFiguresError,
    Snapshot,
    cores_used,
    progress,
    server_figures,
    snapshot,
)
from benchmark.step_log import Step

STATS = {
    "steps": 10, "prefix_queries": 100, "prefix_hits": 40, "preemptions": 1, "evictions": 2,
    "blocks_total": 64, "blocks_free": 50, "blocks_cached": 10, "blocks_in_use": 4,
}  # fmt: skip


def step(size: int, milliseconds: int) -> Step:
    return Step(0.0, 1.0, 1.0 + milliseconds / 1000, decodes=size - 1, prefills=1, waiting=0, running=size)


def test_counters_are_subtracted_and_blocks_are_those_of_the_end() -> None:
    later = STATS | {"steps": 12, "prefix_queries": 300, "prefix_hits": 140, "blocks_free": 54, "blocks_in_use": 0}
    figures = server_figures(STATS, later, [step(2, 10), step(4, 30)], {"gateway": 0.5})
    assert (figures.steps, figures.prefix_queries, figures.prefix_hits) == (2, 200, 100)
    assert (figures.preemptions, figures.evictions) == (0, 0)
    assert figures.blocks == {"total": 64, "free": 54, "cached": 10, "in_use": 0}
    assert figures.mean_batch == 3.0
    assert figures.mean_step_ms == pytest.approx(20.0)
    assert figures.cores == {"gateway": 0.5}


def test_a_scheduler_that_has_done_nothing_has_counted_nothing() -> None:
    figures = server_figures({}, STATS, [], {})
    assert (figures.steps, figures.mean_batch, figures.mean_step_ms) == (10, None, None)


def test_shares_of_a_core_and_progress() -> None:
    before = Snapshot(10.0, {"model": {"progress": 5}}, {"model": 1.0})
    after = Snapshot(14.0, {"model": {"progress": 9}, "gateway": {"progress": 3}}, {"model": 3.0})
    assert cores_used(before, after) == {"model": 0.5}
    assert progress(before, after) == {"model": 4, "gateway": 3}


def test_a_snapshot_waits_for_a_report_from_behind_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    born = time.monotonic()
    answers: Iterator[dict[str, Any]] = iter([{"processes": {}}, {"processes": {"scheduler": {"age_s": 60.0}}}])
    asked: list[str] = []

    def loads(url: str) -> dict[str, Any]:
        asked.append(url)
        fresh = {"scheduler": {"age_s": 0.0}, "model": {"age_s": 9.0}}
        return next(answers, {"processes": fresh})

    monkeypatch.setattr(module, "_loads", loads)
    monkeypatch.setattr(module, "POLL_S", 0.0)
    found = snapshot("http://x", {"me": psutil.Process(os.getpid())})
    assert asked == ["http://x"] * 3
    assert found.taken >= born
    assert found.scheduler == {"age_s": 0.0}
    assert set(found.cpu_s) == {"me", ELSEWHERE}


def test_silence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_loads", lambda url: {"processes": {}})
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    with pytest.raises(NoFiguresError, match="the scheduler has reported nothing"):
        snapshot("http://x", {})


def test_no_server_is_an_error() -> None:
    with pytest.raises(NoFiguresError, match=r"/v1/loads: .*is a Quintet server there\?"):
        snapshot("http://127.0.0.1:1", {})
