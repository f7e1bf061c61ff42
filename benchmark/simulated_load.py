"""A scenario's requests, sent to a simulated ring: the counterpart of `benchmark.load`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmark.client import Measured
from benchmark.fleet import Fleet
from benchmark.load import PRIMER, Run
from benchmark.presets import Chain, Scenario
from benchmark.ring_model import Request, Ring


def warm_up(ring: Ring, scenario: Scenario) -> None:
    """Send the primer, and the requests that a scenario wants behind it before it counts."""
    for chain in (PRIMER, *(scenario.chain(0) for _ in range(scenario.warm_up))):
        _Follower(ring, scenario, {}, 0).follow(chain, lambda: None)
        ring.loop.run()


def send(ring: Ring | Fleet, scenario: Scenario, seed: int) -> Run:
    """Send all of a scenario's requests and let time pass until the last one has ended."""
    measured: dict[int, Measured] = {}
    follower = _Follower(ring, scenario, measured, seed)
    chains = scenario.chains()
    started_ns, busy_s = ring.loop.now, ring.busy_s()["client"]
    if scenario.rate:
        for chain, at_s in zip(chains, scenario.arrivals_s(seed), strict=True):
            ring.loop.at(started_ns + round(at_s * 1e9), follower.start(chain))
    else:
        waiting = iter(chains)
        for _ in range(scenario.concurrency):
            follower.follow_all(waiting)
    ring.loop.run()
    ended_ns = follower.last_end_ns
    return Run(
        [measured[index] for index in range(len(measured))],
        started_ns / 1e9,
        (ended_ns - started_ns) / 1e9,
        ring.busy_s()["client"] - busy_s,
    )


class _Follower:
    """Sends the requests of chains, each when the one before it has ended, into `measured` by index."""

    def __init__(self, ring: Ring | Fleet, scenario: Scenario, measured: dict[int, Measured], seed: int) -> None:
        self.last_end_ns = 0
        self._ring = ring
        self._scenario = scenario
        self._measured = measured
        self._seed = seed

    def start(self, chain: Chain) -> Callable[[], None]:
        """What begins a chain."""
        return lambda: self.follow(chain, lambda: None)

    def follow_all(self, waiting: Iterator[Chain]) -> None:
        """Take chains, one at a time, until none is left."""
        chain = next(waiting, None)
        if chain is not None:
            self.follow(chain, lambda: self.follow_all(waiting))

    def follow(self, chain: Chain, then: Callable[[], None]) -> None:
        """The requests of one chain. Behind one that failed, the others have nothing to go on."""
        self._turn(chain, 0, "", then)

    def _turn(self, chain: Chain, turn: int, said: str, then: Callable[[], None]) -> None:
        prompt = said + chain.turns[turn]

        def done(measured: Measured) -> None:
            self.last_end_ns = self._ring.loop.now
            self._measured[chain.first_index + turn] = measured
            if turn + 1 == len(chain.turns):
                then()
            elif measured.error:
                for later in range(turn + 1, len(chain.turns)):
                    self._measured[chain.first_index + later] = Measured(
                        sent=self._ring.loop.now / 1e9, error="the turn before it failed"
                    )
                then()
            else:
                pause_s = self._scenario.pause_s(self._seed, chain.first_index + turn + 1)
                go_on = partial(self._turn, chain, turn + 1, prompt + measured.text, then)
                self._ring.loop.after(round(pause_s * 1e9), go_on) if pause_s else go_on()

        self._ring.send(Request(prompt, chain.cache_salt or "", self._scenario.timeout_ms, done))
