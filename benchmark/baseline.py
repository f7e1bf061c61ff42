"""The baseline of the embedded model on this machine, through the whole server.

    python -m benchmark.baseline [--concurrencies 1 8 16] [--json FILE] [-- OPTIONS OF launch.py]

Starts a server, sends it prompts of about 140 tokens for 64 greedy tokens each at several levels of concurrency, and
reports throughput, TTFT, the time to start, and the CPU time and memory of each process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmark.client import Client, Measured
from benchmark.server import Server
from benchmark.server_figures import cpu_seconds

TEXT = "the sea was calm and every boat lay still while a small bird sang over the harbour of an old grey town"
WORDS = TEXT.split()
PROMPT_WORDS = 138
MAX_TOKENS = 64


def prompt(seed: int) -> str:
    """About 140 tokens that no other seed shares a prefix with."""
    rng = random.Random(seed)
    return f"{seed}: " + " ".join(rng.choice(WORDS) for _ in range(PROMPT_WORDS))


async def level(url: str, concurrency: int, requests: int, first_seed: int) -> tuple[float, list[Measured]]:
    """Keep `concurrency` requests in flight until `requests` are done. Returns the wall time and the requests."""
    seeds = iter(range(first_seed, first_seed + requests))
    results: list[Measured] = []
    async with Client(url) as client:

        async def worker() -> None:
            for seed in seeds:
                body = {"prompt": prompt(seed), "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
                results.append(await client.complete(body))

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return time.perf_counter() - started, results


def measure(concurrencies: Sequence[int], options: Sequence[str]) -> dict[str, Any]:
    """Start a server, run all levels, and collect the figures."""
    with Server(options) as server:
        uvloop.run(level(server.url, 2, 4, 10**6))  # warm-up
        ring = server.processes()
        levels = []
        for index, concurrency in enumerate(concurrencies):
            before = {name: cpu_seconds(process) for name, process in ring.items()}
            seconds, results = uvloop.run(level(server.url, concurrency, max(4, 3 * concurrency), index * 10_000))
            failed = [result.error for result in results if result.error]
            if failed:
                raise SystemExit(f"{len(failed)} requests failed, the first with: {failed[0]}")
            levels.append(
                {
                    "concurrency": concurrency,
                    "requests": len(results),
                    "seconds": seconds,
                    "output_tok_s": sum(result.completion_tokens for result in results) / seconds,
                    "prompt_tokens_mean": statistics.mean(result.prompt_tokens for result in results),
                    "ttft_ms_median": 1000 * statistics.median(result.ttft for result in results),
                    "tpot_ms_median": 1000 * statistics.median(result.tpot for result in results),
                    "cpu_cores": {
                        name: (cpu_seconds(process) - before[name]) / seconds for name, process in ring.items()
                    },
                }
            )
        memory = {name: process.memory_full_info().uss / 2**20 for name, process in ring.items()}
        return {
            "date": time.strftime("%Y-%m-%d"),
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "options": list(options),
            "startup_s": server.startup_s,
            "levels": levels,
            "memory_mib": memory,
        }


def show(figures: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"start-up {figures['startup_s']:.1f} s", title_justify="left")
    for column in ("concurrent", "tok/s", "TTFT ms", "TPOT ms"):
        table.add_column(column, justify="right")
    for row in figures["levels"]:
        table.add_row(
            str(row["concurrency"]), f"{row['output_tok_s']:.1f}", f"{row['ttft_ms_median']:.0f}",
            f"{row['tpot_ms_median']:.1f}",
        )  # fmt: skip
    console.print(table)
    table = Table(title="share of a core, and memory of its own", title_justify="left")
    table.add_column("process")
    for row in figures["levels"]:
        table.add_column(f"c={row['concurrency']}", justify="right")
    table.add_column("MiB", justify="right")
    for name, size in figures["memory_mib"].items():
        table.add_row(name, *(f"{row['cpu_cores'][name]:.3f}" for row in figures["levels"]), f"{size:.0f}")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmark.baseline", description="The embedded model on this machine.")
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("options", nargs="*", help="options of launch.py, behind --")
    args = parser.parse_args()
    figures = measure(args.concurrencies, args.options)
    show(figures)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
