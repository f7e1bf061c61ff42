"""What the processes have recorded, put together from the messages that it came in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from ipc.control_messages import SpanChunk
from ipc.spans import Row


@dataclass(slots=True)
class Part:
    """The recording of one process."""

    rows: list[Row] = field(default_factory=list)
    detail: bytearray = field(default_factory=bytearray)
    dropped: int = 0

    def add(self, chunk: SpanChunk) -> None:
        columns = (chunk.kinds, chunk.begins, chunk.ends, chunk.ids, chunk.args)
        self.rows.extend(zip(*columns, strict=True))
        self.detail += chunk.detail
        self.dropped = chunk.dropped

    def document(self) -> dict[str, Any]:
        """What came beside the spans; empty when nothing did."""
        return orjson.loads(self.detail) if self.detail else {}


@dataclass(frozen=True, slots=True)
class Recorded:
    """The way of one sequence round the ring, as the gateway knows it at its end. Times are in ns."""

    rid: int
    first_rid: int  # of its request's choices
    request_id: str
    reason: str
    prompt_tokens: int
    output_tokens: int
    first_step: int
    received_ns: int
    tokenized_ns: int
    queued_ns: int
    scheduled_ns: int
    started_ns: int
    first_token_ns: int
    finished_ns: int
    delivered_ns: int  # the gateway had its end
    sent_ns: int  # and has sent its response

    def stages(self) -> list[tuple[str, int, int]]:
        """Name, begin and end of what it went through, one behind the other; what it never reached is left out."""
        moments = [
            ("tokenize", self.tokenized_ns), ("to scheduler", self.queued_ns), ("queue", self.scheduled_ns),
            ("batch wait", self.started_ns), ("first step", self.first_token_ns), ("decode", self.finished_ns),
            ("deliver", self.delivered_ns), ("send", self.sent_ns),
        ]  # fmt: skip
        stages, begin = [], self.received_ns
        for name, end in moments:
            if end:
                stages.append((name, begin, max(begin, end)))
                begin = max(begin, end)
        return stages
