"""Several rings under virtual time, and a router in front of them: `deploy.prefix_routing`, or something simpler.

The router costs nothing. It knows how many requests it has sent to each replica and has no answer to, and reads the
replicas' KV events, which take as long to reach it as a message within a ring.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmark.client import Measured
from benchmark.experiment import Replicas
from benchmark.overheads import Overheads
from benchmark.ring_model import Machine, Request, Ring
from benchmark.step_log import Step
from benchmark.virtual_time import EventLoop
from deploy.prefix_routing import PrefixIndex, PrefixRouting
from ipc import mock_vocabulary
from ipc.codec import Ids
from scheduler_proc.kv_events import KvEvent, as_map

ROUTERS = ("random", "least-loaded", "prefix")


class Fleet:
    """Looks to those who send requests like one ring."""

    def __init__(
        self, replicas: Replicas, options: Mapping[str, Any], overheads: Overheads, stream: bool,
        keep_text: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        """`seed` is that of chance in the machines and in the router; the rest as for a `Ring`."""
        self.loop = EventLoop()
        self.steps: list[Step] = []
        self._router = replicas.router
        self._rng = random.Random(seed)
        self._routing = PrefixRouting(PrefixIndex())
        self._hop_ns = round(1000 * overheads.hop_us)
        self._prompt_ids: dict[str, Ids] = {}
        self.rings: dict[str, Ring] = {}
        machine = Machine.of(overheads, seed, self.loop)
        for number in range(replicas.count):
            name = f"replica-{number}"
            if number and not replicas.one_machine:
                machine = Machine.of(overheads, seed + number, self.loop)
            learn = partial(self._learn, name) if self._router == "prefix" else None
            ring = Ring(options, overheads, stream, keep_text, machine=machine, on_kv_events=learn)
            ring.steps = self.steps
            self.rings[name] = ring
        self._loads = dict.fromkeys(self.rings, 0)

    def send(self, request: Request) -> None:
        """Have a client send a request, which goes to the replica that the router chooses now."""
        name = self._choose(request)
        self._loads[name] += 1
        done = request.done

        def is_done(measured: Measured) -> None:
            self._loads[name] -= 1
            done(measured)

        request.done = is_done
        self.rings[name].send(request)

    def stats(self) -> dict[str, Any]:
        """The counters of all schedulers, summed up."""
        total: Counter[str] = Counter()
        for ring in self.rings.values():
            total.update({name: value for name, value in ring.stats().items() if isinstance(value, int)})
        return dict(total)

    def busy_s(self) -> dict[str, float]:
        """Seconds that the processes of each kind have worked, all replicas together."""
        each = [ring.busy_s() for ring in self.rings.values()]
        return {name: sum(busy[name] for busy in each) for name in each[0]}

    def _choose(self, request: Request) -> str:
        loads = self._loads
        if self._router == "random":
            return self._rng.choice(list(loads))
        if self._router == "least-loaded":
            return min(loads, key=lambda name: (loads[name], self._rng.random()))
        if request.prompt not in self._prompt_ids:
            self._prompt_ids[request.prompt] = mock_vocabulary.encode(request.prompt)
        return self._routing.choose(self._prompt_ids[request.prompt], loads, request.cache_salt).replica

    def _learn(self, name: str, events: list[KvEvent]) -> None:
        """The events of a replica are on their way to the router."""

        def arrive() -> None:
            for event in events:
                self._routing.index.apply(name, as_map(event))

        self.loop.after(self._hop_ns, arrive)
