"""A scenario against a live server: one that runs already, or one of its own.

    python -m benchmark.scenarios --scenario cache_miss [--requests N] [--concurrency N] [--timeout-ms N] [--rate R]
        [--seed S] [--unary] [--json FILE] [--csv FILE] [--markdown FILE] [--plot FILE] [--base-url URL]
        [-- OPTIONS OF launch.py]

Without --base-url a server is started, with `--model=mock --mock-profile=seed` unless the options say otherwise. With
it, the options tell how that server was started: the report puts its caps beside the figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil
import uvloop
from rich.console import Console

from benchmark.experiment import Experiment, add_arguments, experiment
from benchmark.load import Run, send, warm_up
from benchmark.plot import NoPlotError, check_matplotlib, draw
from benchmark.report import Figures, figures, show, write
from benchmark.server import Server, ServerError
from benchmark.server_figures import (
    HTTP_TIMEOUT_S,
    NoFiguresError,
    Snapshot,
    cores_used,
    server_figures,
    snapshot,
)
from benchmark.step_log import Step, StepLogError, read_steps
from ipc.options import OptionError


def measure(asked: Experiment) -> tuple[Run, list[Step], Figures]:
    """Run one scenario against a server that is started for it.

    Raises ServerError when the server does not start and NoFiguresError when it does not give its figures.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps.jsonl"
        with Server([*asked.launch, f"--step-log={log}"]) as server:
            run, before, after = _between_snapshots(asked, server.url, server.processes())
        steps = read_steps(log, run.started)  # complete only now that the scheduler has closed it
    figures_of_server = server_figures(before.scheduler, after.scheduler, steps, cores_used(before, after))
    return run, steps, figures("live", asked, run, figures_of_server)


def measure_at(url: str, asked: Experiment) -> Figures:
    """Run one scenario against a server that runs already. Raises NoFiguresError when it does not give its figures."""
    run, before, after = _between_snapshots(asked, url.rstrip("/"), {})
    return figures("live", asked, run, server_figures(before.scheduler, after.scheduler, [], {}))


def measure_behind(url: str, asked: Experiment) -> Figures:
    """Run one scenario against several replicas behind one address, whose caches are emptied first.

    What each of them counts is not asked: all figures are those that clients get. Raises NoFiguresError when there is
    nobody who empties caches.
    """
    url = url.rstrip("/")
    try:
        urllib.request.urlopen(
            urllib.request.Request(f"{url}/flush_cache", method="POST"), timeout=HTTP_TIMEOUT_S
        ).close()
    except OSError as error:
        raise NoFiguresError(f"{url}/flush_cache: {error}; is a front door of Quintet's replicas there?") from None
    uvloop.run(warm_up(url, asked.scenario, asked.stream))
    run = uvloop.run(send(url, asked.scenario, asked.stream, asked.seed))
    return figures("live", asked, run, server_figures({}, {}, [], {}))


def _between_snapshots(
    asked: Experiment, url: str, processes: Mapping[str, psutil.Process]
) -> tuple[Run, Snapshot, Snapshot]:
    scenario = asked.scenario
    uvloop.run(warm_up(url, scenario, asked.stream))
    before = snapshot(url, processes)
    run = uvloop.run(send(url, scenario, asked.stream, asked.seed))
    return run, before, snapshot(url, processes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.scenarios", description="A scenario against a live server.")
    add_arguments(parser)
    parser.add_argument("--base-url", default="", help="a server that runs already, such as http://127.0.0.1:8000")
    args = parser.parse_args(argv)
    try:
        asked = experiment(args)
        if args.plot:
            check_matplotlib()
            if args.base_url:
                raise NoPlotError("--plot needs the step log of a server of its own: leave --base-url out")
        if args.base_url:
            shown = measure_at(args.base_url, asked)
        else:
            run, steps, shown = measure(asked)
            if args.plot:
                draw(args.plot, f"{shown.scenario}: {shown.caps}", steps, run.measured, run.started)
        show(Console(), shown)
        write(shown, args.json, args.csv, args.markdown)
    except (OptionError, ServerError, NoFiguresError, NoPlotError, StepLogError, OSError) as error:
        print(f"benchmark.scenarios: {error}", file=sys.stderr)
        return 2
    return 1 if shown.client.failed else 0


if __name__ == "__main__":
    sys.exit(main())
