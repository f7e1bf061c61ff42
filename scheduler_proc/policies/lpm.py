"""Longest prefix match: who finds most of its prompt in the cache goes first, before the cache forgets it.

Sheng et al., SGLang: Efficient Execution of Structured Language Model Programs, 2024, section 3: this order is optimal
for a cache of one tree and requests that all wait. Looking everybody up again at every step costs time, so beyond
`MAX_SORTED` sequences the order is first come, first served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from scheduler_proc.policies.policy import MAX_LOOK, Policy
from scheduler_proc.sequence import Sequence

MAX_SORTED = 128


class Lpm(Policy):
    def __init__(self, match: Callable[[Sequence], list[int]]) -> None:
        super().__init__(match)
        self._waiting: dict[int, Sequence] = {}  # by order of arrival

    def push(self, sequence: Sequence) -> None:
        self._waiting[sequence.order] = sequence

    def remove(self, sequence: Sequence) -> None:
        del self._waiting[sequence.order]

    def order(self, now: int) -> Iterator[Sequence]:
        by_arrival = sorted(self._waiting)
        if len(by_arrival) > MAX_SORTED:
            return iter([self._waiting[order] for order in by_arrival[:MAX_LOOK]])
        sequences = [self._waiting[order] for order in by_arrival]
        return iter(sorted(sequences, key=lambda sequence: -len(self.match(sequence))))
