"""Replicas on Ray Serve under load: how throughput grows with them, and what their router saves.

    python -m benchmark.ray_serve --scenario cache_miss --replicas 1 3 [the flags of benchmark.scenarios] [--json FILE]
        [-- OPTIONS OF launch.py]
    python -m benchmark.ray_serve --scenario multi_turn --replicas 3 --router random prefix [...]

For every number of replicas and every router a cluster is started on this machine with the application of deploy/ray,
whose mocks sleep as long as a step takes: all share the cores, so their own work must be small beside that. The same is
simulated, and stands beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product

from rich.console import Console
from rich.table import Table

from benchmark.experiment import Experiment, Replicas, add_arguments, experiment
from benchmark.overheads import DEFAULT, load_overheads
from benchmark.ray_cluster import RayCluster, RayClusterError, application
from benchmark.report import Figures, row, write_csv, write_json, write_markdown
from benchmark.scenarios import measure_behind
from benchmark.server_figures import NoFiguresError
from benchmark.simulation import simulate
from ipc.options import OptionError

# Serve's class for each router; "" is the application's own.
ROUTERS = {"random": "benchmark.ray_routers:RandomRouter", "prefix": ""}


def experiments(asked: Experiment, counts: list[int], routers: list[str]) -> Iterator[Experiment]:
    """One for each combination, the routers varying fastest."""
    for count, router in product(counts, routers):
        yield replace(asked, replicas=Replicas(count, router, one_machine=True))


def measure(asked: Experiment) -> Figures:
    """Run one experiment on a cluster of its own. Raises RayClusterError and NoFiguresError."""
    options = [option for option in asked.launch if not option.startswith("--model=")]
    with RayCluster(application(options, asked.replicas.count, ROUTERS[asked.replicas.router])) as cluster:
        return measure_behind(cluster.url, asked)


def show(console: Console, live: list[Figures], simulated: list[Figures]) -> None:
    """Every live run beside its simulation, and how it compares with the first one."""
    table = Table(title=f"{live[0].scenario}, live / simulated; ratios are those of the live runs to the first one")
    for column in ("replicas", "router", "failed", "req/s", "ratio", "tokens saved", "ratio", "TTFT ms", "p99"):
        table.add_column(column, justify="left" if column == "router" else "right")
    first = live[0].client
    for one, other in zip(live, simulated, strict=True):
        client, model = one.client, other.client
        ttft = [(spread.mean, spread.p99) if spread else (0.0, 0.0) for spread in (client.ttft, model.ttft)]
        saved_ratio = f"{client.cached_tokens / first.cached_tokens:.2f}" if first.cached_tokens else ""
        table.add_row(
            str(one.replicas), one.router, str(client.failed),
            f"{client.req_s:.2f} / {model.req_s:.2f}", f"{client.req_s / first.req_s:.2f}" if first.req_s else "",
            f"{client.cached_tokens} / {model.cached_tokens}", saved_ratio,
            *(f"{1000 * ttft[0][column]:.0f} / {1000 * ttft[1][column]:.0f}" for column in (0, 1)),
        )  # fmt: skip
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.ray_serve", description="Replicas on Ray Serve under load.")
    add_arguments(parser)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 3], help="how many rings (default: 1 3)")
    parser.add_argument("--router", choices=ROUTERS, nargs="+", default=["prefix"], help="(default: prefix)")
    args = parser.parse_args(argv)
    if min(args.replicas) < 1:
        parser.error("--replicas must be at least 1")
    if args.plot:
        parser.error("--plot draws the steps of one ring: see benchmark.scenarios")
    console = Console(width=120)
    live, simulated = [], []
    try:
        overheads = load_overheads(DEFAULT)
        for asked in experiments(experiment(args), args.replicas, args.router):
            simulated.append(simulate(asked, overheads)[2])
            live.append(measure(asked))
            show(console, live, simulated)
    except (OptionError, RayClusterError, NoFiguresError, OSError) as error:
        print(f"benchmark.ray_serve: {error}", file=sys.stderr)
        return 2
    if args.json:
        write_json(args.json, {"live": [asdict(one) for one in live], "simulated": [asdict(one) for one in simulated]})
    rows = [row(one) for one in (*live, *simulated)]
    if args.csv:
        write_csv(args.csv, rows)
    if args.markdown:
        write_markdown(args.markdown, rows)
    return 1 if any(one.client.failed for one in live) else 0


if __name__ == "__main__":
    sys.exit(main())
