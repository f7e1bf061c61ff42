"""How many threads the CPU kernels get: a wrong guess at the start would stay for good."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model_proc.threads import most_threads, usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("microseconds", "chosen"),
    [
        ({1: 15.0, 2: 9.4}, 2),
        ({1: 15.0, 2: 15.3}, 2),  # the other core was taken by somebody who also starts
        ({1: 15.0, 2: 9.0, 4: 6.0, 8: 6.5, 16: 11.0}, 8),
        ({1: 9.0, 2: 12.0}, 1),
    ],
)
def test_the_most_threads_that_are_about_as_fast_as_the_fastest(microseconds: dict[int, float], chosen: int) -> None:
    assert most_threads(microseconds) == chosen


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", CORES)])
def test_a_container_s_quota_is_kept(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("-1", CORES)])
def test_a_quota_of_the_older_kind(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


def test_without_a_quota_it_is_the_cores_that_the_process_may_run_on(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == CORES
