"""What it costs to see everything: spans off and on, and a metrics page that is read ten times a second.

    python -m benchmark.observability [--rounds 15] [--against FOLDER] [--json FILE]

Comparisons, each of two ways of running the same load that take turns, so that what else the machine does hits
both. Their result is the median of the rounds' ratios, and the ratio of the best rounds: what disturbs a round only
ever makes it worse. The smallest and the largest ratio beside them show how much the machine was disturbed.

    spans on        a profile without torch runs, against none: tokens a second of a mock model without cost, and CPU
                    time a token of all five processes
    spans off       this checkout against another one, of a commit without spans (FOLDER): the same figures
    by arithmetic   what a span takes, on, and the look at `spans.on` when it is off, in a loop by themselves; times the
                    spans that the ring records a token; by the CPU time of a token. And what it takes to make the
                    metrics page. It holds whatever else the machine does
    scraped         /metrics is read ten times a second, against never: p99 of the time between the tokens that a client
                    gets, at a pace at which every token has an event of its own
"""

from __future__ import annotations

import argparse
import json
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
from prometheus_client.exposition import generate_latest
from rich.console import Console
from rich.table import Table

from benchmark.control_plane import launch_options, load, mock_profile
from benchmark.report import write_json
from benchmark.server import LAUNCH, Server, ServerError
from benchmark.server_figures import NoFiguresError, cpu_seconds
from benchmark.trace import load as load_trace
from gateway.metrics.collect import collect
from gateway.metrics.page import OneFamily, families
from gateway.metrics.requests import RequestMetrics
from gateway.ring import RingView
from ipc.control_messages import ModelFiles
from ipc.spans import TEXT, Spans

FLAT_OUT_STREAMS, FLAT_OUT_TOKENS = 64, 100
REQUESTS = 2 * FLAT_OUT_STREAMS
PACED_STREAMS, PACE, PACED_TOKENS = 16, 1600.0, 200
SCRAPE_INTERVAL_S = 0.1
MORE_IS_BETTER = ("tokens_s",)
PROFILE = b'{"torch": false}'

Run = dict[str, float]


def flat_out(server: Server) -> Run:
    """Tokens a second, and CPU microseconds a token of the ring, with a model that takes no time."""
    processes = [process for name, process in server.processes().items() if name != "supervisor"]
    before = sum(map(cpu_seconds, processes))
    results, wall_s, _ = uvloop.run(load(server.url, FLAT_OUT_STREAMS, REQUESTS, FLAT_OUT_TOKENS, True))
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
def profiled(server: Server) -> Iterator[list[int]]:
    """A profile runs meanwhile. Its trace is thrown away; the number of spans in it is added to the list."""
    spans: list[int] = []
    _post(f"{server.url}/start_profile", PROFILE)
    try:
        yield spans
    finally:
        answer = json.loads(_post(f"{server.url}/stop_profile", b""))
        path = Path(answer["trace"])
        spans.append(len(load_trace(path).spans) + sum(answer["dropped_spans"].values()))
        path.unlink()


def span_costs() -> tuple[float, float]:
    """Nanoseconds of the look at a recorder that is off, and of a span, as the rooms write them; the best of some."""
    spans, number = Spans(), 2_000
    costs = []
    for on in (False, True):
        if on:
            spans.start()
        best = float("inf")
        for _ in range(300):  # so short that some of them are not disturbed
            started = time.perf_counter_ns()
            for _ in range(number):
                begun = time.monotonic_ns() if spans.on else 0
                if begun:
                    spans.add(TEXT, begun, 1)
            best = min(best, (time.perf_counter_ns() - started) / number)
        costs.append(best)
    return costs[0], costs[1]


def page_costs() -> dict[str, float]:
    """Milliseconds to make the metrics page, and for the longest of the slices between which tokens are served."""
    ring = RingView([])
    ring.update(ModelFiles("mock", "", "", 1024, 1000, {}))
    figures = collect(ring, RequestMetrics(), {})
    best = {"page_ms": float("inf"), "longest_slice_ms": float("inf")}
    for _ in range(20):
        slices = []
        before = time.perf_counter()
        for family in families(figures, with_vllm_names=True):
            generate_latest(OneFamily(family))
            now = time.perf_counter()
            slices.append(1000 * (now - before))
            before = now
        best = {
            "page_ms": min(best["page_ms"], sum(slices)),
            "longest_slice_ms": min(best["longest_slice_ms"], max(slices)),
        }
    return best


def arithmetic(spans_a_token: float, cpu_us_a_token: float) -> dict[str, float]:
    """What spans make of a token's CPU time."""
    off_ns, on_ns = span_costs()
    return {
        "off_ns": off_ns,
        "on_ns": on_ns,
        "spans_a_token": spans_a_token,
        "cpu_us_a_token": cpu_us_a_token,
        "off_share": off_ns * spans_a_token / 1000 / cpu_us_a_token,
        "on_share": on_ns * spans_a_token / 1000 / cpu_us_a_token,
    } | page_costs()


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


def _post(url: str, body: bytes) -> bytes:
    headers = {"Content-Type": "application/json"} if body else {}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method="POST"), timeout=60) as response:
        return bytes(response.read())


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
    ratios = {}
    for name in pairs[0][0]:
        found = [after[name] / before[name] for before, after in pairs]
        best = max if name in MORE_IS_BETTER else min
        best_ratio = best(after[name] for _, after in pairs) / best(before[name] for before, _ in pairs)
        ratios[name] = {"median": median(found), "best": best_ratio, "min": min(found), "max": max(found)}
    return {"rounds": [{"plain": before, "changed": after} for before, after in pairs], "ratios": ratios}


def measure(rounds: int, against: Path | None) -> dict[str, Any]:
    """All comparisons. Raises ServerError and NoFiguresError."""
    folder = tempfile.mkdtemp(prefix="quintet-profiles-")
    figures: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}
    options = launch_options(FLAT_OUT_STREAMS, FLAT_OUT_TOKENS, "instant")
    try:
        with Server([*options, f"--profile-dir={folder}"]) as server:
            flat_out(server)  # connections and code paths

            recorded: list[int] = []

            def with_profile() -> Run:
                with profiled(server) as spans:
                    run = flat_out(server)
                recorded.extend(spans)
                return run

            figures["spans on"] = found = compare(rounds, lambda: flat_out(server), with_profile)
            cpu_us = min(each["plain"]["cpu_us_a_token"] for each in found["rounds"])
            figures["by arithmetic"] = arithmetic(median(recorded) / (REQUESTS * FLAT_OUT_TOKENS), cpu_us)
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
    for column in ("what", "figure", "median", "best", "min", "max"):
        table.add_column(column, justify="left" if column in ("what", "figure") else "right")
    for what, found in figures.items():
        if isinstance(found, dict) and "ratios" in found:
            for name, ratio in found["ratios"].items():
                table.add_row(what, name, *(f"{ratio[key]:.3f}" for key in ("median", "best", "min", "max")))
    console.print(table)
    found = figures["by arithmetic"]
    console.print(
        f"a look {found['off_ns']:.0f} ns, a span {found['on_ns']:.0f} ns, {found['spans_a_token']:.2f} spans a token "
        f"of {found['cpu_us_a_token']:.0f} us: off {100 * found['off_share']:.2f} %, on {100 * found['on_share']:.2f} %"
    )
    console.print(
        f"the metrics page takes {found['page_ms']:.1f} ms, once a second at most, in slices of up to "
        f"{found['longest_slice_ms']:.2f} ms"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.observability", description="What it costs to see everything.")
    parser.add_argument("--rounds", type=int, default=15, help="of each comparison (default: 15)")
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
