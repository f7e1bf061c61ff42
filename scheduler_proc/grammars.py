"""The grammars that sequences follow: which are compiled in the runner, who waits for them, which may be forgotten.

The scheduler numbers them, so that a sequence's admission names its grammar by a number, and keeps the books as it does
for KV blocks: one that nobody uses any more stays where it is until there are too many.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ipc.messages import Prepare
from scheduler_proc.sequence import Sequence

MAX_IDLE = 64  # compiled grammars that nobody uses, kept for whoever asks for them again


@dataclass(slots=True)
class _Entry:
    number: int
    text: str
    users: int = 0
    is_ready: bool = False
    waiting: list[Sequence] = field(default_factory=list)


class Grammars:
    """`outgoing` collects what the runner must be told; the process sends it and empties it."""

    def __init__(self, max_idle: int = MAX_IDLE, first_number: int = 0) -> None:
        self.outgoing: list[Prepare] = []
        self._max_idle = max_idle
        self._of_text: dict[str, _Entry] = {}
        self._of_number: dict[int, _Entry] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # numbers, the longest idle first
        self._next_number = first_number

    def __len__(self) -> int:
        return len(self._of_number)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for theirs."""
        return sum(len(entry.waiting) for entry in self._of_number.values())

    @property
    def num_in_use(self) -> int:
        """Grammars that somebody follows or is going to."""
        return len(self._of_number) - len(self._idle)

    def take(self, text: str) -> int:
        """The number of a grammar, for one more user. The runner is told of a new one."""
        entry = self._of_text.get(text)
        if entry is None:
            entry = _Entry(self._next_number, text)
            self._next_number += 1
            self._of_text[text] = self._of_number[entry.number] = entry
            self.outgoing.append(Prepare(entry.number, text, self._forget_surplus()))
        self._idle.pop(entry.number, None)
        entry.users += 1
        return entry.number

    def release(self, number: int) -> None:
        """One of its users is gone."""
        entry = self._of_number.get(number)
        if entry is None:  # it could not be compiled
            return
        entry.users -= 1
        if entry.users == 0:
            self._idle[number] = None

    def knows(self, number: int) -> bool:
        """Whether a grammar is in use, or kept for later."""
        return number in self._of_number

    def is_ready(self, number: int) -> bool:
        """Whether the runner has compiled a grammar that is in use."""
        return self._of_number[number].is_ready

    def wait(self, sequence: Sequence) -> None:
        """Remember that a sequence cannot go on before its grammar is ready."""
        self._of_number[sequence.grammar].waiting.append(sequence)

    def stop_waiting(self, sequence: Sequence) -> None:
        """It is over; its grammar may be known no more."""
        if sequence.grammar in self._of_number:
            self._of_number[sequence.grammar].waiting.remove(sequence)

    def ready(self, number: int) -> list[Sequence]:
        """The runner has compiled a grammar. Returns those who waited for it."""
        entry = self._of_number[number]
        entry.is_ready = True
        waiting, entry.waiting = entry.waiting, []
        return waiting

    def failed(self, number: int) -> list[Sequence]:
        """The runner cannot compile a grammar, which is known no more. Returns those who waited for it."""
        entry = self._of_number.pop(number)
        del self._of_text[entry.text]
        self._idle.pop(number, None)
        return entry.waiting

    def _forget_surplus(self) -> list[int]:
        forgotten = []
        # One that is still being compiled may be forgotten as well: the runner keeps the order.
        while len(self._idle) > self._max_idle:
            number, _ = self._idle.popitem(last=False)
            del self._of_text[self._of_number.pop(number).text]
            forgotten.append(number)
        return forgotten
