"""The committed timeline, its tables, and its picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import trace_plot, trace_report
from benchmark.trace import TraceError, load, union

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
COMMITTED = DOCS / "mixed-run.trace.json.gz"
RING = ["gateway", "tokenizer", "scheduler", "model", "detokenizer"]


def test_the_committed_trace_follows_every_request_round_the_ring() -> None:
    trace = load(COMMITTED)
    assert trace.processes == RING
    assert len(trace.requests) == 7
    for rid, request in trace.requests.items():
        assert request.covered >= 0.95
        way = trace.ways[rid]
        assert {trace.processes[event["pid"] - 1] for event in way} == set(RING)
        assert (way[0]["ph"], way[-1]["ph"]) == ("s", "f")
    figures = trace_report.report(trace)
    assert {row["process"] for row in figures["processes"]} == set(RING)
    shares = [row["share"] for row in figures["token"]]
    assert sum(shares) == pytest.approx(1.0)
    assert figures["token"][0]["what"] == "scheduler: plan"
    assert figures["token"][-1]["what"] == "gateway: text"


def test_a_picture_of_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert trace_plot.main([str(COMMITTED), str(tmp_path / "x.png"), "--to", "40"]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert trace_plot.main([str(COMMITTED), str(tmp_path / "x.nothing")]) == 2


def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(TraceError, match="no trace"):
        load(tmp_path / "x.json")
    assert trace_report.main([str(tmp_path / "nowhere.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "x.json").write_text('{"traceEvents": []}')
    assert trace_report.main([str(tmp_path / "x.json")]) == 2
    assert "nothing happened" in capsys.readouterr().err


def test_overlapping_times_count_once() -> None:
    assert union([(0, 2), (1, 3), (5, 6)]) == 4
