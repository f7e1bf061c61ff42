"""What one step holds under each rule: order of the phases, chunks, partial prefills, turns, lanes, deadlines."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import ABORT, LENGTH, STOP, TIMEOUT, Plan, Result, Sampling, Submit, Tail
from ipc.options import OptionError, complete
from scheduler_proc import figures
from scheduler_proc.life_cycle import ENDS, TRANSITIONS, Event, LifeCycleError, State, after
from scheduler_proc.scheduler import Scheduler
from tests.scheduler_proc.fake_runner import submit

MS = 1_000_000


class Bench:
    """A scheduler, and a runner that answers every plan with token 7 for whoever samples."""

    def __init__(self, max_num_seqs: int = 8, lanes: int = 1, num_blocks: int = 64, **options: Any) -> None:
        ready = RunnerReady(num_blocks, 4, 200, max_num_seqs, Ids("i", [0]), lanes)
        options = {"max_num_batched_tokens": 32, "enable_log_requests": True} | options
        self.scheduler = Scheduler(ready, section(SchedulerConfig, complete(options)))
        self.now = 0
        self.plans: list[Plan] = []
        self.rid_of: dict[int, int] = {}  # slot -> rid
        self.tails: dict[int, Tail] = {}

    def send(self, rid: int, length: int, max_tokens: int = 50, first: int = 0, **fields: Any) -> None:
        message: Submit = submit(rid, [first or 1000 + rid] * length, max_tokens)
        for name, value in fields.items():
            setattr(message, name, value)
        self.scheduler.submit(message, self.now)

    def plan(self) -> dict[int, int] | None:
        """The tokens of each rid in the next step."""
        plan = self.scheduler.plan(self.now)
        if plan is None:
            return None
        self.plans.append(plan)
        for admit in plan.admit:
            self.rid_of[admit.slot] = admit.rid
        return {self.rid_of[slot]: count for slot, count in zip(plan.slots, plan.num_tokens, strict=True)}

    def answer(self, index: int = 0) -> None:
        """The result of a plan in flight."""
        plan = self.plans.pop(index)
        step = self.scheduler.planner.in_flight[plan.step]
        slot_of = dict(zip(step.members, step.slots, strict=True))
        slots = [slot_of[sequence] for sequence in step.samplers]
        self.now += MS
        tokens = Ids("i", [7]) * len(slots)
        self.scheduler.result(Result(plan.step, slots, tokens, None, [], [], self.now - MS, self.now), self.now)
        self.take()

    def take(self) -> None:
        for message in self.scheduler.outgoing:
            self.tails.update({tail.rid: tail for tail in message.tails})
        self.scheduler.outgoing.clear()

    def step(self) -> dict[int, int]:
        """Plan a step and answer it."""
        planned = self.plan()
        assert planned is not None
        self.answer()
        return planned


def test_mixed_goes_by_importance_alone() -> None:
    bench = Bench()
    bench.send(0, 60)
    bench.send(1, 5)
    assert bench.step() == {0: 32}
    assert bench.step() == {0: 28, 1: 4}
    assert bench.step() == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("mixed", {0: 1, 1: 31}),
        ("decode-first", {0: 1, 1: 31}),
        ("prefill-first", {1: 32}),
        ("separate", {1: 32}),
    ],
)
def test_the_order_of_phases_says_who_takes_the_budget(order: str, expected: dict[int, int]) -> None:
    bench = Bench(prefill_order=order)
    bench.send(0, 10)
    bench.step()
    bench.send(1, 90)
    assert bench.step() == expected
    if order == "prefill-first":
        assert bench.step() == {1: 32}
        assert bench.step() == {1: 26, 0: 1}
    if order == "separate":
        assert [bench.step() for _ in range(3)] == [{1: 32}, {1: 26}, {0: 1, 1: 1}]


def test_decode_first_serves_a_less_important_decode_before_a_prefill() -> None:
    bench = Bench(prefill_order="decode-first", scheduling_policy="priority", max_num_seqs=2)
    bench.send(0, 4, priority=5)
    bench.step()
    bench.send(1, 90, priority=1)
    assert bench.step() == {0: 1, 1: 31}
    mixed = Bench(prefill_order="mixed", scheduling_policy="priority", max_num_seqs=2)
    mixed.send(0, 4, priority=5)
    mixed.step()
    mixed.send(1, 90, priority=1)
    mixed.step()
    assert mixed.step() == {1: 32}, "the important prefill takes all"


def test_decode_first_takes_a_prompt_in_the_cache_for_a_decode() -> None:
    bench = Bench(prefill_order="decode-first", max_num_step_seqs=1)
    bench.send(0, 9, max_tokens=1, first=5)
    assert bench.step() == {0: 9}
    bench.send(1, 4)
    assert bench.step() == {1: 4}
    bench.send(2, 9, first=5)
    bench.send(3, 9)
    bench.send(4, 9, first=5)
    assert bench.step() == {2: 1}, "8 of its 9 tokens are cached"
    assert [bench.step() for _ in range(3)] == [{1: 1}, {2: 1}, {1: 1}], "behind a cold prompt nobody is looked at"


def test_a_long_prefill_gets_the_threshold_and_short_ones_pass_it() -> None:
    bench = Bench(long_prefill_token_threshold=10, max_long_partial_prefills=1)
    bench.send(0, 35)
    bench.send(1, 35)
    bench.send(2, 6)
    assert bench.step() == {0: 10, 2: 6}, "one long prefill at a time, and at most 10 tokens of it"
    assert bench.step() == {0: 10, 2: 1}
    assert bench.step() == {0: 10, 2: 1}
    assert bench.step() == {0: 5, 2: 1, 1: 10}, "the end of a prefill does not count as a partial one"


def test_partial_prefills_are_those_that_do_not_end_with_the_step() -> None:
    bench = Bench(max_num_partial_prefills=1, long_prefill_token_threshold=8)
    bench.send(0, 20)
    bench.send(1, 20)
    bench.send(2, 8)
    bench.send(3, 3)
    assert bench.step() == {0: 8, 2: 8, 3: 3}


def test_a_step_of_fewer_sequences_takes_turns() -> None:
    bench = Bench(max_num_step_seqs=2, pipeline_depth=1)
    for rid in range(5):
        bench.send(rid, 4)
    assert [bench.step() for _ in range(3)] == [{0: 4, 1: 4}, {2: 4, 3: 4}, {4: 4, 0: 1}], "who is new comes first"
    served = [sorted(bench.step()) for _ in range(10)]
    assert all(len(rids) == 2 for rids in served)
    counts = [sum(rid in rids for rids in served) for rid in range(5)]
    assert counts == [4] * 5, "everybody decodes equally often"


def test_equal_prompts_that_arrive_together_wait_for_the_first_one() -> None:
    bench = Bench()
    for rid in range(3):
        bench.send(rid, 16, first=5)
    bench.send(3, 4)
    assert bench.plan() == {0: 16, 3: 4}
    assert bench.plan() == {0: 1, 3: 1, 1: 4, 2: 4}, "the others find 12 tokens; the last block is never taken whole"
    bench.answer()
    bench.answer()
    stats = figures.stats(bench.scheduler)
    assert (stats["prefix_requests_hit"], stats["prefix_requests_missed"], stats["prefix_hits"]) == (2, 2, 24)


def test_a_small_common_beginning_is_not_worth_waiting_for() -> None:
    bench = Bench()
    bench.scheduler.submit(submit(0, [5] * 4 + [1] * 10, 5), 0)
    bench.scheduler.submit(submit(1, [5] * 4 + [2] * 10, 5), 0)
    assert bench.plan() == {0: 14, 1: 14}


def test_arrivals_wait_for_company_while_others_decode() -> None:
    bench = Bench(prefill_delay_steps=3, pipeline_depth=1)
    bench.send(0, 4)
    assert bench.step() == {0: 4}, "nobody decodes: no reason to wait"
    bench.send(1, 4)
    assert bench.step() == {0: 1}
    bench.send(2, 4)
    assert bench.step() == {0: 1}
    assert bench.step() == {0: 1}
    assert bench.step() == {0: 1, 1: 4, 2: 4}


def test_lanes_work_on_different_sequences() -> None:
    bench = Bench(lanes=3, max_num_step_seqs=2)
    for rid in range(6):
        bench.send(rid, 4)
    assert [bench.plan() for _ in range(4)] == [{0: 4, 1: 4}, {2: 4, 3: 4}, {4: 4, 5: 4}, None]
    bench.answer(1)
    assert bench.plan() == {2: 1, 3: 1}, "only those whose result is there"
    bench.answer(1)
    bench.answer(0)
    assert sorted(bench.plan() or {}) == [0, 1]
    assert sorted(bench.plan() or {}) == [4, 5]


def test_a_deadline_ends_a_sequence_wherever_it_is() -> None:
    bench = Bench(max_num_seqs=1, pipeline_depth=1)
    bench.send(0, 4, deadline_ns=20 * MS, received_ns=2 * MS)
    bench.send(1, 4, deadline_ns=20 * MS, received_ns=5 * MS)
    bench.send(2, 4)
    bench.step()
    assert bench.scheduler.next_deadline_ns == 20 * MS
    bench.scheduler.expire(19 * MS)
    bench.take()
    assert not bench.tails
    bench.plan()
    bench.scheduler.expire(20 * MS)
    bench.take()
    assert [bench.tails[rid].reason for rid in (0, 1)] == [TIMEOUT] * 2
    refusal = bench.tails[1].refusal
    assert refusal is not None
    assert (refusal.status, refusal.kind) == (504, "timeout_error")
    assert "15 ms" in refusal.message and "waiting" in refusal.message  # noqa: PT018
    assert bench.scheduler.next_deadline_ns is None
    bench.answer()
    assert bench.step() == {2: 4}, "the slot is free again"


def test_a_deadline_that_has_passed_on_the_way_here_ends_a_request_at_once() -> None:
    bench = Bench()
    bench.now = 50 * MS
    bench.send(0, 4, deadline_ns=20 * MS)
    bench.scheduler.expire(bench.now)
    bench.take()
    assert bench.tails[0].reason == TIMEOUT
    assert bench.plan() is None


def test_a_stop_hit_gets_its_tail_once() -> None:
    bench = Bench()
    bench.send(0, 4)
    bench.step()
    bench.scheduler.stop_hit([0, 99], bench.now)
    bench.take()
    assert bench.tails[0].reason == STOP
    bench.scheduler.stop_hit([0], bench.now)
    assert not bench.scheduler.outgoing


def test_a_tail_tells_in_which_steps_a_sequence_was() -> None:
    bench = Bench(pipeline_depth=1)
    bench.send(0, 4, max_tokens=3)
    bench.step()
    bench.send(1, 40, max_tokens=2)
    for _ in range(3):
        bench.step()
    alone, late = bench.tails[0], bench.tails[1]
    assert alone.reason == late.reason == LENGTH
    assert alone.first_step == 0
    assert alone.batch_size == pytest.approx(5 / 3)
    assert alone.execution_ns == 3 * MS, "three steps of 1 ms"
    assert (late.first_step, late.execution_ns) == (2, 3 * MS)
    assert late.batch_size == pytest.approx(5 / 3)
    assert (alone.started_ns, late.started_ns) == (0, MS)


def test_a_request_can_be_inspected_from_its_first_to_its_last_moment_and_after() -> None:
    bench = Bench(max_num_seqs=1, pipeline_depth=1)
    bench.send(0, 4, max_tokens=2)
    bench.send(1, 4, max_tokens=2, priority=3)
    bench.send(2, 4, max_tokens=2)
    [waiting] = figures.inspect(bench.scheduler, "request-2", bench.now)
    assert (waiting["state"], waiting["queue_position"], waiting["blocks"], waiting["slot"]) == ("waiting", 2, 0, None)
    bench.plan()
    [running] = figures.inspect(bench.scheduler, "request-0", bench.now)
    assert (running["state"], running["in_step"], running["computed_tokens"]) == ("prefill", True, 4)
    assert running["blocks"] == 1
    bench.answer()
    [decoding] = figures.inspect(bench.scheduler, "request-0", bench.now)
    assert (decoding["state"], decoding["in_step"], decoding["output_tokens"]) == ("decode", False, 1)
    bench.step()
    [over] = figures.inspect(bench.scheduler, "request-0", bench.now)
    assert (over["state"], over["finish_reason"], over["output_tokens"]) == ("finished", "length", 2)
    bench.scheduler.abort([1], bench.now)
    [gone] = figures.inspect(bench.scheduler, "request-1", bench.now)
    assert (gone["state"], gone["finish_reason"], gone["priority"]) == ("canceled", "abort", 3)
    assert figures.inspect(bench.scheduler, "nobody", bench.now) == []


def test_every_transition_is_noted_when_asked_for() -> None:
    bench = Bench(max_num_batched_tokens=8)
    bench.send(0, 12, max_tokens=2)
    while bench.plan() is not None:
        bench.answer()
    events = [entry.event for entry in bench.scheduler.log.entries]
    assert events == [
        Event.QUEUED, Event.ADMITTED, Event.PREFILL_CHUNK, Event.PREFILL_FINISHED, Event.FINISHED,
    ]  # fmt: skip
    assert str(bench.scheduler.log.entries[1]) == "request-0[0]: waiting --admitted--> prefill"
    talkative = Bench()
    talkative.scheduler.log.every_token = True
    talkative.send(0, 4, max_tokens=3)
    while talkative.plan() is not None:
        talkative.answer()
    assert [entry.event for entry in talkative.scheduler.log.entries][2:] == [
        Event.PREFILL_FINISHED, Event.DECODED, Event.DECODED, Event.FINISHED,
    ]  # fmt: skip
    silent = Bench(enable_log_requests=False)
    silent.send(0, 4)
    silent.step()
    assert not silent.scheduler.log.entries


def test_no_event_comes_behind_the_end() -> None:
    assert not any(state in ENDS for state, _ in TRANSITIONS)
    for state in ENDS:
        with pytest.raises(LifeCycleError):
            after(state, Event.CANCELED)
    with pytest.raises(LifeCycleError, match="admitted cannot happen to a sequence that is decode"):
        after(State.DECODE, Event.ADMITTED)


def test_an_aborted_leader_hands_over_to_its_siblings() -> None:
    bench = Bench()
    message = submit(0, [3] * 8, 4, n=3)
    message.sampling = Sampling(max_tokens=4, temperature=1.0)
    bench.scheduler.submit(message, 0)
    bench.scheduler.abort([0], 0)
    bench.take()
    assert bench.tails[0].reason == ABORT
    assert bench.plan() == {1: 8}
    assert bench.plan() == {1: 1, 2: 4}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"enable_chunked_prefill": False, "max_num_partial_prefills": 1}, "needs --enable-chunked-prefill"),
        ({"max_long_partial_prefills": 1}, "needs --long-prefill-token-threshold"),
        ({"mock_lanes": 2}, "only for --model mock"),
        ({"scheduling_policy": "lifo"}, "must be one of fcfs"),
    ],
)
def test_an_option_that_another_one_would_silence_is_an_error(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        complete(options)
