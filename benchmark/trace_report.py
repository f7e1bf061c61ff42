"""Where a token's time went: a timeline of the ring as tables.

    python -m benchmark.trace_report TRACE [--json FILE]

TRACE is what POST /stop_profile or `launch.py --profile` wrote. Three tables: what each process was busy with; the way
of a token through one step, stage by stage and hop by hop; the stages that requests went through.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.report import write_json
from benchmark.trace import Span, Trace, TraceError, load, union

# The way of a step and its tokens: process, span, and by which of its arguments it is found.
WAY = (
    ("scheduler", "plan", "step"),
    ("model", "launch", "step"),
    ("model", "step", "step"),
    ("model", "collect", "step"),
    ("scheduler", "result", "step"),
    ("scheduler", "send", "time_ns"),
    ("detokenizer", "detokenize", "time_ns"),
    ("gateway", "text", "time_ns"),
)


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(values: Iterable[float]) -> dict[str, float]:
    """Count, mean and percentiles, in microseconds."""
    found = list(values)
    return {
        "count": len(found),
        "mean": sum(found) / len(found),
        "p50": percentile(found, 0.5),
        "p99": percentile(found, 0.99),
    }


def by_process(trace: Trace) -> list[dict[str, Any]]:
    """What each process was busy with, and which share of the trace that was."""
    begin, end = min(span.begin for span in trace.spans), max(span.end for span in trace.spans)
    rows = []
    for process in trace.processes:
        spans = [span for span in trace.spans if span.process == process]
        # A step on a device leaves its process free; what its main thread does is on the first track.
        loop = [(span.begin, span.end) for span in spans if span.track == 1]
        rows.append({"process": process, "what": "loop", "share": union(loop) / (end - begin), "count": len(loop)})
        for name in dict.fromkeys(span.name for span in spans):
            times = [span.end - span.begin for span in spans if span.name == name]
            rows.append({"process": process, "what": name, "share": sum(times) / (end - begin), **summary(times)})
    return rows


def steps(trace: Trace) -> list[list[Span]]:
    """The spans of each step that was recorded on its whole way, in the order of `WAY`."""
    found: dict[tuple[str, str], dict[Any, Span]] = defaultdict(dict)
    keys = {(process, name): key for process, name, key in WAY}
    for span in trace.spans:
        key = keys.get((span.process, span.name))
        if key is not None:
            found[span.process, span.name].setdefault(span.args[key], span)
    # A step's tokens are known by the time of its result: they are what is sent next.
    sends = sorted(found["scheduler", "send"].values(), key=lambda span: span.begin)
    results = sorted(found["scheduler", "result"].values(), key=lambda span: span.begin)
    following = {}
    position = 0
    for result in results:
        while position < len(sends) and sends[position].begin < result.begin:
            position += 1
        if position < len(sends):
            following[result.args["step"]] = sends[position].args["time_ns"]
    whole = []
    for step in found["model", "step"]:
        identity = {"step": step, "time_ns": following.get(step)}
        chain = [found[process, name].get(identity[key]) for process, name, key in WAY]
        recorded = [span for span in chain if span is not None]
        if len(recorded) == len(WAY):
            whole.append(recorded)
    return whole


def token_way(trace: Trace) -> list[dict[str, Any]]:
    """How long each stage of a token's way took, and each time in between, over all steps."""
    times: dict[str, list[float]] = {}
    for chain in steps(trace):
        times.setdefault(_title(chain[0]), []).append(chain[0].end - chain[0].begin)
        for span, following in pairwise(chain):
            gap = max(0.0, following.begin - span.end)
            what = "hop" if following.process != span.process else "wait"
            times.setdefault(f"  {what} to {following.process} ({following.name})", []).append(gap)
            times.setdefault(_title(following), []).append(following.end - following.begin)
    found = {what: summary(values) for what, values in times.items()}
    total = sum(figures["mean"] for figures in found.values())
    return [{"what": what, "share": figures["mean"] / total, **figures} for what, figures in found.items()]


def _title(span: Span) -> str:
    return f"{span.process}: {span.name}"


def request_stages(trace: Trace) -> list[dict[str, Any]]:
    """How long requests were in each of their stages."""
    times: dict[str, list[float]] = {}
    for request in trace.requests.values():
        for name, begin, end in request.stages:
            times.setdefault(name, []).append(end - begin)
    total = sum(request.end - request.begin for request in trace.requests.values())
    return [{"what": name, "share": sum(values) / total, **summary(values)} for name, values in times.items()]


def report(trace: Trace) -> dict[str, Any]:
    """All tables as plain data; times in microseconds, shares from 0 to 1. Raises TraceError when nothing happened."""
    if not trace.spans:
        raise TraceError("the trace holds no spans: nothing happened while it was recorded")
    return {
        "processes": by_process(trace),
        "token": token_way(trace),
        "requests": request_stages(trace),
        "device": [
            {"what": name, **summary(times)} for name, times in sorted(_device(trace).items(), key=_longest)[:20]
        ],
        "coverage": min((request.covered for request in trace.requests.values()), default=None),
    }


def _device(trace: Trace) -> dict[str, list[float]]:
    times: dict[str, list[float]] = defaultdict(list)
    for span in trace.device:
        times[span.name].append(span.end - span.begin)
    return times


def _longest(item: tuple[str, list[float]]) -> float:
    return -sum(item[1])


def show(console: Console, figures: dict[str, Any]) -> None:
    """Print the tables."""
    titles = {
        "processes": "what each process was busy with",
        "token": "the way of a token, from the plan of its step to the stream that it goes to",
        "requests": "where requests spent their time",
        "device": "what the torch profiler saw, the longest first",
    }
    for key, title in titles.items():
        if not figures[key]:
            continue
        table = Table(title=title, title_justify="left")
        columns = [name for name in ("process", "what") if name in figures[key][0]]
        for column in columns:
            table.add_column(column)
        for column in ("share", "count", "mean us", "p50 us", "p99 us"):
            table.add_column(column, justify="right")
        for row in figures[key]:
            share = f"{100 * row['share']:.1f} %" if "share" in row else ""
            cells = [f"{row[name]:.1f}" if name in row else "" for name in ("mean", "p50", "p99")]
            table.add_row(*(row[name] for name in columns), share, str(row["count"]), *cells)
        console.print(table)
    if figures["coverage"] is not None:
        console.print(f"the stages account for at least {100 * figures['coverage']:.1f} % of each request's time")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.trace_report", description="A timeline of the ring as tables.")
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    args = parser.parse_args(argv)
    try:
        figures = report(load(args.trace))
    except TraceError as error:
        print(f"benchmark.trace_report: {error}", file=sys.stderr)
        return 2
    show(Console(), figures)
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
