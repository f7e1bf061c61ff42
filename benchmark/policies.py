"""The scheduling policies side by side, each where it wins and where it loses, under virtual time.

    python -m benchmark.policies [--workloads heavy_tail ...] [--policies fcfs sjf my_module:MyPolicy ...]
        [--seeds 3] [--json FILE] [--markdown FILE] [-- OPTIONS OF launch.py]

The scheduler is the real one; the runner is the mock with the `gpu` profile unless told otherwise. The same command
gives the same figures on every machine.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.client import Measured
from benchmark.overheads import Overheads, load_overheads
from benchmark.report import write_json, write_markdown
from benchmark.ring_model import Request, Ring
from benchmark.summary import percentile
from benchmark.workloads import WORKLOADS, Arrival, Workload
from ipc.option_table import POLICIES
from ipc.options import OptionError, from_command_line
from scheduler_proc.policies import PolicyError

LAUNCH = (
    "--model=mock", "--mock-profile=gpu", "--max-num-seqs=32", "--max-num-queued-reqs=100000",
    "--max-num-queued-tokens=1000000000",
)  # fmt: skip


def run(workload: Workload, policy: str, seed: int, launch: Sequence[str], overheads: Overheads) -> dict[str, Any]:
    """One workload under one policy. TTFT is from the client's send to its first text; all times in ms."""
    options = from_command_line([*LAUNCH, *workload.launch, *launch, f"--scheduling-policy={policy}"], os.environ)
    ring = Ring(options, overheads, stream=True)
    arrivals = workload.arrivals(random.Random(seed))
    measured: list[tuple[Arrival, Measured]] = []

    def send(arrival: Arrival) -> None:
        request = Request(
            arrival.prompt, "", 0, lambda done: measured.append((arrival, done)),
            max_tokens=arrival.max_tokens, ignore_eos=True, priority=arrival.priority, tenant=arrival.tenant,
        )  # fmt: skip
        ring.send(request)

    for arrival in arrivals:
        ring.loop.at(round(arrival.at_s * 1e9), lambda arrival=arrival: send(arrival))  # type: ignore[misc]
    ring.loop.run()
    failed = [done.error for _, done in measured if done.error]
    if failed or len(measured) != len(arrivals):
        raise RuntimeError(f"{len(failed)} of {len(arrivals)} requests failed, the first with: {failed[:1]}")
    stats = ring.stats()
    groups = sorted({arrival.group for arrival in arrivals})
    ttfts = {name: sorted(1000 * done.ttft for arrival, done in measured if arrival.group == name) for name in groups}
    every = sorted(ttft for group in ttfts.values() for ttft in group)
    return {
        "seconds": max(done.sent + done.latency for _, done in measured),
        "ttft_ms": statistics.fmean(every),
        "ttft_p99_ms": percentile(every, 99),
        "groups": {name: {"ttft_ms": statistics.fmean(values), "ttft_p99_ms": percentile(values, 99)}
                   for name, values in ttfts.items()},
        "saved_percent": 100 * stats["prefix_hits"] / stats["prefix_queries"],
        "preemptions": stats["preemptions"],
    }  # fmt: skip


def mean_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over runs with different seeds."""
    first = runs[0]
    return {
        key: mean_of([one[key] for one in runs]) if isinstance(first[key], dict)
        else statistics.fmean(one[key] for one in runs)
        for key in first
    }  # fmt: skip


def rows(workload: str, by_policy: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """The lines of the table for one workload, a column a policy."""

    def line(what: str, show: Callable[[dict[str, Any]], str]) -> dict[str, str]:
        shown = {policy: show(figures) for policy, figures in by_policy.items()}
        return {"workload": workload, "figure": what} | shown

    def seconds(figures: dict[str, Any]) -> str:
        return f"{figures['ttft_ms'] / 1000:.2f} / {figures['ttft_p99_ms'] / 1000:.2f}"

    groups = list(next(iter(by_policy.values()))["groups"])
    lines = [line("TTFT s, mean / p99", seconds)]
    if len(groups) > 1:
        for name in groups:
            lines.append(line(f"TTFT of {name}", lambda figures, name=name: seconds(figures["groups"][name])))  # type: ignore[misc]
    lines.append(line("prompt tokens from the cache", lambda figures: f"{figures['saved_percent']:.0f} %"))
    lines.append(line("all done after s", lambda figures: f"{figures['seconds']:.1f}"))
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.policies", description="The scheduling policies side by side.")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...; the table has means")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("launch", nargs="*", metavar="OPTION", help="options of launch.py, behind --")
    args = parser.parse_args(argv)
    overheads = load_overheads()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        for name in args.workloads:
            found[name] = {}
            for policy in args.policies:
                runs = [run(WORKLOADS[name], policy, seed, args.launch, overheads) for seed in range(args.seeds)]
                found[name][policy] = mean_of(runs)
    except (OptionError, PolicyError) as error:
        print(f"benchmark.policies: {error}", file=sys.stderr)
        return 2
    table = Table(title="under virtual time", title_justify="left")
    lines = [line for name, by_policy in found.items() for line in rows(name, by_policy)]
    for column in lines[0]:
        table.add_column(column, justify="left" if column in ("workload", "figure") else "right")
    for line in lines:
        table.add_row(*line.values())
    Console().print(table)
    if args.json:
        write_json(args.json, found)
    if args.markdown:
        write_markdown(args.markdown, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
