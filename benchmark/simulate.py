"""A scenario under virtual time: the scheduler and the mock of the live ring, thousands of requests in seconds.

    python -m benchmark.simulate --scenario cache_miss [the flags of benchmark.scenarios] [-- OPTIONS OF launch.py]
    python -m benchmark.simulate --scenario bursty --sweep --policies fcfs sjf --budgets 512 2048 --rates 20 40 \\
        --lanes 1 4 --json FILE --csv FILE
    python -m benchmark.simulate --scenario multi_turn --replicas 3 --router prefix [--one-machine]
    python -m benchmark.simulate --scenario multi_turn --sweep --replicas 1 3 --router random least-loaded prefix
    python -m benchmark.simulate --scenario cache_miss --compare-live [--runs 3]
    python -m benchmark.simulate --scenario multi_turn --replicas 3 --one-machine --compare-live --base-url URL
    python -m benchmark.simulate --calibrate FILE

The same command gives the same figures, byte for byte, on every machine: nothing of the wall clock enters. What the
ring costs beside the model comes from a file of constants (`--overheads`), measured once with --calibrate.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark import scenarios
from benchmark.calibrate import calibrate
from benchmark.compare_live import NothingToCompareError, compare, show_comparison
from benchmark.experiment import Experiment, Replicas, add_arguments, experiment
from benchmark.fleet import ROUTERS
from benchmark.overheads import DEFAULT, Overheads, OverheadsError, load_overheads, save_overheads
from benchmark.plot import NoPlotError, check_matplotlib, draw
from benchmark.report import row, show, wide_console, write, write_csv, write_json, write_markdown
from benchmark.server import ServerError
from benchmark.server_figures import NoFiguresError
from benchmark.simulation import simulate
from benchmark.step_log import StepLogError
from benchmark.sweep import Sweep, sweep
from ipc.options import OptionError
from ipc.process import FatalError
from scheduler_proc.policies import PolicyError

# Columns of a sweep's table on the screen; the files have all.
SHOWN = (
    "replicas", "router", "policy", "prefill_order", "lanes", "max_num_step_seqs", "max_num_batched_tokens", "rate",
    "failed", "req_s", "latency_ms", "latency_p99_ms", "ttft_ms", "ttft_p99_ms", "tbt_ms", "mean_batch",
    "tokens_saved", "preemptions",
)  # fmt: skip
# How often --compare-live runs a scenario unless told otherwise.
COMPARED_RUNS = 3

# What the user can do something about: each of them is one line.
ERRORS = (
    OptionError, PolicyError, FatalError, OverheadsError, NoPlotError, ServerError, NoFiguresError, StepLogError,
    NothingToCompareError,
)  # fmt: skip


def run_one(console: Console, asked: Experiment, overheads: Overheads, args: argparse.Namespace) -> int:
    """One simulated run."""
    started = time.perf_counter()
    run, steps, shown = simulate(asked, overheads)
    seconds = time.perf_counter() - started
    show(console, shown)
    console.print(f"simulated in {seconds:.2f} s, {run.wall_s / seconds:.0f} times as fast as it happens")
    write(shown, args.json, args.csv, args.markdown)
    if args.plot:
        draw(args.plot, f"{shown.scenario}, simulated: {shown.caps}", steps, run.measured, run.started)
    return 1 if shown.client.failed else 0


def run_sweep(console: Console, asked: Experiment, overheads: Overheads, args: argparse.Namespace) -> int:
    """Every combination of what --policies, --budgets and so on list."""
    tried = Sweep(
        args.policies, args.prefill_orders, args.budgets, args.step_seqs, args.rates, args.lanes, args.replicas,
        args.router,
    )  # fmt: skip
    found = list(sweep(asked, tried, overheads))
    rows = [row(shown) for shown in found]
    _show_sweep(console, f"{asked.scenario.name}, simulated; 0 is no limit, rate 0 a closed loop", rows)
    if args.json:
        write_json(args.json, [asdict(shown) for shown in found])
    if args.csv:
        write_csv(args.csv, rows)
    if args.markdown:
        write_markdown(args.markdown, rows)
    return 0


def _show_sweep(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of the columns that are not the same in all rows, and a line of those that are."""
    cells = {name: ["" if one[name] is None else str(one[name]) for one in rows] for name in SHOWN}
    same = {name: values[0] for name, values in cells.items() if len(rows) > 1 and len(set(values)) == 1}
    table = Table(title=title, title_justify="left")
    varied = [name for name in SHOWN if name not in same]
    for name in varied:
        # Headers wrap between words, so that figures need not.
        table.add_column(name.replace("_", " "), justify="right", min_width=max(map(len, cells[name])))
    for values in zip(*(cells[name] for name in varied), strict=True):
        table.add_row(*values)
    console.print(table)
    if same:
        console.print("the same in all: " + ", ".join(f"{name} {value}" for name, value in same.items()))


