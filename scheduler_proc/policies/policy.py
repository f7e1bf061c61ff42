"""What a scheduling policy is: the order of those who wait, and the importance of those who run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Any

from scheduler_proc.sequence import Rank, Sequence

MAX_LOOK = 256  # of those who wait, how many one step looks at


class Policy(ABC):
    """Who is admitted next, and who has to leave first when memory runs out.

    A policy knows every sequence that waits, from `push` to `remove`. It decides nothing but an order: tokens, blocks,
    slots and aging are the scheduler's business. It is pure: no clock of its own, no I/O. To write one, subclass this
    (or `KeyPolicy`, when a key says it all) and start the server with `--scheduling-policy my_module:MyPolicy`.
    """

    def __init__(self, match: Callable[[Sequence], list[int]]) -> None:
        """`match(sequence)` gives the cached KV blocks that a sequence would find if it were admitted now."""
        self.match = match

    @abstractmethod
    def push(self, sequence: Sequence) -> None:
        """A sequence begins to wait: it is new, or was preempted."""

    @abstractmethod
    def remove(self, sequence: Sequence) -> None:
        """It waits no longer: it was admitted, or is over."""

    @abstractmethod
    def order(self, now: int) -> Iterator[Sequence]:
        """Those who wait, the next to admit first; `now` is in ns. Changes nothing, and need not be read to its end.

        `remove` is called for some of them while this is read.
        """

    def admitted(self, sequence: Sequence) -> None:  # noqa: B027 - most policies keep no accounts
        """It is being admitted; `remove` follows. A policy that keeps accounts charges its prompt here."""

    def left(self, sequence: Sequence) -> None:  # noqa: B027
        """It ran and is over: a policy that keeps accounts charges its output here."""

    def rank(self, sequence: Sequence) -> Rank:
        """The importance of a sequence while it runs, read at its admission: the largest one is preempted first."""
        return (sequence.order,)


class KeyPolicy(Policy):
    """A policy that a key says all about: the smallest one is admitted first. The key of a sequence must not change."""

    def __init__(self, match: Callable[[Sequence], list[int]]) -> None:
        super().__init__(match)
        self._line: list[Sequence] = []

    @abstractmethod
    def key(self, sequence: Sequence) -> Any:
        """What to compare; two sequences never have equal ones."""

    def push(self, sequence: Sequence) -> None:
        insort(self._line, sequence, key=self.key)

    def remove(self, sequence: Sequence) -> None:
        del self._line[bisect_left(self._line, self.key(sequence), key=self.key)]

    def order(self, now: int) -> Iterator[Sequence]:
        return iter(self._line[:MAX_LOOK])
