"""What a model runner is: the contract that the scheduler's plans are executed under."""

from __future__ import annotations

from typing import Protocol

from ipc.messages import Plan, Result, RunnerReady


class Runner(Protocol):
    """Executes plans strictly in order. `launch` may return before the step has run; `collect` gives its result."""

    def load(self) -> RunnerReady:
        """Load what it takes to run, and say what there is to schedule."""
        ...

    def launch(self, plan: Plan) -> None:
        """Start one step behind those that are in flight."""
        ...

    @property
    def in_flight(self) -> int:
        """Steps that were launched and not collected."""
        ...

    def is_done(self) -> bool:
        """Whether the oldest step in flight has finished, so that `collect` would not wait."""
        ...

    def collect(self) -> Result:
        """The result of the oldest step in flight; waits for it."""
        ...
