"""Deficit round robin over tenants: everybody who asks gets the same number of tokens, however many requests they send.

Shreedhar and Varghese, Efficient Fair Queuing Using Deficit Round Robin, 1996. Tenants that have something waiting
stand in a ring. Whoever's turn begins gets a quantum of tokens on its account, and its requests are admitted, first
come first served, while the account pays for their prompts; what is left is kept for its next turn. Output is charged
when it is over, since nobody knows its length before: so an account may be in debt. Debts are forgotten once nobody
waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from scheduler_proc.policies.policy import MAX_LOOK, Policy
from scheduler_proc.sequence import Sequence

QUANTUM = 512  # tokens
MAX_ACCOUNTS = 10_000  # beyond, those of tenants with nothing waiting are forgotten


class Fair(Policy):
    def __init__(self, match: Callable[[Sequence], list[int]]) -> None:
        super().__init__(match)
        self._waiting: dict[str, dict[int, Sequence]] = {}  # tenant -> its sequences by order of arrival
        self._ring: deque[str] = deque()  # tenants with something waiting; it is the first one's turn
        self._accounts: dict[str, int] = {}  # tokens that a tenant may still use, less what it owes

    def push(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        if tenant not in self._waiting:
            self._waiting[tenant] = {}
            self._ring.append(tenant)
            self._accounts.setdefault(tenant, 0)
        self._waiting[tenant][sequence.order] = sequence

    def remove(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        waiting = self._waiting[tenant]
        del waiting[sequence.order]
        if waiting:
            return
        del self._waiting[tenant]
        if self._ring[0] == tenant:
            _end_turn(self._ring, self._accounts)
        else:
            self._ring.remove(tenant)
        if self._accounts[tenant] >= 0:
            del self._accounts[tenant]  # who wants nothing saves nothing up
        if not self._ring:
            self._accounts.clear()

    def order(self, now: int) -> Iterator[Sequence]:
        ring, accounts = deque(self._ring), dict(self._accounts)
        lines = {tenant: iter(_by_arrival(waiting)) for tenant, waiting in self._waiting.items()}
        firsts = {tenant: next(line) for tenant, line in lines.items()}
        for _ in range(MAX_LOOK):
            if not ring:
                return
            while accounts[ring[0]] < _cost(firsts[ring[0]]):
                _pass_turn(ring, accounts)
            tenant, sequence = ring[0], firsts[ring[0]]
            accounts[tenant] -= _cost(sequence)
            following = next(lines[tenant], None)
            if following is None:
                _end_turn(ring, accounts)
            else:
                firsts[tenant] = following
            yield sequence

    def admitted(self, sequence: Sequence) -> None:
        tenant, cost = sequence.tenant, _cost(sequence)
        while self._ring[0] != tenant or self._accounts[tenant] < cost:
            _pass_turn(self._ring, self._accounts)
        self._accounts[tenant] -= cost

    def left(self, sequence: Sequence) -> None:
        if self._ring:
            self._accounts[sequence.tenant] = self._accounts.get(sequence.tenant, 0) - sequence.num_output
        if len(self._accounts) > MAX_ACCOUNTS:
            self._accounts = {tenant: self._accounts[tenant] for tenant in self._ring}


def _cost(sequence: Sequence) -> int:
    return len(sequence.token_ids)


def _by_arrival(waiting: dict[int, Sequence]) -> list[Sequence]:
    return [waiting[order] for order in sorted(waiting)]


def _pass_turn(ring: deque[str], accounts: dict[str, int]) -> None:
    """The first tenant goes to the end of the ring; the next one's turn begins."""
    ring.rotate(-1)
    accounts[ring[0]] += QUANTUM


def _end_turn(ring: deque[str], accounts: dict[str, int]) -> None:
    """The first tenant has nothing left and leaves the ring; the next one's turn begins."""
    ring.popleft()
    if ring:
        accounts[ring[0]] += QUANTUM
