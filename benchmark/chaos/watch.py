"""What is seen of the server from outside, second by second: memory and descriptors of each process."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmark.server import Server


@dataclass
class Watch:
    """Samples by process name: (seconds since the start, resident MiB, descriptors, process id).

    `seen` are all processes that ever were.
    """

    server: Server
    samples: dict[str, list[tuple[float, float, int, int]]] = field(default_factory=dict)
    seen: set[psutil.Process] = field(default_factory=set)

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        started = time.monotonic()
        while True:
            self.look(time.monotonic() - started)
            await asyncio.sleep(1.0)

    def look(self, at: float) -> None:
        try:
            ring = self.server.processes()
        except psutil.Error:
            return  # one of them has died while it was looked at
        for name, process in ring.items():
            self.seen.add(process)
            try:
                memory, files = process.memory_info().rss / 2**20, process.num_fds()
            except psutil.Error:
                continue
            self.samples.setdefault(name, []).append((round(at, 1), round(memory, 1), files, process.pid))

    def by_minute(self) -> dict[str, list[float]]:
        """The median of each process's memory in every minute of the run, MiB."""
        result = {}
        for name, samples in sorted(self.samples.items()):
            minutes: dict[int, list[float]] = {}
            for at, memory, _, _ in samples:
                minutes.setdefault(int(at // 60), []).append(memory)
            result[name] = [round(statistics.median(minutes[minute]), 1) for minute in sorted(minutes)]
        return result

    def growth(self, last_s: float) -> dict[str, dict[str, Any]]:
        """How memory and descriptors of each process moved within the last seconds of the run.

        Compared are the peaks of memory in the first and in the second half of that time. A process that has just been
        started is small, and one that has been flooded keeps what it had from the system: when each half has seen every
        fault, only a leak raises the peak. Of memory the median is there as well, which means something where nobody is
        killed; of descriptors it is the median alone. `runs` is how many processes have had the name meanwhile.
        """
        result = {}
        for name, samples in sorted(self.samples.items()):
            end = samples[-1][0]
            first = [sample for sample in samples if end - last_s <= sample[0] < end - last_s / 2]
            second = [sample for sample in samples if sample[0] >= end - last_s / 2]
            if not first:
                continue
            before, after = (max(sample[1] for sample in half) for half in (first, second))
            result[name] = {
                "peak_mib_before": before,
                "peak_mib_after": after,
                "growth_percent": round(100 * (after / before - 1), 1),
                "median_mib_before": round(statistics.median(sample[1] for sample in first), 1),
                "median_mib_after": round(statistics.median(sample[1] for sample in second), 1),
                "files_before": statistics.median(sample[2] for sample in first),
                "files_after": statistics.median(sample[2] for sample in second),
                "runs": len({sample[3] for sample in first + second}),
            }
        return result
