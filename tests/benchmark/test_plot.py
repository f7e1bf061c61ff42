"""The picture needs no display, and without matplotlib only --plot is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmark import scenarios, simulate
from benchmark.client import Measured
from benchmark.plot import NoPlotError, check_matplotlib, draw
from benchmark.step_log import Step, StepLogError, read_steps

STEPS = [Step(10.0 + i, 10.1 + i, 10.5 + i, decodes=i, prefills=2, waiting=5 - i, running=i) for i in range(5)]
MEASURED = [
    Measured(sent=10.0, ttft=0.5, latency=1.0, finish_reason="stop"),
    Measured(sent=11.0, error="504: too late"),
]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn_without_a_display(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    path = tmp_path / "folder" / f"run.{suffix}"
    draw(path, "a run", STEPS, MEASURED, 10.0)
    assert path.stat().st_size > 1000


def test_an_unknown_suffix_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(NoPlotError, match=r"--plot .*run\.xyz"):
        draw(tmp_path / "run.xyz", "a run", STEPS, MEASURED, 10.0)


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NoPlotError, match="pip install matplotlib"):
        check_matplotlib()


@pytest.mark.parametrize("module", [scenarios, simulate])
def test_plot_without_matplotlib_is_refused_before_anything_runs(
    module: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main = scenarios.main if module is scenarios else simulate.main
    assert main(["--plot", "run.png"]) == 2
    assert "--plot needs matplotlib" in capsys.readouterr().err


def test_a_simulated_run_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.png"
    assert simulate.main(["--scenario", "smoke", "--requests", "8", "--plot", str(path)]) == 0
    assert path.stat().st_size > 1000


def entry(planned_s: float) -> str:
    times = {"planned_ns": planned_s * 1e9, "started_ns": 2e9, "finished_ns": 2.5e9}
    return json.dumps({"step": 1, **times, "decodes": 3, "prefills": 1, "waiting": 2, "running": 4, "kv_tokens": 9})


def test_a_step_log_is_read_from_a_moment_on(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(f"{entry(1.0)}\n{entry(1.5)}\n")
    assert read_steps(path, since_s=1.2) == [Step(1.5, 2.0, 2.5, 3, 1, 2, 4)]
    assert read_steps(path, since_s=0.0)[0].size == 4


@pytest.mark.parametrize("content", ["no json", "{}"])
def test_other_files_are_no_step_logs(content: str, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(content)
    with pytest.raises(StepLogError, match="is not a step log"):
        read_steps(path, 0.0)


def test_a_missing_step_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(StepLogError, match="No such file"):
        read_steps(tmp_path / "nothing", 0.0)
