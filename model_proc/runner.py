"""What a model runner is: the contract that the scheduler's plans are executed under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ipc.control_messages import RunnerReady
from ipc.messages import Plan, Prepare, Prepared, Result


class Runner(Protocol):
    """Begins plans strictly in order. `launch` may return before the step has run; `collect` gives its result.

    With one lane (`RunnerReady.lanes`) steps also end in order. With more, "the next step" below is the one of those
    in flight that ends first.
    """

    def load(self) -> RunnerReady:
        """Load what it takes to run, and say what there is to schedule."""
        ...

    def reset(self) -> None:
        """Forget all sequences and steps: another scheduler takes over. What was loaded stays."""
        ...

    def prepare(self, message: Prepare, answer: Callable[[Prepared], None]) -> None:
        """Begin to compile a grammar; `answer` is called, by whatever thread, when plans may use it."""
        ...

    def launch(self, plan: Plan) -> None:
        """Start one step behind those that are in flight."""
        ...

    @property
    def in_flight(self) -> int:
        """Steps that were launched and not collected."""
        ...

    @property
    def next_done_ns(self) -> int | None:
        """When the next step will be done, on the monotonic clock. None: there is none, or only `is_done` can tell."""
        ...

    def is_done(self) -> bool:
        """Whether the next step is done, so that `collect` would not wait."""
        ...

    def collect(self) -> Result:
        """The result of the next step. A runner that cannot tell when that is done waits for it here."""
        ...
