"""What it costs to see everything: spans off and on, and a metrics page that is read ten times a second.

    python -m benchmark.observability [--rounds 7] [--against FOLDER] [--json FILE]

Three comparisons, each of two ways of running the same load that take turns, so that what else the machine does hits
both. Their result is the median of the rounds' ratios, with the smallest and the largest beside it.

    spans on        a profile without torch runs, against none: tokens a second of a mock model without cost, and CPU
                    time a token of all five processes
    spans off       this checkout against another one, of a commit without spans (FOLDER): the same figures
    scraped         /metrics is read ten times a second, against never: p99 of the time between the tokens that a client
                    gets, at a pace at which every token has an event of its own
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmark.control_plane import launch_options, load, mock_profile
from benchmark.report import write_json
from benchmark.server import LAUNCH, Server, ServerError
from benchmark.server_figures import NoFiguresError, cpu_seconds

FLAT_OUT_STREAMS, FLAT_OUT_TOKENS = 64, 200
PACED_STREAMS, PACE, PACED_TOKENS = 16, 1600.0, 300
SCRAPE_INTERVAL_S = 0.1
PROFILE = b'{"torch": false}'

Run = dict[str, float]


def flat_out(server: Server) -> Run:
    """Tokens a second, and CPU microseconds a token of the ring, with a model that takes no time."""
    processes = [process for name, process in server.processes().items() if name != "supervisor"]
    before = sum(map(cpu_seconds, processes))
    requests = 3 * FLAT_OUT_STREAMS
    results, wall_s, _ = uvloop.run(load(server.url, FLAT_OUT_STREAMS, requests, FLAT_OUT_TOKENS, True))
    tokens = sum(result.completion_tokens for result in results)
    if any(result.error for result in results):
        raise NoFiguresError(f"requests failed: {next(result.error for result in results if result.error)}")
    return {"tokens_s": tokens / wall_s, "cpu_us_a_token": 1e6 * (sum(map(cpu_seconds, processes)) - before) / tokens}


def paced(server: Server) -> Run:
    """p50 and p99 of the time between tokens at the client, in milliseconds."""
    results, _, _ = uvloop.run(load(server.url, PACED_STREAMS, PACED_STREAMS, PACED_TOKENS, True))
    gaps = sorted(gap for result in results for gap in result.itls)
    if not gaps:
        raise NoFiguresError("no tokens came one by one: look at the server's log")
    return {"itl_p50_ms": 1000 * gaps[len(gaps) // 2], "itl_p99_ms": 1000 * gaps[int(0.99 * len(gaps))]}


@contextmanager
def profiled(server: Server) -> Iterator[None]:
    """A profile runs meanwhile; its trace is thrown away."""
    _post(f"{server.url}/start_profile", PROFILE)
    try:
        yield
    finally:
        _post(f"{server.url}/stop_profile", b"")


@contextmanager
def scraped(server: Server) -> Iterator[None]:
    """The metrics page is read every SCRAPE_INTERVAL_S meanwhile."""
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(SCRAPE_INTERVAL_S):
            with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
                response.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"} if body else {}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method="POST"), timeout=60) as response:
        response.read()


def compare(rounds: int, plain: Callable[[], Run], changed: Callable[[], Run]) -> dict[str, Any]:
    """Take turns, who goes first as well. The ratios of each figure, changed by plain."""
    pairs: list[tuple[Run, Run]] = []
    for number in range(rounds):
        if number % 2:
            after = changed()
            pairs.append((plain(), after))
        else:
            before = plain()
            pairs.append((before, changed()))
    ratios = {name: [after[name] / before[name] for before, after in pairs] for name in pairs[0][0]}
    return {
        "rounds": [{"plain": before, "changed": after} for before, after in pairs],
        "ratios": {
            name: {"median": median(found), "min": min(found), "max": max(found)} for name, found in ratios.items()
        },
    }


def measure(rounds: int, against: Path | None) -> dict[str, Any]:
    """All comparisons. Raises ServerError and NoFiguresError."""
    folder = tempfile.mkdtemp(prefix="quintet-profiles-")
    figures: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}
    options = launch_options(FLAT_OUT_STREAMS, FLAT_OUT_TOKENS, "instant")
    try:
        with Server([*options, f"--profile-dir={folder}"]) as server:
            flat_out(server)  # connections and code paths

            def with_profile() -> Run:
                with profiled(server):
                    return flat_out(server)

            figures["spans on"] = compare(rounds, lambda: flat_out(server), with_profile)
            if against is not None:
                with Server(options, launch=against / "launch.py") as other:
                    flat_out(other)
                    figures["spans off"] = compare(rounds, lambda: flat_out(other), lambda: flat_out(server))
    finally:
        shutil.rmtree(folder)
    with (
        mock_profile(PACED_STREAMS, PACE) as profile,
        Server(launch_options(PACED_STREAMS, PACED_TOKENS, profile)) as server,
    ):
        paced(server)

        def with_scrapes() -> Run:
            with scraped(server):
                return paced(server)

        figures["scraped"] = compare(rounds, lambda: paced(server), with_scrapes)
    return figures


def show(console: Console, figures: dict[str, Any]) -> None:
    """Print the ratios."""
    table = Table(title=f"ratios, changed by plain, on {figures['cores']} cores", title_justify="left")
    for column in ("what", "figure", "median", "min", "max"):
        table.add_column(column, justify="left" if column in ("what", "figure") else "right")
    for what, found in figures.items():
        if isinstance(found, dict):
            for name, ratio in found["ratios"].items():
                table.add_row(what, name, *(f"{ratio[key]:.3f}" for key in ("median", "min", "max")))
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.observability", description="What it costs to see everything.")
    parser.add_argument("--rounds", type=int, default=7, help="of each comparison (default: 7)")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout without spans, for 'spans off'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    args = parser.parse_args(argv)
    if args.against is not None and not (args.against / "launch.py").is_file():
        print(f"benchmark.observability: --against {args.against}: there is no {LAUNCH.name} in it", file=sys.stderr)
        return 2
    try:
        figures = measure(args.rounds, args.against)
    except (ServerError, NoFiguresError) as error:
        print(f"benchmark.observability: {error}", file=sys.stderr)
        return 2
    show(Console(), figures)
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
