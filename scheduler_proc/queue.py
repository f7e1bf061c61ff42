"""The waiting sequences, in the order in which they are to be admitted."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from scheduler_proc.sequence import Sequence

Key = tuple[int, ...]


def fcfs(sequence: Sequence) -> Key:
    """First come, first served."""
    return (sequence.order,)


class WaitingQueue:
    """A heap over `key`, smallest first. Removal is lazy: a removed entry is skipped when it surfaces."""

    def __init__(self, key: Callable[[Sequence], Key]) -> None:
        self._key = key
        self._heap: list[tuple[Key, Sequence]] = []
        self._members: set[int] = set()

    def __len__(self) -> int:
        return len(self._members)

    def push(self, sequence: Sequence) -> None:
        self._members.add(sequence.rid)
        heapq.heappush(self._heap, (self._key(sequence), sequence))

    def first(self) -> Sequence | None:
        """The next sequence to admit, left in the queue."""
        while self._heap and self._heap[0][1].rid not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Sequence:
        """Take out what `first` returned."""
        _, sequence = heapq.heappop(self._heap)
        self._members.discard(sequence.rid)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        self._members.discard(sequence.rid)
