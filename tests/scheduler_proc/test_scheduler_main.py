"""The scheduler's loop over real sockets: it starts with a runner, and outlives the loss of every other process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from ipc.codec import Ids
from ipc.config import RingConfig, SchedulerConfig, section
from ipc.control_messages import Held, Lost, Ready, RunnerReady, Shutdown
from ipc.messages import ERROR, Abort, Output, Plan, Result, Sampling, Submit, Tail, Tokens
from ipc.names import first_rid
from ipc.options import complete
from ipc.process import Process
from ipc.sockets import Inbox, Outbox
from scheduler_proc.main import serve
from tests.e2e.conftest import wait_for

RUNS = {"supervisor": 1, "gateway": 2, "tokenizer": 3, "scheduler": 4, "model": 5, "detokenizer": 6}
RUNNER = RunnerReady(num_blocks=100, block_size=16, max_model_len=1000, max_num_seqs=1, eos_token_ids=Ids("i", [0]))
FIRST = first_rid(0, RUNS["gateway"])
Message = TypeVar("Message")


class Ring:
    """A scheduler in a thread, and all others played by the test. It runs one sequence at a time."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = str(run_dir)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        others = [name for name in RUNS if name != "scheduler"]
        self.inboxes = {name: Inbox(self.context, self.run_dir, name, RUNS[name], RUNS) for name in others}
        self.received: dict[str, deque[Any]] = {name: deque() for name in others}
        self.outboxes: dict[int, Outbox] = {}
        config = section(SchedulerConfig, complete({}))
        self.process = Process("scheduler", RingConfig(self.run_dir, RUNS["scheduler"], "info", RUNS), config)
        self.thread = threading.Thread(target=serve, args=(self.process,), daemon=True)

    def __enter__(self) -> Ring:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.send("supervisor", Shutdown())
        self.thread.join(20)
        self.process.close()
        for inbox in self.inboxes.values():
            inbox.close()
        for outbox in self.outboxes.values():
            outbox.close()
        self.context.term()

    def send(self, sender: str | int, message: Any) -> None:
        """Into the scheduler's inbox, by the name of the sender or by the epoch of its run."""
        epoch = RUNS[sender] if isinstance(sender, str) else sender
        if epoch not in self.outboxes:
            self.outboxes[epoch] = Outbox(self.context, self.run_dir, "scheduler", epoch, RUNS["scheduler"])
        self.outboxes[epoch].send(message)

    def next(self, name: str, kind: type[Message]) -> Message:
        """The next message of a kind in somebody's inbox; others that come before it are dropped."""
        received = self.received[name]
        while True:
            while received:
                if isinstance(message := received.popleft(), kind):
                    return message
            received.extend(self.inboxes[name].receive(20))
            assert received, f"no {kind.__name__} for the {name}"

    def start(self) -> None:
        self.send("model", RUNNER)
        assert self.next("supervisor", Ready).process == "scheduler"

    def submit(self, rid: int, sender: str | int = "tokenizer") -> None:
        sampling = Sampling(max_tokens=100, ignore_eos=True)
        self.send(sender, Submit(rid, "", 1, Ids("i", [1, 2, 3]), sampling, Output(), 0, "", 0, 0, None))

    def run_one(self, rid: int) -> None:
        """Submit a request and give it its first token."""
        self.submit(rid)
        plan = self.next("model", Plan)
        self.send("model", Result(plan.step, plan.slots, Ids("i", [7]), None, [], [], 1, 2))
        assert [head.rid for head in self.next("detokenizer", Tokens).heads] == [rid]


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    with Ring(tmp_path) as ring:
        ring.start()
        yield ring


def test_a_lost_model_ends_all_sequences_and_its_successor_is_awaited(ring: Ring) -> None:
    ring.run_one(FIRST)
    ring.submit(FIRST + 1)
    ring.send("supervisor", Lost("model", RUNS["model"], 9))
    tails: list[Tail] = []
    while len(tails) < 2:
        tails += ring.next("detokenizer", Tokens).tails
    assert {tail.rid for tail in tails} == {FIRST, FIRST + 1}
    assert all(tail.reason == ERROR and tail.refusal and tail.refusal.status == 503 for tail in tails)
    ring.inboxes["model"].close()
    ring.inboxes["model"] = Inbox(ring.context, ring.run_dir, "model", 9, RUNS)
    ring.received["model"].clear()
    ring.send(9, RUNNER)
    ring.next("supervisor", Ready)
    ring.submit(FIRST + 2)
    plan = ring.next("model", Plan)
    assert (plan.step, [admit.rid for admit in plan.admit]) == (0, [FIRST + 2])


def test_what_comes_while_the_model_is_lost_waits_for_its_successor(ring: Ring) -> None:
    taken = ring.process.progress
    ring.send("supervisor", Lost("model", RUNS["model"], 9))
    wait_for(lambda: ring.process.progress == taken + 1, "the loss is known")
    ring.submit(FIRST)
    ring.submit(FIRST + 1)
    ring.send("tokenizer", Abort([FIRST]))
    wait_for(lambda: ring.process.progress == taken + 4, "all of it has come")
    ring.send("supervisor", Lost("tokenizer", RUNS["tokenizer"], 10))
    assert ring.next("detokenizer", Held).rids == [FIRST, FIRST + 1]
    ring.inboxes["model"].close()
    ring.inboxes["model"] = Inbox(ring.context, ring.run_dir, "model", 9, RUNS)
    ring.send(9, RUNNER)
    assert [admit.rid for admit in ring.next("model", Plan).admit] == [FIRST + 1]


def test_a_lost_tokenizer_changes_nothing_and_all_are_told_who_is_left(ring: Ring) -> None:
    ring.run_one(FIRST)
    ring.submit(FIRST + 1)
    ring.next("model", Plan)
    ring.send("supervisor", Lost("tokenizer", RUNS["tokenizer"], 9))
    held = ring.next("detokenizer", Held)
    assert held == Held("tokenizer", RUNS["tokenizer"], 0, [FIRST, FIRST + 1])
    ring.submit(FIRST + 5)  # what the dead one had sent comes too late
    while ring.process.inbox.stale_frames == 0:
        ring.send(9, Abort([FIRST + 7]))  # the successor's frames are taken, and wake it
    ring.send("supervisor", Lost("tokenizer", 9, 10))
    assert ring.next("detokenizer", Held).rids == [FIRST, FIRST + 1]


def test_a_lost_detokenizer_takes_those_that_it_had_begun(ring: Ring) -> None:
    ring.run_one(FIRST)
    ring.submit(FIRST + 1)
    ring.next("model", Plan)
    ring.send("supervisor", Lost("detokenizer", RUNS["detokenizer"], 9))
    assert ring.next("gateway", Held) == Held("detokenizer", RUNS["detokenizer"], 0, [FIRST + 1])


def test_a_lost_gateway_takes_its_own_and_what_it_had_asked_for(ring: Ring) -> None:
    ring.run_one(FIRST)
    ring.send("supervisor", Lost("gateway", RUNS["gateway"], 9))
    [tail] = ring.next("detokenizer", Tokens).tails
    assert (tail.rid, tail.reason) == (FIRST, ERROR)
    ring.submit(FIRST + 1)  # was with the tokenizer
    ring.submit(first_rid(0, 9))
    while not (plan := ring.next("model", Plan)).admit:  # planned before the loss
        ring.send("model", Result(plan.step, plan.slots, Ids("i", [7]), None, [], [], 1, 2))
    assert [admit.rid for admit in plan.admit] == [first_rid(0, 9)]
