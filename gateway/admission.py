"""The gateway's own bound: what may be under way to the scheduler, so that no queue of the ring grows without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from gateway.errors import ApiError


class Admission:
    """Counts the sequences of which nothing has come back yet.

    The scheduler lets no more than `--max-num-queued-reqs` wait, and runs no more than `--max-num-seqs`. Beyond the two
    together it would refuse what comes, so that it is refused here, before it costs the others anything.
    """

    def __init__(self, limit: int, on_refusal: Callable[[], None] = lambda: None) -> None:
        """`limit` is how many may be under way; `on_refusal` is called for each request that has no room."""
        self._limit = limit
        self._on_refusal = on_refusal
        self._under_way: set[int] = set()

    def enter(self, rids: Sequence[int], retry_after_s: float) -> None:
        """Let sequences in. Raises ApiError 429 when there is no room for them."""
        if self._under_way and len(self._under_way) + len(rids) > self._limit:
            self._refuse(retry_after_s)
        self._under_way.update(rids)

    def check(self, retry_after_s: float) -> None:
        """Raise ApiError 429 when not even one sequence more has room."""
        if len(self._under_way) >= self._limit:
            self._refuse(retry_after_s)

    def leave(self, rid: int) -> None:
        """Something has come back of a sequence, or nothing is to come any more."""
        self._under_way.discard(rid)

    def _refuse(self, retry_after_s: float) -> NoReturn:
        self._on_refusal()
        text = f"the queue is full: {len(self._under_way)} requests are waiting; try again later"
        raise ApiError(429, text, retry_after_s=retry_after_s)
