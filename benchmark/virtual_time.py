"""Time that passes only from event to event, and what a machine's cores and processes do meanwhile.

Everything is in whole nanoseconds. Events of the same time happen in the order in which they were planned, so a run
depends on nothing but what it was started with.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

# How long a thread keeps its core while others wait for one: the order of Linux's base slice.
SLICE_NS = 2_800_000

Action = Callable[[], None]
# Given the messages and the time: what the work on them costs (ns), and what happens when it is done.
Work = Callable[[list[Any], int], tuple[int, Action]]


class EventLoop:
    """A heap of (time, sequence number, action)."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Action]] = []
        self._planned = 0

    def at(self, time_ns: int, action: Action) -> None:
        """Plan an action; one for the past happens next."""
        heapq.heappush(self._heap, (max(time_ns, self.now), self._planned, action))
        self._planned += 1

    def after(self, delay_ns: int, action: Action) -> None:
        """Plan an action; the delay is not negative."""
        heapq.heappush(self._heap, (self.now + delay_ns, self._planned, action))
        self._planned += 1

    def run(self) -> None:
        """Let time pass until nothing is planned any more."""
        heap = self._heap
        while heap:
            self.now, _, action = heapq.heappop(heap)
            action()


class Cores:
    """The machine's cores. A thread that wants one and finds none waits in line.

    A kernel does not give a woken thread another core at once when one is at work already: it may have it wait behind
    the thread that runs, and only move it some time later. `delays_ns` are such times, one of which is drawn each time.
    """

    def __init__(self, loop: EventLoop, count: int, delays_ns: Sequence[int], seed: int) -> None:
        self._loop = loop
        self._count = count
        self._free = count
        self._delays_ns = delays_ns
        self._rng = random.Random(seed)
        self._line: deque[Thread] = deque()

    def acquire(self, thread: Thread) -> None:
        """Have `thread` run with a core taken, now or later."""
        if self._free == self._count:
            self._free -= 1
            thread.run()
            return
        self._line.append(thread)
        if self._free:
            self._loop.after(self._rng.choice(self._delays_ns), lambda: self._move(thread))

    def _move(self, thread: Thread) -> None:
        """Let a thread that still waits have a free core."""
        if self._free and thread in self._line:
            self._free -= 1
            self._line.remove(thread)
            thread.run()

    def release(self) -> None:
        """Give a core back, or on to the next in line."""
        if self._line:
            self._line.popleft().run()
        else:
            self._free += 1


class Thread:
    """Takes messages from its inbox, works on them for as long as that costs, and begins again.

    It takes one at a time, or with `takes_all` everything that is there. It keeps its core until there is nothing left
    to do or `SLICE_NS` have passed; then it goes behind those who wait for one.
    """

    def __init__(self, loop: EventLoop, cores: Cores, work: Work, takes_all: bool = False) -> None:
        self.busy_ns = 0
        self._loop = loop
        self._cores = cores
        self._work = work
        self._takes_all = takes_all
        self._inbox: deque[Any] = deque()
        self._awake = False
        self._since_ns = 0  # when it got its core
        self._done: Action  # of the work that it is at

    def put(self, message: Any) -> None:
        self._inbox.append(message)
        if not self._awake:
            self._awake = True
            self._cores.acquire(self)

    def run(self) -> None:
        """A core is there: begin."""
        self._since_ns = self._loop.now
        self._begin()

    def _begin(self) -> None:
        inbox = self._inbox
        if self._takes_all:
            messages = list(inbox)
            inbox.clear()
        else:
            messages = [inbox.popleft()]
        cost_ns, self._done = self._work(messages, self._loop.now)
        self.busy_ns += cost_ns
        self._loop.after(cost_ns, self._end)

    def _end(self) -> None:
        self._done()
        if not self._inbox:
            self._awake = False
            self._cores.release()
        elif self._loop.now - self._since_ns < SLICE_NS:
            self._begin()
        else:
            self._cores.release()
            self._cores.acquire(self)


class Process:
    """A process of the ring: the thread that does its work, and the one that takes in its messages.

    Both need a core, and both need to be woken. So a message is late when the cores are busy, however little work it is
    to move it.
    """

    def __init__(self, loop: EventLoop, cores: Cores, work: Work, hop_ns: int, takes_all: bool = False) -> None:
        """`hop_ns` is what a message takes from one process to another when no core is busy: half of it is work of
        the threads that move it, half are wake-ups.
        """
        self.main = Thread(loop, cores, work, takes_all)
        self._io = Thread(loop, cores, self._take_in)
        self._loop = loop
        self._half_ns = hop_ns // 2

    def send(self, receiver: Process, messages: list[Any]) -> None:
        """Pass messages on, together, to another process's inbox."""
        self._loop.after(self._half_ns, lambda: receiver._io.put(messages))

    def send_directly(self, receiver: Process, message: Any) -> None:
        """Pass a message on through the kernel alone, as over a TCP connection: only the receiver is to be woken."""
        self._loop.after(self._half_ns // 2, lambda: receiver.main.put(message))

    def _take_in(self, batches: list[Any], now: int) -> tuple[int, Action]:
        (messages,) = batches

        def done() -> None:
            for message in messages:
                self.main.put(message)

        return self._half_ns, done
