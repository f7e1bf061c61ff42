"""How many threads the CPU kernels use: as many as make them fastest, found out by a measurement at the start."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from model_proc.kernels.cpu_library import CpuLibrary
from model_proc.quantization import quantize

ROWS, COLUMNS = 1536, 512  # a product of some ten microseconds: what a decode step consists of
REPEATS = 200
ROUNDS = 5
GAIN = 0.97  # more threads must take less than this share of the time: each one also takes a core from the others


def choose_threads(library: CpuLibrary) -> int:
    """The number of threads that small products run fastest with, among powers of two and all cores."""
    cores = len(os.sched_getaffinity(0))
    candidates = sorted({cores, *(1 << power for power in range(cores.bit_length()))})
    if len(candidates) == 1:
        return 1
    matrix = library.pack(quantize(torch.ones(ROWS, COLUMNS), 4))
    x = torch.ones(1, COLUMNS)
    best, best_time = 1, float("inf")
    for count in candidates:
        library.set_threads(count)
        seconds = min(_time(lambda: library.linear(matrix, x, None, quantize=True)) for _ in range(ROUNDS))
        if seconds < GAIN * best_time:
            best, best_time = count, seconds
    return best


def _time(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return time.perf_counter() - started
