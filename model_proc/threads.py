"""How many threads the CPU kernels use: one for every core, unless a measurement finds that fewer are faster."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from model_proc.kernels.cpu_library import CpuLibrary
from model_proc.quantization import quantize

ROWS, COLUMNS = 1536, 512  # a product of some ten microseconds, as most of a decode step: the least that threads share
REPEATS = 20  # products in one slice of time
SLICES = 200
TOLERANCE = 1.15  # more threads may take this much longer in so small a product: a prompt's large ones gain from each
CGROUP = Path("/sys/fs/cgroup")


def choose_threads(library: CpuLibrary) -> int:
    """The number of threads that suits the library's products on this machine, among powers of two and all cores.

    Other processes start at the same time, and what they take of the cores now they do not take later. So the
    candidates take turns in short slices of time, and each one's best slice counts.
    """
    cores = usable_cores()
    candidates = sorted({cores, *(1 << power for power in range(cores.bit_length()))})
    if len(candidates) == 1:
        return 1
    matrix = library.pack(quantize(torch.ones(ROWS, COLUMNS), 4))
    x = torch.ones(1, COLUMNS)
    fastest = dict.fromkeys(candidates, math.inf)
    for _ in range(SLICES):
        for count in candidates:
            library.set_threads(count)
            seconds = _time(lambda: library.linear(matrix, x, None, quantize=True))
            fastest[count] = min(fastest[count], seconds)
    return most_threads(fastest)


def most_threads(seconds: Mapping[int, float]) -> int:
    """The largest number of threads that is about as fast as the fastest. `seconds` maps numbers of threads to times.

    On a busy machine a second thread may find no core while it is measured, and looks useless. It costs nothing
    either, because a thread that is put aside holds up nobody (kernels/cpu/pool.h), and helps when its core is free.
    """
    limit = TOLERANCE * min(seconds.values())
    return max(count for count, time in seconds.items() if time <= limit)


def usable_cores(cgroup: Path = CGROUP) -> int:
    """How many cores this process may keep busy: those that it may run on, and no more than its container's quota.

    Beyond a quota the kernel stops all threads of a container for the rest of a period, tens of milliseconds.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores that the container is given, as its runtime shows them inside it; None without a limit."""
    try:
        if (version_2 := cgroup / "cpu.max").exists():
            quota, period = version_2.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if quota == "max" or int(quota) < 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _time(work: Callable[[], Any]) -> float:
    work()  # the threads are new
    started = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return time.perf_counter() - started
