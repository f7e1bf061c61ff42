"""How long the steps of the runner take: for the beats of this process."""

from __future__ import annotations

from typing import Any

from ipc.histogram import Histogram
from ipc.messages import Result

BOUNDS = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60,
)  # fmt: skip


class StepTimes:
    """A step that was launched while the one before it ran begins, for this purpose, when that one has ended."""

    def __init__(self) -> None:
        self._seconds = Histogram(BOUNDS)
        self._last_finished_ns = 0

    def add(self, result: Result) -> None:
        """A step is over."""
        started = max(result.started_ns, self._last_finished_ns)
        self._last_finished_ns = max(self._last_finished_ns, result.finished_ns)
        self._seconds.observe(max(0, result.finished_ns - started) / 1e9)

    def export(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"step_seconds": self._seconds.export()}
