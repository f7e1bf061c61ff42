"""The lowest `priority` number first, and among equals who came first. The least important is preempted first."""

from __future__ import annotations

from scheduler_proc.policies.policy import KeyPolicy
from scheduler_proc.sequence import Rank, Sequence


class Priority(KeyPolicy):
    def key(self, sequence: Sequence) -> Rank:
        return (sequence.priority, sequence.order)

    def rank(self, sequence: Sequence) -> Rank:
        return self.key(sequence)
