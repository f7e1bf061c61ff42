"""Deadlines are kept, and cost nothing once their sequence is over."""

from __future__ import annotations

from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import TIMEOUT
from ipc.options import complete
from scheduler_proc.deadlines import SPARE
from scheduler_proc.scheduler import Scheduler
from tests.scheduler_proc.fake_runner import submit

RUNNER = RunnerReady(num_blocks=64, block_size=16, max_model_len=160, max_num_seqs=4, eos_token_ids=Ids("i", [0]))
WEEK_NS = 7 * 24 * 3600 * 10**9


def make_scheduler() -> Scheduler:
    return Scheduler(RUNNER, section(SchedulerConfig, complete({})))


def send(scheduler: Scheduler, rid: int, deadline_ns: int) -> None:
    message = submit(rid, [1, 2, 3], max_tokens=5)
    message.deadline_ns = deadline_ns
    scheduler.submit(message, now=10)


def test_what_has_ended_long_before_its_deadline_is_forgotten() -> None:
    """Else an hour of traffic with a long --request-timeout would be kept."""
    scheduler = make_scheduler()
    for rid in range(0, 20_000, 4):
        send(scheduler, rid, WEEK_NS)
        scheduler.abort([rid], now=20)
    assert len(scheduler._deadlines) <= SPARE + 2


def test_those_that_live_keep_theirs() -> None:
    scheduler = make_scheduler()
    for rid in range(0, 40, 4):
        send(scheduler, rid, WEEK_NS - rid)
    for rid in range(1000, 1000 + 8 * SPARE, 4):
        send(scheduler, rid, WEEK_NS)
        scheduler.abort([rid], now=20)
    scheduler.outgoing.clear()
    assert scheduler.next_deadline_ns == WEEK_NS - 36
    scheduler.expire(WEEK_NS)
    ended = [tail for tokens in scheduler.outgoing for tail in tokens.tails]
    assert [tail.rid for tail in ended] == list(range(36, -1, -4))
    assert {tail.reason for tail in ended} == {TIMEOUT}
    assert scheduler.next_deadline_ns is None
