"""What every process measures of itself, for its beats: time, memory, messages, garbage collection."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

from ipc.spans import GC, Spans

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Gauges:
    """Read by the side thread that beats, so a long step does not hide what it costs.

    name             what it is
    pid, started_ns  which process this is: counters begin anew with another one
    cpu_s            CPU time of all its threads since its start, seconds
    rss_bytes        memory that it has in RAM
    loop_busy        share of a core that its main thread took since the last beat
    gc_pauses        garbage collections that stopped it since its start
    gc_pause_s       how long they took, summed up; `gc_pause_max_s` is the longest
    idle_s           how long ago it made progress last, to the accuracy of a beat
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._started_ns = time.monotonic_ns()
        self._statm = Path("/proc/self/statm")
        main = threading.main_thread().ident
        assert main is not None
        self._main_clock = time.pthread_getcpuclockid(main)
        self._last_ns = self._started_ns
        self._last_busy_ns = time.clock_gettime_ns(self._main_clock)
        self._progress = -1
        self._progress_ns = self._started_ns
        self._gc_begun_ns = 0
        self._gc_pauses = 0
        self._gc_pause_ns = 0
        self._gc_pause_max_ns = 0
        gc.callbacks.append(self._on_gc)

    def read(self, progress: int) -> dict[str, Any]:
        """The figures now; `progress` is how far the process says that it is."""
        now = time.monotonic_ns()
        busy_ns = time.clock_gettime_ns(self._main_clock)
        share = (busy_ns - self._last_busy_ns) / max(1, now - self._last_ns)
        self._last_ns, self._last_busy_ns = now, busy_ns
        if progress != self._progress:
            self._progress, self._progress_ns = progress, now
        return {
            "pid": os.getpid(),
            "started_ns": self._started_ns,
            "cpu_s": round(time.process_time(), 6),
            "rss_bytes": int(self._statm.read_bytes().split()[1]) * PAGE_BYTES,
            "loop_busy": round(min(1.0, share), 4),
            "gc_pauses": self._gc_pauses,
            "gc_pause_s": self._gc_pause_ns / 1e9,
            "gc_pause_max_s": self._gc_pause_max_ns / 1e9,
            "idle_s": (now - self._progress_ns) / 1e9,
        }

    def close(self) -> None:
        """Look at garbage collections no more."""
        gc.callbacks.remove(self._on_gc)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic_ns()
        if phase == "start":
            self._gc_begun_ns = now
            return
        if self._spans.on:
            self._spans.put(GC, self._gc_begun_ns, now, info["generation"])
        pause = now - self._gc_begun_ns
        self._gc_pauses += 1
        self._gc_pause_ns += pause
        self._gc_pause_max_ns = max(self._gc_pause_max_ns, pause)
