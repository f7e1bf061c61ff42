"""The step log: one line of JSON for every step, for `benchmark.fit_cost` and the plots of `benchmark.scenarios`."""

from __future__ import annotations

from typing import TextIO

import orjson

from ipc.messages import Result
from scheduler_proc.step import Step


class StepLog:
    """Writes to a file as steps end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, step: Step, result: Result, waiting: int, running: int) -> None:
        """Times are in ns of the ring's clock. `kv_tokens` sums the lengths that the step's rows attended to."""
        entry = {
            "step": step.number,
            "planned_ns": step.planned_ns,
            "started_ns": result.started_ns,
            "finished_ns": result.finished_ns,
            "decodes": len(step.decodes) + len(step.others) - len(step.prefills),
            "prefills": len(step.prefills),
            "prefill_tokens": step.num_prefill_tokens,
            "kv_tokens": step.kv_tokens,
            "waiting": waiting,
            "running": running,
        }
        self._file.write(orjson.dumps(entry).decode() + "\n")
