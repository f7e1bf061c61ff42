"""What `GET /v1/requests/{id}` shows of a sequence, while it lives and for some time behind its end."""

from __future__ import annotations

from collections import deque
from typing import Any

from ipc.messages import REASON_NAMES, Tail
from scheduler_proc.sequence import Sequence

REMEMBERED = 512  # ended sequences


class Reports:
    """The reports of the sequences that ended last."""

    def __init__(self) -> None:
        self._ended: deque[tuple[str, dict[str, Any]]] = deque(maxlen=REMEMBERED)

    @staticmethod
    def of(sequence: Sequence) -> dict[str, Any]:
        """A sequence as plain data. Times are in ns of the ring's clock, 0 for what has not happened."""
        return {
            "rid": sequence.rid,
            "choice": sequence.choice,
            "state": sequence.state.value,
            "prompt_tokens": sequence.prompt_len,
            "computed_tokens": min(sequence.num_planned, len(sequence.token_ids)),
            "cached_tokens": sequence.cached_tokens,
            "output_tokens": sequence.num_output,
            "blocks": len(sequence.blocks),
            "slot": sequence.slot if sequence.slot >= 0 else None,
            "preemptions": sequence.preemptions,
            "priority": sequence.priority,
            "received_ns": sequence.received_ns,
            "tokenized_ns": sequence.tokenized_ns,
            "queued_ns": sequence.queued_ns,
            "scheduled_ns": sequence.scheduled_ns,
            "first_token_ns": sequence.first_token_ns,
            "in_step": False,
            "queue_position": None,
            "finished_ns": 0,
            "finish_reason": None,
        }

    def add(self, sequence: Sequence, tail: Tail) -> None:
        """Remember a sequence that has just ended."""
        end = {"finished_ns": tail.finished_ns, "finish_reason": REASON_NAMES[tail.reason]}
        self._ended.append((sequence.request_id, self.of(sequence) | end))

    def ended(self, request_id: str) -> list[dict[str, Any]]:
        """The remembered sequences of a request, by choice."""
        return [report for name, report in self._ended if name == request_id]
