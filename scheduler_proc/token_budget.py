"""How many tokens a step may have: as many as configured, fewer for a while after memory has run out."""

from __future__ import annotations

PATIENCE = 64  # steps that must go well before more is tried


class TokenBudget:
    """What a step needs beside weights and KV cache grows with its tokens, so a smaller step may fit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = most
        self._good_steps = 0

    @property
    def tokens(self) -> int:
        return self._limit

    def ran_out(self, tokens: int) -> None:
        """A step of so many tokens found no memory: try half of it."""
        self._limit = min(self._limit, max(1, tokens // 2))
        self._good_steps = 0

    def went_well(self) -> None:
        """A step has run. After a row of them, whoever took the memory may have given it back: try twice as much."""
        if self._limit < self._most:
            self._good_steps += 1
            if self._good_steps == PATIENCE:
                self._limit = min(self._most, 2 * self._limit)
                self._good_steps = 0
