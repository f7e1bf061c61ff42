"""The steps of a run, as the scheduler logs them (`--step-log`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class StepLogError(RuntimeError):
    """A step log that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step. Times are in seconds on the clock of `time.monotonic`, or on a simulation's."""

    planned_s: float
    started_s: float
    finished_s: float
    decodes: int
    prefills: int
    waiting: int  # sequences that waited when its result arrived
    running: int  # and those that had a slot

    @property
    def size(self) -> int:
        return self.decodes + self.prefills


def step_of(entry: Mapping[str, Any]) -> Step:
    """A step from its entry in the log. Raises KeyError when something is missing."""
    return Step(
        planned_s=entry["planned_ns"] / 1e9,
        started_s=entry["started_ns"] / 1e9,
        finished_s=entry["finished_ns"] / 1e9,
        decodes=entry["decodes"],
        prefills=entry["prefills"],
        waiting=entry["waiting"],
        running=entry["running"],
    )


def read_steps(path: Path, since_s: float) -> list[Step]:
    """The steps that were planned since then, in the order in which they ended. Raises StepLogError."""
    try:
        steps = [step_of(json.loads(line)) for line in path.read_text().splitlines()]
    except OSError as error:
        raise StepLogError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError) as error:
        raise StepLogError(f"{path} is not a step log: {error}") from None
    return [step for step in steps if step.planned_s >= since_s]
