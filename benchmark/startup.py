"""How long a server takes to start, and which process takes it: from the first spawn to the first token.

    python -m benchmark.startup [--runs 3] [--json FILE] [-- OPTIONS OF launch.py]

Three kinds of start, with a model cache of the benchmark's own:

    cold      the cache is empty: a GGUF checkpoint is converted first
    warm      the converted model is there, and in memory (the page cache); the median of --runs
    evicted   it is there, but has to be read from the disk again

Beside that, what the imports of each process cost when nothing else runs: the least of three, a bare interpreter
included. All processes import at the same time, so on few cores they are ready later than these figures add up to.
"""

from __future__ import annotations

import argparse
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmark.client import Client
from benchmark.report import write_json
from ipc.control_messages import Loading, ModelFiles, Ready, RingState
from ipc.options import OptionError, from_command_line
from supervision.child import PACKAGES
from supervision.supervisor import Supervisor

IMPORT_RUNS = 3
POLL_S = 0.1
ROOT = Path(__file__).resolve().parent.parent


class StartupError(RuntimeError):
    """The server did not start or did not answer; the text says why."""


@dataclass(slots=True)
class Start:
    """One start. Times are in seconds from the spawn of the first process."""

    kind: str
    ready_s: dict[str, float] = field(default_factory=dict)  # of each process
    found_s: float = 0.0  # the model process has found the model's files
    phases_s: dict[str, float] = field(default_factory=dict)  # when each phase of the model's loading begins
    serving_s: float = 0.0  # /ready says so
    first_token_s: float = 0.0
    folder: str = ""  # of the model
    url: str = ""

    def take(self, event: Any, now_s: float) -> None:
        """Take in what the supervisor hears."""
        match event:
            case ModelFiles(folder=folder):
                self.found_s, self.folder = now_s, folder
            case Loading(phase=phase):
                self.phases_s.setdefault(phase, now_s)
            case Ready(process=name, info=info):
                self.ready_s[name] = now_s
                self.url = info.get("url", self.url)
            case RingState():
                self.serving_s = now_s

    def took_s(self) -> dict[str, float]:
        """How long each phase took: until the next one began, the last one until the model was ready."""
        begins = [*self.phases_s.values(), self.ready_s["model"]]
        return {phase: end - begin for phase, (begin, end) in zip(self.phases_s, pairwise(begins), strict=True)}


def start(kind: str, options: dict[str, Any]) -> Start:
    """Start a server, wait for its first token, stop it. Raises StartupError."""
    found = Start(kind)
    events: queue.Queue[tuple[float, Any]] = queue.Queue()
    supervisor = Supervisor(options, list(PACKAGES), lambda event: events.put((time.monotonic(), event)))
    thread = threading.Thread(target=supervisor.run, name="supervisor")
    spawned = time.monotonic()
    thread.start()
    try:
        while not found.serving_s:
            try:
                now, event = events.get(timeout=POLL_S)
            except queue.Empty:
                if not thread.is_alive():
                    raise StartupError(supervisor.fatal or "a process was lost; its log says why") from None
                continue
            found.take(event, now - spawned)
        uvloop.run(_first_token(found.url))
        found.first_token_s = time.monotonic() - spawned
    finally:
        supervisor.stop()
        thread.join()
    return found


async def _first_token(url: str) -> None:
    async with Client(url) as client:
        measured = await client.complete({"prompt": "Once upon a time", "max_tokens": 1, "temperature": 0})
    if measured.error:
        raise StartupError(f"the first request failed: {measured.error}")


def evict(folder: Path) -> int:
    """Have the kernel drop a folder's files from memory; the number of files. Files that are in use may stay."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return len(files)


def import_s(room: str) -> float:
    """What it takes to start an interpreter and import what the process of a room imports before it does anything."""
    times = []
    for _ in range(IMPORT_RUNS):
        started = time.monotonic()
        command = [sys.executable, "-P", "-c", f"import {room}.main"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        times.append(time.monotonic() - started)
    return min(times)


def measure(options: dict[str, Any], runs: int) -> dict[str, Any]:
    """All starts and imports. Raises StartupError."""
    before = os.environ.get("QUINTET_CACHE")
    with tempfile.TemporaryDirectory(prefix="quintet-startup-") as cache:
        os.environ["QUINTET_CACHE"] = cache
        try:
            starts = [start("cold", options)]
            starts += [start("warm", options) for _ in range(runs)]
            if starts[0].folder:
                evict(Path(starts[0].folder))
                starts.append(start("evicted", options))
        finally:
            if before is None:
                del os.environ["QUINTET_CACHE"]
            else:
                os.environ["QUINTET_CACHE"] = before
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_average": os.getloadavg()[0],
        "model": options["model"],
        "imports_s": {name: import_s(room) for name, room in PACKAGES.items()},
        "starts": [
            {
                "kind": one.kind, "ready_s": one.ready_s, "files_found_s": one.found_s, "phases_s": one.took_s(),
                "serving_s": one.serving_s, "first_token_s": one.first_token_s,
            }
            for one in starts
        ],
    }  # fmt: skip


def show(console: Console, found: dict[str, Any]) -> None:
    """Print a column for each kind of start; the medians of several of a kind."""
    kinds = list(dict.fromkeys(one["kind"] for one in found["starts"]))
    by_kind = [[one for one in found["starts"] if one["kind"] == kind] for kind in kinds]
    table = Table(title=f"{found['model']}: seconds from the first spawn", title_justify="left")
    table.add_column("what")
    table.add_column("imports alone", justify="right")
    for kind in kinds:
        table.add_column(kind, justify="right")

    def row(name: str, values: Sequence[Sequence[float]], imports: float | None = None) -> None:
        cells = [f"{median(of_kind):.2f}" if of_kind else "-" for of_kind in values]
        table.add_row(name, "" if imports is None else f"{imports:.2f}", *cells)

    names = list(dict.fromkeys(name for one in found["starts"] for name in one["ready_s"]))
    for name in names:
        ready = [[one["ready_s"][name] for one in starts if name in one["ready_s"]] for starts in by_kind]
        row(f"{name} ready", ready, found["imports_s"].get(name.partition(".")[0]))
    table.add_section()
    row("model's files found", [[one["files_found_s"] for one in starts] for starts in by_kind])
    for phase in dict.fromkeys(phase for one in found["starts"] for phase in one["phases_s"]):
        spans = [[one["phases_s"][phase] for one in starts if phase in one["phases_s"]] for starts in by_kind]
        row(f"{phase}: took", spans)
    table.add_section()
    row("serving", [[one["serving_s"] for one in starts] for starts in by_kind])
    row("first token", [[one["first_token_s"] for one in starts] for starts in by_kind])
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.startup", description="How long a server takes to start.")
    parser.add_argument("--runs", type=int, default=3, help="warm starts; their median counts (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="options of launch.py, behind --")
    args = parser.parse_args(argv)
    try:
        if args.runs < 1:
            raise StartupError(f"--runs: must be at least 1, got {args.runs}")
        found = measure(from_command_line(["--port=0", "--log-level=warning", *args.options], os.environ), args.runs)
        if args.json:
            write_json(args.json, found)
        show(Console(), found)
    except (StartupError, OptionError, OSError) as error:
        print(f"benchmark.startup: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
