"""What the metrics page is made from: the figures of all processes at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """`scheduler`, `runner` and `requests` hold counts, summed up over restarts and over all gateways."""

    model_name: str  # the first served name; "" while no model is known
    states: Mapping[str, str]  # of each process: "starting", "ready", "lost"
    processes: Mapping[str, Mapping[str, Any]]  # what each process measures of itself: `ipc.gauges`
    counted: Mapping[str, Mapping[str, Any]]  # the same, summed up over restarts
    progress: Mapping[str, int]  # what each process counts as progress
    scheduler_now: Mapping[str, Any]  # the scheduler's state
    scheduler: Mapping[str, Any]  # and what it has counted
    runner: Mapping[str, Any]  # what the model's process has counted
    tokenizer: Mapping[str, Any]
    detokenizer: Mapping[str, Any]
    requests: Mapping[str, Any]  # what the gateways have: `RequestMetrics.export`
    in_flight: Mapping[str, int]  # what they have in flight

    @property
    def tally(self) -> Mapping[str, Any]:
        """What the scheduler has counted of its steps: `scheduler_proc.tally`."""
        return self.scheduler.get("tally", {})

    @property
    def queue_full(self) -> int:
        """Requests refused because too many waited: by the scheduler, or by a gateway that knew it beforehand."""
        return self.tally.get("queue_full", 0) + self.requests.get("refused", 0)

    def histogram(self, name: str) -> Mapping[str, Any] | None:
        """A histogram of requests; None when there is none yet."""
        return self.requests.get("histograms", {}).get(name)