def run_comparison(console: Console, asked: Experiment, overheads: Overheads, args: argparse.Namespace) -> int:
    """The same experiment simulated and live. Exit code 1 when they do not agree."""
    live, simulated = [], []
    for number in range(args.runs or COMPARED_RUNS):
        one = replace(asked, seed=asked.seed + number)
        simulated.append(simulate(one, overheads)[2])
        live.append(scenarios.measure_behind(args.base_url, one) if args.base_url else scenarios.measure(one)[2])
        show(console, simulated[-1])
        show(console, live[-1])
    found = compare(live, simulated)
    show_comparison(console, found)
    if args.json:
        runs = {"live": [asdict(run) for run in live], "simulated": [asdict(run) for run in simulated]}
        write_json(args.json, {"comparison": asdict(found), **runs})
    rows = [row(run) for run in (*live, *simulated)]
    if args.csv:
        write_csv(args.csv, rows)
    if args.markdown:
        write_markdown(args.markdown, rows)
    return 0 if found.agrees else 1


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    lists = (args.policies, args.prefill_orders, args.budgets, args.step_seqs, args.rates, args.lanes)
    if any(lists) and not args.sweep:
        parser.error("--policies, --budgets and the other lists need --sweep")
    if args.runs < 0 or (args.runs and not args.compare_live):
        parser.error("--runs needs --compare-live, and a number that is not negative")
    if args.plot and (args.sweep or args.compare_live):
        parser.error("--plot draws one run: leave out --sweep and --compare-live")
    if not args.sweep and max(len(args.replicas), len(args.router)) > 1:
        parser.error("several values of --replicas or --router need --sweep")
    if args.compare_live and (max(args.replicas) > 1) != bool(args.base_url):
        parser.error("--compare-live starts one ring; several need --base-url, one does without")
    if args.base_url and not args.compare_live:
        parser.error("--base-url needs --compare-live")
    if max(args.replicas) == 1 and (args.router or args.one_machine):
        parser.error("--router and --one-machine need --replicas, more than one")
    console = wide_console() if args.sweep else Console()
    try:
        if args.calibrate:
            overheads, about = calibrate()
            save_overheads(args.calibrate, overheads, about)
            console.print(asdict(overheads))
            return 0
        router = (args.router or ["prefix"])[0] if args.replicas[0] > 1 else ""
        replicas = Replicas(args.replicas[0], router, args.one_machine)
        asked, overheads = replace(experiment(args), replicas=replicas), load_overheads(args.overheads)
        if args.sweep:
            return run_sweep(console, asked, overheads, args)
        if args.compare_live:
            return run_comparison(console, asked, overheads, args)
        if args.plot:
            check_matplotlib()
        return run_one(console, asked, overheads, args)
    except (*ERRORS, OSError) as error:
        print(f"benchmark.simulate: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark.simulate", description="A scenario under virtual time.")
    add_arguments(parser)
    parser.add_argument("--overheads", type=Path, default=DEFAULT, metavar="FILE", help="what the ring itself costs")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--sweep", action="store_true", help="run every combination of the lists below")
    way.add_argument("--compare-live", action="store_true", help="run it live as well, and compare")
    way.add_argument("--calibrate", type=Path, metavar="FILE", help="measure the overheads here, and write them")
    parser.add_argument(
        "--runs", type=int, default=0, help=f"of --compare-live, of each kind (default: {COMPARED_RUNS})"
    )
    fleet = parser.add_argument_group("several rings; more than one value of each with --sweep")
    fleet.add_argument("--replicas", type=_replica_count, nargs="+", default=[1], help="how many (default: 1)")
    fleet.add_argument("--router", choices=ROUTERS, nargs="+", default=[], help="who gets a prompt (default: prefix)")
    fleet.add_argument("--base-url", default="", help="of --compare-live: where live ones are, such as deploy/ray's")
    fleet.add_argument("--one-machine", action="store_true", help="they share its cores; else each has its own")
    lists = parser.add_argument_group("of --sweep; what is not given stays as it is")
    lists.add_argument("--policies", nargs="+", default=[], help="of --scheduling-policy")
    lists.add_argument("--prefill-orders", nargs="+", default=[], help="of --prefill-order")
    lists.add_argument("--budgets", type=int, nargs="+", default=[], help="of --max-num-batched-tokens")
    lists.add_argument("--step-seqs", type=int, nargs="+", default=[], help="of --max-num-step-seqs")
    lists.add_argument("--rates", type=float, nargs="+", default=[], help="arrivals a second; 0 is a closed loop")
    lists.add_argument("--lanes", type=int, nargs="+", default=[], help="of --mock-lanes")
    return parser


def _replica_count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
