"""A picture of a part of a timeline: five processes, their spans, and the arrows of one request.

    python -m benchmark.trace_plot TRACE PICTURE [--from MS] [--to MS]

It needs matplotlib, an optional extra. Perfetto shows all of a trace, this a glance of it for the docs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.plot import NoPlotError, check_matplotlib
from benchmark.trace import Span, Trace, TraceError, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "read": "#4c78a8", "text": "#72b7b2", "format": "#9ecae9", "tokenize": "#f58518", "submit": "#e45756",
    "plan": "#54a24b", "result": "#88d27a", "send": "#bcbd22", "launch": "#b279a2", "step": "#d8b5d0",
    "collect": "#8c6d9c", "detokenize": "#ff9da6",
}  # fmt: skip
HEIGHT = 0.8


def rows_of(trace: Trace) -> dict[tuple[str, int], int]:
    """Which row each track gets, those of a process one below the other, the ring from top to bottom."""
    tracks = sorted(
        {(span.process, span.track) for span in trace.spans if span.name != "gc"},
        key=lambda track: (trace.processes.index(track[0]), track[1]),
    )
    return {track: row for row, track in enumerate(tracks)}


def draw(path: Path, trace: Trace, begin: float, end: float) -> None:
    """Write the picture of `begin` to `end`, in microseconds. Raises NoPlotError."""
    check_matplotlib()
    from matplotlib.figure import Figure

    rows = rows_of(trace)
    figure = Figure(figsize=(12, 0.7 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    for span in trace.spans:
        row = rows.get((span.process, span.track))
        if span.name in COLORS and row is not None and begin <= span.end and span.begin <= end:
            _bar(axes, span, row)
    _arrows(axes, trace, rows, begin, end)
    titles = [name if number == 1 else f"{name}: {trace.tracks[name, number]}" for name, number in rows]
    axes.set_yticks(list(rows.values()), titles)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(begin / 1000, end / 1000)
    axes.set_xlabel("milliseconds")
    shown = [name for name in COLORS if any(span.name == name for span in trace.spans)]
    handles = [axes.barh([0], [0], color=COLORS[name], label=name) for name in shown]
    figure.legend(handles=handles, ncols=len(shown), loc="outside upper center", frameon=False, fontsize=8)
    try:
        figure.savefig(path, dpi=110)
    except ValueError as error:
        raise NoPlotError(f"{path}: {error}") from None


def _bar(axes: Axes, span: Span, row: int) -> None:
    width = max(span.end - span.begin, 15.0) / 1000  # what is shorter would not be seen
    left = [span.begin / 1000]
    axes.barh([row], [width], left=left, height=HEIGHT, color=COLORS[span.name], edgecolor="white", linewidth=0.4)


def _arrows(axes: Axes, trace: Trace, rows: dict[tuple[str, int], int], begin: float, end: float) -> None:
    """The way of the request that has the most of its arrows within the picture."""

    def inside(rid: str) -> list[tuple[float, int]]:
        return [
            (event["ts"] / 1000, rows[trace.processes[event["pid"] - 1], event["tid"]])
            for event in trace.ways[rid]
            if begin <= event["ts"] <= end
        ]

    rid = max(trace.ways, key=lambda rid: len(inside(rid)), default=None)
    for (x, y), (x2, y2) in pairwise(inside(rid) if rid is not None else []):
        axes.annotate("", (x2, y2), (x, y), arrowprops={"arrowstyle": "->", "color": "#222222", "lw": 0.9})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.trace_plot", description="A picture of a part of a timeline.")
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("--from", dest="begin", type=float, default=0.0, metavar="MS", help="where it begins")
    parser.add_argument("--to", dest="end", type=float, default=0.0, metavar="MS", help="where it ends; 0 is the end")
    args = parser.parse_args(argv)
    try:
        trace = load(args.trace)
        end = 1000 * args.end or max((span.end for span in trace.spans), default=0.0)
        draw(args.picture, trace, 1000 * args.begin, end)
    except (TraceError, NoPlotError) as error:
        print(f"benchmark.trace_plot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
