"""Those who wait: in the order of the policy, with two rules that hold whatever the policy is.

Aging: once the longest waiting sequence has waited for `--scheduling-aging` seconds, at least every fourth place goes
to it, so that nothing starves. A plain "oldest first" would turn every policy into first come, first served as soon as
the queue is longer than that.

Coalescing: `--prefill-delay-steps` lets the first arrival wait some steps for others while sequences decode, because a
step with one prefill costs its decodes as much time as a step with many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from scheduler_proc.policies import Policy
from scheduler_proc.sequence import Rank, Sequence

AGED_SHARE = 4  # one of so many places goes to the one that has waited longest


class WaitingLine:
    """The waiting sequences. `aging_ns` 0 means no aging."""

    def __init__(self, policy: Policy, aging_ns: int) -> None:
        self.num_tokens = 0  # of all of them together
        self._policy = policy
        self._aging_ns = aging_ns
        self._members: dict[int, Sequence] = {}  # by rid, the longest waiting first
        self._since_oldest = 0  # admissions since the longest waiting one was last admitted

    def __len__(self) -> int:
        return len(self._members)

    def push(self, sequence: Sequence, next_step: int) -> None:
        sequence.queued_step = next_step
        self._members[sequence.rid] = sequence
        self.num_tokens += len(sequence.token_ids)
        self._policy.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        del self._members[sequence.rid]
        self.num_tokens -= len(sequence.token_ids)
        self._policy.remove(sequence)

    def admit(self, sequence: Sequence, now: int) -> Rank:
        """Take a sequence out because it is admitted. Returns its importance while it runs."""
        is_oldest = sequence is self._oldest()
        aged = is_oldest and self._is_aged(sequence, now)
        self._since_oldest = 0 if is_oldest else self._since_oldest + 1
        self._policy.admitted(sequence)
        self.remove(sequence)
        rank = self._policy.rank(sequence)
        return (-math.inf, *rank) if aged else rank  # else it would be the first one to be preempted again

    def order(self, now: int) -> Iterator[Sequence]:
        """The next to admit first. Those that are admitted are taken out while this is read."""
        oldest = self._oldest()
        first = None
        if oldest is not None and self._since_oldest >= AGED_SHARE - 1 and self._is_aged(oldest, now):
            first = oldest
            yield first
        for sequence in self._policy.order(now):
            if sequence is not first:
                yield sequence

    def ripe(self, next_step: int, delay_steps: int, enough_tokens: int, enough_seqs: int) -> bool:
        """Whether the first arrival has waited long enough for company, or there is enough of it."""
        oldest = self._oldest()
        if oldest is None:
            return False
        if next_step - oldest.queued_step >= delay_steps:
            return True
        return self.num_tokens >= enough_tokens or len(self) >= enough_seqs

    def position(self, sequence: Sequence, now: int) -> int | None:
        """How many would be admitted before it, as things are; None when too many to look at."""
        return next((place for place, other in enumerate(self.order(now)) if other is sequence), None)

    def _oldest(self) -> Sequence | None:
        return next(iter(self._members.values()), None)

    def _is_aged(self, sequence: Sequence, now: int) -> bool:
        return 0 < self._aging_ns <= now - sequence.queued_ns
