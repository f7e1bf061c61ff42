"""Moves sequences through the table of their life, and notes it down when asked to."""

from __future__ import annotations

from scheduler_proc.life_cycle import Event, Transition, after
from scheduler_proc.sequence import Sequence


class LifeLog:
    """`entries` collects every transition while `enabled`; the process writes them out and empties it.

    With `every_token` the tokens that are decoded are transitions as well: a line a token, for the curious.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.every_token = False
        self.entries: list[Transition] = []

    def happens(self, sequence: Sequence, event: Event, now: int) -> None:
        """Raises LifeCycleError when this cannot happen to the sequence."""
        before = sequence.state
        sequence.state = after(before, event)
        if self.enabled:
            entry = Transition(sequence.request_id, sequence.choice, before, event, sequence.state, now)
            self.entries.append(entry)
