"""The server's own figures over a run: its counters before and after (`GET /v1/loads`), its steps, its CPU time.

Steps and CPU time are known only for a server of our own. Beside its processes' CPU time stands what the rest of the
machine used meanwhile: figures that were taken on a busy machine show it.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import psutil

from benchmark.step_log import Step

POLL_S = 0.05
WAIT_S = 10.0
HTTP_TIMEOUT_S = 5.0
# CPU time of everybody but the server and the client, what a hypervisor took away included.
ELSEWHERE = "elsewhere"


class NoFiguresError(RuntimeError):
    """The server did not give its figures; the text says what to look at."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the server."""

    taken: float  # `time.monotonic`
    loads: dict[str, dict[str, Any]]  # the figures of each process, by its name
    cpu_s: dict[str, float]  # CPU seconds so far, of each process and ELSEWHERE

    @property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's figures; those of its counters that are missing have counted nothing."""
        return self.loads["scheduler"]


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What happened between two snapshots."""

    steps: int
    mean_batch: float | None  # sequences in a step
    mean_step_ms: float | None  # how long the runner worked on one
    prefix_queries: int  # prompt tokens that were looked up in the prefix cache
    prefix_hits: int  # tokens that were found there and so saved
    preemptions: int
    evictions: int  # cached blocks that were taken for other content
    blocks: dict[str, int]  # at the end: total, free, cached, in use
    cores: dict[str, float]  # how much of a core each process took, and ELSEWHERE; for a server of our own


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def snapshot(url: str, processes: Mapping[str, psutil.Process]) -> Snapshot:
    """The server's figures as they are now. Raises NoFiguresError."""
    cpu_s = {name: cpu_seconds(process) for name, process in processes.items()}
    if cpu_s:
        cpu_s[ELSEWHERE] = _machine_seconds() - sum(cpu_s.values()) - time.process_time()
    asked = time.monotonic()
    while True:
        loads = _loads(url)
        scheduler = loads["processes"].get("scheduler")
        # Processes report a few times a second: wait for a report from behind the question.
        if scheduler is not None and time.monotonic() - scheduler["age_s"] > asked:
            return Snapshot(asked, loads["processes"], cpu_s)
        if time.monotonic() - asked > WAIT_S:
            raise NoFiguresError(f"{url}/v1/loads: the scheduler has reported nothing for {WAIT_S} s; does it live?")
        time.sleep(POLL_S)


def cores_used(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """How much of a core each process took from one snapshot to the other."""
    seconds = after.taken - before.taken
    return {name: (cpu_s - before.cpu_s[name]) / seconds for name, cpu_s in after.cpu_s.items()}


def progress(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """What each process counted as progress, messages above all, from one snapshot to the other."""
    earlier = {name: load["progress"] for name, load in before.loads.items()}
    return {name: load["progress"] - earlier.get(name, 0) for name, load in after.loads.items()}


def server_figures(
    before: Mapping[str, Any], after: Mapping[str, Any], steps: Sequence[Step], cores: dict[str, float]
) -> ServerFigures:
    """What happened from one state of the scheduler's figures (`scheduler_proc.figures.stats`) to another."""

    def grown(name: str) -> int:
        return int(after.get(name, 0)) - int(before.get(name, 0))  # a scheduler that has done nothing says nothing

    return ServerFigures(
        steps=grown("steps"),
        mean_batch=fmean(step.size for step in steps) if steps else None,
        mean_step_ms=1000 * fmean(step.finished_s - step.started_s for step in steps) if steps else None,
        prefix_queries=grown("prefix_queries"),
        prefix_hits=grown("prefix_hits"),
        preemptions=grown("preemptions"),
        evictions=grown("evictions"),
        blocks={name: after.get(f"blocks_{name}", 0) for name in ("total", "free", "cached", "in_use")},
        cores=cores,
    )


def _machine_seconds() -> float:
    """CPU time that this machine's cores have spent so far, on whatever it was."""
    times = psutil.cpu_times()._asdict()
    return sum(times[kind] for kind in ("user", "nice", "system", "irq", "softirq", "steal") if kind in times)


def _loads(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{url}/v1/loads", timeout=HTTP_TIMEOUT_S) as response:
            return dict(json.load(response))
    except (OSError, ValueError) as error:
        raise NoFiguresError(f"{url}/v1/loads: {error}; is a Quintet server there?") from None
