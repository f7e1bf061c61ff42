"""What the scheduler counts of its steps: nothing a token, a few additions a step."""

from __future__ import annotations

from typing import Any

from ipc.histogram import Histogram
from ipc.messages import ABORT, ERROR, LENGTH, REASON_NAMES, STOP, TIMEOUT, Result
from scheduler_proc.step import Step

REASONS = (STOP, LENGTH, ABORT, ERROR, TIMEOUT)
TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SEQUENCE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WAIT_BOUNDS = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300,
)  # fmt: skip


class Tally:
    """Sums and histograms since the start."""

    def __init__(self) -> None:
        self.generated = 0  # tokens that were sampled and belong to somebody
        self.wasted = 0  # those that were sampled for a sequence that was over already
        self.queue_full = 0  # requests refused because of the length of the queue
        self.tokens_full = 0  # and because of its tokens
        self.held_for_blocks = 0  # times that there were not enough blocks: for an admission, or for a decode
        self._ends = dict.fromkeys(REASONS, 0)
        self._decodes = 0
        self._prefills = 0
        self._decode_tokens = 0
        self._prefill_tokens = 0
        self._budget_tokens = 0  # what the steps had room for
        self._failed_steps = 0
        self._step_tokens = Histogram(TOKEN_BOUNDS)
        self._step_sequences = Histogram(SEQUENCE_BOUNDS)
        self._waits = {kind: Histogram(WAIT_BOUNDS) for kind in ("prefill", "preempted", "step")}

    def admitted(self, waited_ns: int, again: bool) -> None:
        """A sequence got a slot, for the first time or after a preemption, having been in the queue for so long."""
        self._waits["preempted" if again else "prefill"].observe(waited_ns / 1e9)

    def planned(self, step: Step) -> None:
        """A step is complete, and on its way."""
        sequences = len(step.decodes) + len(step.others)
        tokens = step.size
        self._prefills += len(step.prefills)
        self._decodes += sequences - len(step.prefills)
        self._prefill_tokens += step.num_prefill_tokens
        self._decode_tokens += tokens - step.num_prefill_tokens
        self._budget_tokens += step.max_tokens
        self._step_tokens.observe(tokens)
        self._step_sequences.observe(sequences)

    def ran(self, step: Step, result: Result) -> None:
        """A step's result is here."""
        self._waits["step"].observe(max(0, result.started_ns - step.planned_ns) / 1e9)
        self._failed_steps += bool(result.failed)

    def ended(self, reason: int) -> None:
        """A sequence is over."""
        self._ends[reason] += 1

    def export(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "generated_tokens": self.generated,
            "wasted_tokens": self.wasted,
            "queue_full": self.queue_full,
            "tokens_full": self.tokens_full,
            "held_for_blocks": self.held_for_blocks,
            "ends": {REASON_NAMES[reason]: count for reason, count in self._ends.items()},
            "step_sequences": {"decode": self._decodes, "prefill": self._prefills},
            "step_tokens": {"decode": self._decode_tokens, "prefill": self._prefill_tokens},
            "budget_tokens": self._budget_tokens,
            "failed_steps": self._failed_steps,
            "tokens_a_step": self._step_tokens.export(),
            "sequences_a_step": self._step_sequences.export(),
            "queue_waits": {kind: waits.export() for kind, waits in self._waits.items()},
        }
