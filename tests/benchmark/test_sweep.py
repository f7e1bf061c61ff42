"""Sweeps: every combination once, in one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from benchmark import simulate


def test_a_sweep_runs_every_combination(tmp_path: Path) -> None:
    table, figures, markdown = tmp_path / "sweep.csv", tmp_path / "sweep.json", tmp_path / "sweep.md"
    code = simulate.main(
        ["--scenario", "smoke", "--requests", "12", "--sweep", "--policies", "fcfs", "sjf", "--budgets", "64", "512",
         "--lanes", "1", "2", "--rates", "0", "50", f"--csv={table}", f"--json={figures}", f"--markdown={markdown}"]
    )  # fmt: skip
    assert code == 0
    rows = list(csv.DictReader(table.open()))
    found = [(row["policy"], row["max_num_batched_tokens"], row["lanes"], row["rate"]) for row in rows]
    assert found == [
        (policy, budget, lanes, rate)
        for policy in ("fcfs", "sjf")
        for budget in ("64", "512")
        for lanes in ("1", "2")
        for rate in ("0.0", "50.0")
    ]
    assert all(row["failed"] == "0" and float(row["req_s"]) > 0 for row in rows)
    whole = json.loads(figures.read_text())
    assert [one["client"]["req_s"] for one in whole] == pytest.approx([float(row["req_s"]) for row in rows], abs=0.01)
    assert len(markdown.read_text().splitlines()) == 2 + len(rows)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--policies", "fcfs"], "need --sweep"),
        (["--sweep", "--plot", "x.png"], "--plot draws one run"),
        (["--sweep", "--compare-live"], "not allowed with"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        simulate.main(argv)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sweep", "--budgets", "0"], "--max-num-batched-tokens: must be at least 1"),
        (["--", "--max-num-seqs=none"], "--max-num-seqs"),
        (["--overheads", "nowhere.json"], "nowhere.json: No such file or directory; make it with"),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
