"""When sequences must have ended at the latest."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from scheduler_proc.sequence import Sequence

SPARE = 1024  # entries of ended sequences that are not worth a look


class Deadlines:
    """The deadlines of those sequences that have one, the earliest first.

    What ends earlier leaves its entry here, because a heap is slow to search; so that a long deadline does not keep
    millions of them, they are thrown out as soon as they are the majority.
    """

    def __init__(self, living: Mapping[int, Sequence]) -> None:
        """`living` are the sequences that have not ended, by rid; the caller keeps it up to date."""
        self._living = living
        self._heap: list[tuple[int, int]] = []  # (time, rid)

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, sequence: Sequence) -> None:
        """Watch over a sequence from now on, if it has a deadline."""
        if not sequence.deadline_ns:
            return
        heapq.heappush(self._heap, (sequence.deadline_ns, sequence.rid))
        if len(self._heap) > 2 * len(self._living) + SPARE:
            self._heap = [entry for entry in self._heap if entry[1] in self._living]
            heapq.heapify(self._heap)

    def passed(self, now: int) -> Iterator[Sequence]:
        """The living sequences whose deadline has passed, each once; the caller may end them meanwhile."""
        while self._heap and self._heap[0][0] <= now:
            sequence = self._living.get(heapq.heappop(self._heap)[1])
            if sequence is not None:
                yield sequence

    @property
    def next_ns(self) -> int | None:
        """When there may be something to do at the earliest."""
        return self._heap[0][0] if self._heap else None
