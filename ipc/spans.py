"""Spans: what a process did from when to when, kept in a ring buffer while somebody profiles.

Off, a place that would record costs the look at one attribute:

    begun = time.monotonic_ns() if spans.on else 0
    ...
    if begun:
        spans.add(PLAN, begun, step)

All times are `time.monotonic_ns`, which is one clock for all processes of a machine. Recording is safe from several
threads: each span takes its own row.
"""

from __future__ import annotations

import time
from itertools import count
from typing import NamedTuple

# What a span is, where it happens, and what its `id` and `arg` are.
READ = 0  # gateway: a request from its body to the ring; rid, number of sequences
TEXT = 1  # gateway: a Text message, to the streams; time of the step's result, rows
FORMAT = 2  # gateway: events of a stream made for the client; rid of its first sequence, bytes
TOKENIZE = 3  # tokenizer: a request to token ids, in whatever thread; rid, thread (0 is the loop)
SUBMIT = 4  # scheduler: a request taken in; rid, prompt tokens
ADMIT = 5  # scheduler: a sequence gets its place, an instant within a PLAN; rid, step
PLAN = 6  # scheduler: a step planned and sent; step, its tokens
RESULT = 7  # scheduler: a step's result taken in; step, sequences that sampled. It begins at the result's time
LAUNCH = 8  # model: a step launched; step, its rows
STEP = 9  # model: the runner at work on a step; step, its rows that sampled
COLLECT = 10  # model: a step's result fetched and sent; step, 0
DETOKENIZE = 11  # detokenizer: a Tokens message to text; time of the step's result, rows
GC = 12  # everywhere: a garbage collection; generation, 0
SEND = 13  # scheduler: a step's tokens sent; time of the step's result, rows
NAMES = (
    "read", "text", "format", "tokenize", "submit", "admit", "plan", "result", "launch", "step", "collect",
    "detokenize", "gc", "send",
)  # fmt: skip

CAPACITY = 1 << 17  # spans that a process keeps: the last ones; a power of two
Row = tuple[int, int, int, int, int]  # kind, begin, end, id, arg
NO_ROW: Row = (-1, 0, 0, 0, 0)


class Spans:
    """The recorder of one process; `on` says whether it records."""

    __slots__ = ("_count", "_rows", "_steps", "limit_reached", "on", "step_limit")

    def __init__(self) -> None:
        self.on = False
        self.step_limit = 0  # in the scheduler: steps after which `limit_reached` is set; 0 is never
        self.limit_reached = False
        self._rows: list[Row] = []
        self._count = count()
        self._steps = 0

    def start(self, step_limit: int = 0) -> None:
        """Record from now on; what was recorded before is forgotten."""
        self._rows = [NO_ROW] * CAPACITY
        self._count = count()
        self._steps = 0
        self.step_limit = step_limit
        self.limit_reached = False
        self.on = True

    def add(self, kind: int, begin_ns: int, id: int, arg: int = 0) -> None:
        """A span that ends now."""
        self._rows[next(self._count) & (CAPACITY - 1)] = (kind, begin_ns, time.monotonic_ns(), id, arg)

    def put(self, kind: int, begin_ns: int, end_ns: int, id: int, arg: int = 0) -> None:
        """A span whose end is known."""
        self._rows[next(self._count) & (CAPACITY - 1)] = (kind, begin_ns, end_ns, id, arg)

    def step_planned(self) -> None:
        """Count towards `step_limit`."""
        self._steps += 1
        if self._steps == self.step_limit:
            self.limit_reached = True

    def stop(self) -> Recording:
        """Record no more; what there is, in the order of ending."""
        self.on = False
        total = next(self._count)
        first = total & (CAPACITY - 1) if total > CAPACITY else 0
        rows, self._rows = self._rows, []
        return Recording((rows[first:] + rows[:first])[:total], max(0, total - CAPACITY))


class Recording(NamedTuple):
    """What was recorded; `dropped` older spans were overwritten."""

    rows: list[Row]
    dropped: int
