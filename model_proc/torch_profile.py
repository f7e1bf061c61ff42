"""The torch profiler as a part of a profile: what PyTorch does on the CPU and what the GPU runs, on the ring's clock.

Its events carry times of a clock of their own. Some marks, whose times on the ring's clock are known, are recorded at
the beginning; all events are shifted by the difference of the mark that is known best. `pid` and `tid` are kept: they
tell threads and streams apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ipc.control_messages import StartProfile

MARK = "quintet: clock"
NUM_MARKS = 8  # the first one is slow
KEPT_PHASES = ("X", "s", "f")  # spans, and arrows from a launch to its kernel


class TorchProfile:
    """Started and stopped by the main thread, which is the one that runs the model."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._profiler: profile | None = None
        self._marks: list[tuple[int, int]] = []  # between which moments each of them began, ns

    def start(self, message: StartProfile) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities, with_stack=message.stacks, record_shapes=message.shapes)
        self._profiler.start()
        self._marks = []
        for _ in range(NUM_MARKS):
            before = time.monotonic_ns()
            with record_function(MARK):
                self._marks.append((before, time.monotonic_ns()))

    def stop(self) -> Callable[[], bytes]:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.stop()
        marks = self._marks

        def document() -> bytes:
            with tempfile.TemporaryDirectory(prefix="quintet-profile-") as folder:
                path = Path(folder) / "torch.json"
                profiler.export_chrome_trace(str(path))
                return orjson.dumps({"events": on_our_clock(orjson.loads(path.read_bytes())["traceEvents"], marks)})

        return document


def on_our_clock(events: list[dict[str, Any]], marks: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """The events worth keeping, their `ts` in microseconds of the monotonic clock.

    `marks` are the moments, in ns, between which each mark began. Raises ValueError when they are not among the events.
    """
    begins = sorted(float(event["ts"]) for event in events if event.get("name") == MARK and event.get("ph") == "X")
    if not begins or len(begins) != len(marks):
        raise ValueError("the torch profiler has lost the marks that set its clock")
    _, begin_us, (before, after) = min(
        (known[1] - known[0], begin, known) for begin, known in zip(begins, marks, strict=True)
    )
    shift_us = (before + after) / 2000 - begin_us
    return [
        event | {"ts": float(event["ts"]) + shift_us}
        for event in events
        if event.get("ph") in KEPT_PHASES and "ts" in event and event.get("name") != MARK
    ]
