"""First come, first served: fair to everybody and kind to nobody. One long prompt holds up all short ones behind it."""

from __future__ import annotations

from scheduler_proc.policies.policy import KeyPolicy
from scheduler_proc.sequence import Rank, Sequence


class Fcfs(KeyPolicy):
    def key(self, sequence: Sequence) -> Rank:
        return (sequence.order,)
