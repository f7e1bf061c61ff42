"""The cost of everything round the model: a mock without cost, many streams, all five processes and real HTTP.

    python -m benchmark.control_plane [--streams 16 64 256 1024] [--paces 0 20000] [--tokens 300]
        [--total-tokens 150000] [--unary] [--json FILE] [-- OPTIONS OF launch.py]

For each number of streams: tokens a second as the client gets them, microseconds of CPU a token in each process and in
the client, messages a process handles. Beside it what one step costs the scheduler, the codec and a hop. The client
runs on the same cores as the server: its share is part of what limits the tokens a second.

A model that takes no time outruns the gateway, which then merges what has come for a client into one event: the tokens
a second are the ring's best, but an event stands for many tokens. So every level is also run at a pace: steps take as
long as makes that many tokens a second of all streams together. Then (almost) every token has an event of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmark import scheduler_step
from benchmark.client import Client, Measured
from benchmark.report import wide_console, write_json
from benchmark.ring_costs import codec_us, hop_us
from benchmark.server import Server, ServerError
from benchmark.server_figures import NoFiguresError, cores_used, progress, snapshot

PROMPT = "the same short prompt for everybody"
BATCHES = (1, 32, 256, 1024)
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Level:
    """What the ring did with so many streams at a time."""

    streams: int
    pace: float  # tokens a second that the mock makes at most; 0 is as fast as plans come
    requests: int
    tokens: int
    wall_s: float
    tokens_s: float
    steps: int
    tokens_a_step: float
    events_a_token: float  # pieces of text that the client got for a token; below 1 pieces were merged on the way
    ttft_ms_median: float
    cpu_us_a_token: dict[str, float]  # of each process, and of the client
    cores: dict[str, float]  # how much of a core each of them took
    messages: dict[str, int]  # received, plans and results sent included where a process counts them


def launch_options(streams: int, tokens: int, profile: str) -> list[str]:
    """A server that holds all streams at once: slots, token budget, queue and KV blocks."""
    blocks = streams * -(-(tokens + len(PROMPT)) // BLOCK_SIZE)
    return [
        "--model=mock", f"--mock-profile={profile}", f"--max-num-seqs={streams}", f"--max-num-queued-reqs={streams}",
        f"--max-num-batched-tokens={max(2048, 2 * streams)}", f"--num-gpu-blocks-override={max(blocks, 4096)}",
        f"--max-model-len={tokens + len(PROMPT)}", f"--block-size={BLOCK_SIZE}",
    ]  # fmt: skip


@contextmanager
def mock_profile(streams: int, pace: float) -> Iterator[str]:
    """The cost profile with which `streams` decodes a step make `pace` tokens a second; 0 is without cost."""
    if not pace:
        yield "instant"
        return
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f"[step]\nfixed_ms = {1000 * streams / pace}\n")
        file.flush()
        yield file.name


async def load(url: str, streams: int, requests: int, tokens: int, stream: bool) -> tuple[list[Measured], float, float]:
    """Keep `streams` requests in flight until all are done. Returns them, wall and client CPU seconds."""
    body = {"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True}
    left = iter(range(requests))
    results: list[Measured] = []
    async with Client(url, stream) as client:

        async def worker() -> None:
            for _ in left:
                results.append(await client.complete(body))

        started, cpu_s = time.monotonic(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(streams)))
        return results, time.monotonic() - started, time.process_time() - cpu_s


def measure_level(
    streams: int, pace: float, tokens: int, total_tokens: int, stream: bool, options: Sequence[str]
) -> Level:
    """One number of streams at one pace, against a server of its own. Raises NoFiguresError when requests failed."""
    requests = streams * -(-total_tokens // (tokens * streams))  # whole rounds, so that all streams end together
    with (
        mock_profile(streams, pace) as profile,
        Server([*launch_options(streams, tokens, profile), *options]) as server,
    ):
        url, processes = server.url, server.processes()
        uvloop.run(load(url, streams, streams, min(tokens, 16), stream))  # warm-up: connections, code paths
        before = snapshot(url, processes)
        results, wall_s, client_cpu_s = uvloop.run(load(url, streams, requests, tokens, stream))
        after = snapshot(url, processes)
    failed = [result.error for result in results if result.error]
    if failed:
        raise NoFiguresError(f"{len(failed)} of {requests} requests failed, the first with: {failed[0]}")
    total = sum(result.completion_tokens for result in results)
    cpu_s = {name: after.cpu_s[name] - before.cpu_s[name] for name in processes} | {"client": client_cpu_s}
    steps = after.scheduler["steps"] - before.scheduler.get("steps", 0)
    return Level(
        streams=streams,
        pace=pace,
        requests=requests,
        tokens=total,
        wall_s=wall_s,
        tokens_s=total / wall_s,
        steps=steps,
        tokens_a_step=total / steps,
        events_a_token=sum(len(result.itls) + 1 for result in results) / total,
        ttft_ms_median=1000 * median(result.ttft for result in results),
        cpu_us_a_token={name: 1e6 * seconds / total for name, seconds in cpu_s.items()},
        cores=cores_used(before, after) | {"client": client_cpu_s / wall_s},
        messages=progress(before, after),
    )


def measure(
    streams: Sequence[int],
    paces: Sequence[float],
    tokens: int,
    total_tokens: int,
    stream: bool,
    options: Sequence[str],
) -> dict[str, Any]:
    """Everything that this benchmark reports, as plain data. Raises ServerError and NoFiguresError."""
    levels = [measure_level(count, pace, tokens, total_tokens, stream, options) for pace in paces for count in streams]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "options": list(options),
        "streamed": stream,
        "levels": [asdict(level) for level in levels],
        "scheduler_step_us": {str(batch): median(scheduler_step.measure(batch, 300)) for batch in BATCHES},
        "codec": {str(batch): codec_us(batch) for batch in BATCHES},
        "hop": hop_us(),
    }


def show(console: Console, figures: dict[str, Any]) -> None:
    """Print all of it as tables."""
    levels = figures["levels"]
    way = "streamed" if figures["streamed"] else "unary"
    table = Table(title=f"through the whole ring, {way}, on {figures['cores']} cores", title_justify="left")
    for column in ("streams", "pace", "tok/s", "tokens a step", "events a token", "TTFT ms"):
        table.add_column(column, justify="right")
    for level in levels:
        table.add_row(
            str(level["streams"]), _pace(level), f"{level['tokens_s']:.0f}", f"{level['tokens_a_step']:.1f}",
            f"{level['events_a_token']:.2f}", f"{level['ttft_ms_median']:.1f}",
        )  # fmt: skip
    console.print(table)

    table = Table(title="CPU microseconds a token (and share of a core)", title_justify="left")
    processes = list(levels[0]["cpu_us_a_token"])
    for column in ("streams", "pace", *processes, "all"):
        table.add_column(column, justify="right")
    for level in levels:
        costs = level["cpu_us_a_token"]
        cells = [f"{costs[name]:.1f} ({level['cores'][name]:.2f})" for name in processes]
        table.add_row(str(level["streams"]), _pace(level), *cells, f"{sum(costs.values()):.1f}")
    console.print(table)

    table = Table(title="microseconds a step, by sequences in it", title_justify="left")
    table.add_column("what")
    for batch in figures["codec"]:
        table.add_column(batch, justify="right")
    table.add_row("scheduler", *(f"{cost:.1f}" for cost in figures["scheduler_step_us"].values()))
    for name in figures["codec"]["1"]:
        costs = [costs[name] for costs in figures["codec"].values()]
        cells = [f"{cost['encode_us']:.1f} + {cost['decode_us']:.1f}" for cost in costs]
        table.add_row(f"{name}: encode + decode", *cells)
    console.print(table)
    hop = figures["hop"]
    console.print(f"a hop: {hop['median_us']:.0f} us (p90 {hop['p90_us']:.0f} us), {hop['cpu_us']:.0f} us of CPU")


def _pace(level: dict[str, Any]) -> str:
    return f"{level['pace']:.0f}/s" if level["pace"] else "flat out"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.control_plane", description="The cost of everything round the model."
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--paces", type=float, nargs="+", default=[0.0, 20_000.0], help="tokens/s; 0 is flat out")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of each answer (default: 300)")
    parser.add_argument("--total-tokens", type=int, default=150_000, help="tokens of each level (default: 150000)")
    parser.add_argument("--unary", action="store_true", help="ask for whole answers instead of streams")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="options of launch.py, behind --")
    args = parser.parse_args(argv)
    try:
        figures = measure(args.streams, args.paces, args.tokens, args.total_tokens, not args.unary, args.options)
    except (ServerError, NoFiguresError) as error:
        print(f"benchmark.control_plane: {error}", file=sys.stderr)
        return 2
    show(wide_console(), figures)
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
