"""Does the server keep its word while everything happens to it?

    python -m benchmark.chaos --minutes 30 [--fault-every 20] [--clients 32] [--seed 0] [--no-kills] [--json FILE]
                              [-- OPTIONS]
    python -m benchmark.chaos -- --model=mock --gateway-workers=2 --tokenizer-workers=2 --detokenizer-workers=2

It starts a server with the mock, loads it with clients that know their answers, and does something to it every few
seconds: kills or stops one of the five processes, floods it, leaves it, sends it noise, keeps connections idle. In the
end it checks that every request had exactly one end, that no text was wrong, that no block, sequence, process or socket
is left, and how memory and descriptors moved. Exit code 1 when the server broke its word.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from benchmark.chaos.clients import Load
from benchmark.chaos.harm import FAULTS, GENTLE, Harm, folder_of_sockets
from benchmark.chaos.watch import Watch
from benchmark.report import write_json
from benchmark.server import Server

PROFILE = "[step]\nfixed_ms = 2.0\nper_token_ms = 0.002\n"  # so that requests last, and die in the middle
SETTLE_S = 30.0  # for what is left to end after the last fault
GROWTH_WINDOW_S = 1200.0
MOST_GROWTH_PERCENT = 5.0
EXTRA_FILES = 8  # descriptors that may come and go


async def settle(url: str) -> dict[str, Any]:
    """Wait until the ring says that it holds nothing; what it says then, or at the end of the patience."""
    deadline = time.monotonic() + SETTLE_S
    books: dict[str, Any] = {}
    async with aiohttp.ClientSession(url) as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, KeyError):
                async with session.get("/v1/loads") as response:
                    processes = (await response.json())["processes"]
                books = {
                    "sequences": processes["scheduler"]["sequences"],
                    "blocks_in_use": processes["scheduler"]["blocks_in_use"],
                    "blocks_missing": processes["scheduler"]["blocks_total"]
                    - processes["scheduler"]["blocks_free"]
                    - processes["scheduler"]["blocks_cached"],
                    "detokenizer_sequences": of_all(processes, "detokenizer", "sequences"),
                    "tokenizer_requests": of_all(processes, "tokenizer", "in_pool"),
                    "gateway_requests": of_all(processes, "gateway", "requests"),
                }
                async with session.get("/ready") as ready:
                    if ready.status == 200 and not any(books.values()):
                        break
            await asyncio.sleep(0.2)
    return books


def of_all(processes: dict[str, Any], kind: str, figure: str) -> int:
    """A figure of all workers of a kind."""
    return sum(figures[figure] for name, figures in processes.items() if name.partition(".")[0] == kind)


async def run(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Load and harm the server for so many minutes. Returns all that was seen."""
    load = Load(server.url, args.seed)
    harm = Harm(server, load, args.seed, GENTLE if args.no_kills else FAULTS)
    watch = Watch(server)
    watching = asyncio.create_task(watch.run())
    clients = asyncio.create_task(load.run(args.clients))
    ends = time.monotonic() + 60 * args.minutes
    while (left := ends - time.monotonic()) > args.fault_every:
        await asyncio.sleep(args.fault_every)
        print(f"{left:6.0f} s left: {await harm.next()}", file=sys.stderr, flush=True)
    await asyncio.sleep(max(0.0, left))
    load.stop()
    await clients
    books = await settle(server.url)
    watching.cancel()
    run_dir = folder_of_sockets(server)
    code = await asyncio.get_running_loop().run_in_executor(None, server.stop)
    window_s = min(GROWTH_WINDOW_S, 60 * args.minutes * 5 / 6)
    return {
        "minutes": args.minutes,
        "fault_every_s": args.fault_every,
        "clients": args.clients,
        "seed": args.seed,
        "kills": not args.no_kills,
        "faults": dict(sorted(Counter(harm.done).items())),
        "ends": dict(sorted(load.outcomes.ends.items())),
        "requests": sum(load.outcomes.ends.values()) - load.outcomes.ends["wrong"],
        "broken": load.outcomes.broken[:100],
        "books": books,
        "growth": watch.growth(window_s),
        "growth_window_s": window_s,
        "growth_counts": window_s / 2 >= len(harm.kinds) * args.fault_every,
        "mib_by_minute": watch.by_minute(),
        "exit_code": code,
        "left_processes": sorted(str(process) for process in watch.seen if process.is_running()),
        "left_sockets": run_dir.exists(),
    }


def failures(found: dict[str, Any]) -> list[str]:
    """What the server promised and did not keep."""
    broken = list(found["broken"])
    broken += [f"{name} is {value} in the end" for name, value in found["books"].items() if value]
    if not found["books"]:
        broken.append("it could not be asked in the end")
    if found["exit_code"] != 0 or found["left_processes"] or found["left_sockets"]:
        broken.append("it left something behind, or an exit code")
    for name, moved in found["growth"].items():
        if found["growth_counts"] and moved["growth_percent"] > MOST_GROWTH_PERCENT:
            broken.append(f"{name} grew by {moved['growth_percent']} %")
        # In a short run the idle connections may be most of one half.
        if found["growth_counts"] and moved["files_after"] > moved["files_before"] + EXTRA_FILES:
            broken.append(f"{name} has {moved['files_after']} files open, and had {moved['files_before']}")
        if not found["kills"] and moved["runs"] > 1:
            broken.append(f"{name} was started {moved['runs']} times, though nobody killed it")
    return broken


def show(found: dict[str, Any]) -> None:
    console = Console()
    table = Table("what", "times", title=f"{found['requests']} requests in {found['minutes']:g} minutes")
    for name, count in found["ends"].items():
        table.add_row(name, str(count))
    console.print(table)
    table = Table("process", "peak MiB before", "after", "growth", "files before", "after")
    if not found["growth_counts"]:
        table.title = "too short to say how memory grows: not every fault was in each half"
    for name, moved in found["growth"].items():
        growth = f"{moved['growth_percent']} %"
        row = (moved["peak_mib_before"], moved["peak_mib_after"], growth, moved["files_before"])
        table.add_row(name, *map(str, row), str(moved["files_after"]))
    console.print(table)
    console.print("faults:", found["faults"])
    console.print("in the end:", found["books"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.chaos", description="a server under load and faults")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--fault-every", type=float, default=20.0, help="seconds between faults (default: 20)")
    parser.add_argument("--clients", type=int, default=32, help="requests in flight (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of things (default: 0)")
    parser.add_argument("--no-kills", action="store_true", help="leave the processes alone, so that each grows old")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen to this file")
    parser.add_argument("launch", nargs="*", help="behind --: options of the server, instead of the mock's")
    args = parser.parse_args(argv)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as profile:
        profile.write(PROFILE)
        profile.flush()
        launch = args.launch or ["--model=mock", f"--mock-profile={profile.name}"]
        with Server([*launch, "--max-num-queued-reqs=256"]) as server:
            found = uvloop.run(run(server, args))
    found["failures"] = failures(found)
    show(found)
    if args.json:
        write_json(args.json, found)
    for failure in found["failures"]:
        print(f"broken: {failure}", file=sys.stderr)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
