"""Shortest job first, by the prompt: the lowest mean time to the first token when prompts differ and the queue is long.

How long an output will be is not known, so it plays no part; after a preemption the output so far is part of the job.
"""

from __future__ import annotations

from scheduler_proc.policies.policy import KeyPolicy
from scheduler_proc.sequence import Rank, Sequence


class Sjf(KeyPolicy):
    def key(self, sequence: Sequence) -> Rank:
        return (len(sequence.token_ids), sequence.order)
