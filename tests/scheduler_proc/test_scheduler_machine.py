"""The scheduler under random submits, aborts, stops, failures, preemptions and step timing (hypothesis)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from msgpack import packb, unpackb

from deploy.kv_events_consumer import Blocks
from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import ABORT, ERROR, LENGTH, STOP, TIMEOUT, Prepared
from ipc.option_table import POLICIES
from ipc.options import complete
from scheduler_proc import figures
from scheduler_proc.grammars import Grammars
from scheduler_proc.kv_events import as_map, public_name
from scheduler_proc.scheduler import Scheduler
from tests.scheduler_proc.fake_runner import EOS, Client, FakeRunner, generate, submit


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens: blocks add up, everyone gets one end, and the tokens are those of the request alone."""

    rids = Bundle("rids")

    @initialize(
        num_blocks=st.integers(4, 24),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 20),
        depth=st.integers(1, 3),
        chunked=st.booleans(),
        caching=st.booleans(),
        policy=st.sampled_from(POLICIES),
        aging=st.sampled_from([0.0, 2e-8]),
        order=st.sampled_from(["mixed", "decode-first", "prefill-first", "separate"]),
        step_seqs=st.integers(0, 4),
        long=st.sampled_from([0, 3, 6]),
        partials=st.integers(0, 2),
        long_partials=st.integers(0, 2),
        delay=st.integers(0, 3),
    )
    def start(
        self, num_blocks: int, max_num_seqs: int, budget: int, depth: int, chunked: bool, caching: bool,
        policy: str = "fcfs", aging: float = 10.0, order: str = "mixed", step_seqs: int = 0, long: int = 0,
        partials: int = 0, long_partials: int = 0, delay: int = 0,
    ) -> None:  # fmt: skip
        ready = RunnerReady(num_blocks, 4, 64, max_num_seqs, Ids("i", [EOS]))
        options = complete(
            {
                "max_num_batched_tokens": budget, "enable_chunked_prefill": chunked, "enable_prefix_caching": caching,
                "pipeline_depth": depth, "max_num_queued_reqs": 64, "scheduling_policy": policy,
                "scheduling_aging": aging, "prefill_order": order, "max_num_step_seqs": step_seqs,
                "prefill_delay_steps": delay, "enable_log_requests": True,
            }
            | ({"long_prefill_token_threshold": long, "max_num_partial_prefills": partials} if chunked else {})
            | ({"max_long_partial_prefills": long_partials} if chunked and long else {})
        )  # fmt: skip
        self.scheduler = Scheduler(ready, section(SchedulerConfig, options))
        self.kv_events = self.scheduler.record_kv_events()
        self.known_blocks = Blocks()
        self.scheduler.grammars = Grammars(max_idle=1, first_number=1 << 40)
        self.runner = FakeRunner(ready)
        self.client = Client()
        self.depth = depth
        self.now = 0
        self.next_rid = 0
        self.expected: dict[int, list[int]] = {}
        self.stopped: set[int] = set()
        self.asked: dict[int, tuple[list[int], str]] = {}  # the prompts that are read, by their first choice

    @rule(
        target=rids,
        prefix=st.sampled_from([0, 4, 7, 8, 12]),
        rest=st.lists(st.integers(1, 3), min_size=1, max_size=12),
        max_tokens=st.integers(1, 14),
        n=st.integers(1, 3),
        ignore_eos=st.booleans(),
        salt=st.sampled_from(["", "other"]),
        priority=st.integers(-1, 1),
        tenant=st.sampled_from(["", "a", "b"]),
        timeout=st.sampled_from([0, 0, 0, 30]),
        grammar=st.sampled_from(["", "", "one", "two", "bad"]),
        wants=st.sampled_from(["", "", "logprobs", "only logprobs", "embedding"]),
    )
    def send(
        self, prefix: int, rest: list[int], max_tokens: int, n: int, ignore_eos: bool, salt: str,
        priority: int = 0, tenant: str = "", timeout: int = 0, grammar: str = "", wants: str = "",
    ) -> int:  # fmt: skip
        ignore_eos = ignore_eos and not grammar  # the end of a grammar is one
        alone = wants in ("only logprobs", "embedding")
        prompt = [5] * prefix + rest
        rid, self.next_rid = self.next_rid, self.next_rid + n
        for choice in range(n):
            self.expected[rid + choice] = [] if alone else generate(prompt, max_tokens, ignore_eos)
        if wants:
            self.asked[rid] = (prompt, wants)
        message = submit(
            rid, prompt, 0 if alone else max_tokens, n, salt, ignore_eos=ignore_eos, prompt_only=alone,
            prompt_logprobs=0 if "logprobs" in wants else -1, pooling="last" if wants == "embedding" else "",
        )  # fmt: skip
        message.priority, message.tenant = priority, tenant
        message.deadline_ns = self.now + timeout if timeout else 0
        message.grammar = grammar
        self.scheduler.submit(message, self.now)
        return rid

    @rule()
    def expire(self) -> None:
        self.scheduler.expire(self.now)

    @rule(rid=rids, choice=st.integers(0, 2))
    def abort(self, rid: int, choice: int) -> None:
        self.scheduler.abort([rid + choice], self.now)

    @rule(rid=rids, choice=st.integers(0, 2))
    def stop_hit(self, rid: int, choice: int) -> None:
        if rid + choice in self.client.output and rid + choice not in self.client.reason:
            self.stopped.add(rid + choice)
        self.scheduler.stop_hit([rid + choice], self.now)

    @rule()
    def compile(self) -> None:
        """The runner gets to the grammar that has waited longest; it cannot compile a bad one."""
        outgoing = self.scheduler.grammars.outgoing
        if outgoing:
            prepare = outgoing.pop(0)
            self.runner.prepare(prepare)
            error = "it is bad" if prepare.text == "bad" else ""
            self.scheduler.prepared(Prepared(prepare.grammar, error), self.now)

    @rule()
    def plan(self) -> None:
        plan = self.scheduler.plan(self.now)
        if plan is not None:
            assert sum(plan.num_tokens) > 0
            self.runner.plans.append(plan)
        assert len(self.runner.plans) <= self.depth

    @rule()
    def run_step(self) -> None:
        if self.runner.plans:
            self.scheduler.result(self.runner.execute(), self.now)

    @rule(steps=st.integers(1, 12))
    def run_many(self, steps: int) -> None:
        for _ in range(steps):
            self.plan()
            self.run_step()

    @rule(index=st.integers(0, 4))
    def fail_one(self, index: int) -> None:
        if self.runner.plans:
            fail = {index} & set(range(len(self.runner.plans[0].slots)))
            self.scheduler.result(self.runner.execute(fail), self.now)

    @rule(most_tokens=st.integers(0, 6))
    def run_out_of_memory(self, most_tokens: int) -> None:
        if self.runner.plans:
            self.scheduler.result(self.runner.execute(most_tokens=most_tokens), self.now)

    @rule()
    def flush_cache(self) -> None:
        self.scheduler.flush_cache()

    @invariant()
    def blocks_add_up(self) -> None:
        if hasattr(self, "scheduler"):
            self.now += 1
            self.client.take(self.scheduler.outgoing)
            self.scheduler.residents.pool.check()

    @invariant()
    def the_events_tell_which_blocks_are_known(self) -> None:
        if hasattr(self, "scheduler"):
            for event in self.kv_events:
                self.known_blocks.apply(unpackb(packb(as_map(event))))
            self.kv_events.clear()
            pool = self.scheduler.residents.pool
            assert set(self.known_blocks.by_name) == {public_name(block_hash) for block_hash in pool._by_hash}

    @invariant()
    def tokens_are_right(self) -> None:
        if hasattr(self, "scheduler"):
            for rid, output in self.client.output.items():
                assert output == self.expected[rid][: len(output)], f"rid {rid}"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        while self.scheduler.grammars.outgoing:
            self.compile()
        for _ in range(5000):
            self.plan()
            if not self.runner.plans:
                break
            self.run_step()
        self.client.take(self.scheduler.outgoing)
        self.scheduler.residents.pool.check()
        assert self.scheduler.residents.pool.num_in_use == 0
        stats = figures.stats(self.scheduler)
        assert (stats["waiting"], stats["running"], stats["sequences"], stats["steps_in_flight"]) == (0, 0, 0, 0)
        assert stats["preparing"] == 0
        assert self.scheduler.grammars.num_in_use == 0
        assert set(self.client.reason) == set(self.expected)
        for rid, reason in self.client.reason.items():
            if rid in self.stopped:
                assert reason == STOP
            elif reason in (STOP, LENGTH):
                assert self.client.output[rid] == self.expected[rid]
                assert reason == LENGTH or self.expected[rid][-1] == EOS, "only an end of sequence stops"
                prompt, wants = self.asked.get(rid, ([], ""))
                assert self.client.read.get(rid, []) == (prompt if "logprobs" in wants else [])
                assert self.client.embedding.get(rid, []) == ([sum(prompt)] if wants == "embedding" else [])
            else:
                assert reason in (ABORT, ERROR, TIMEOUT)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("steps_run_out", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_random_events_in_one_life(seed: int, steps_run_out: bool) -> None:
    """The same rules in one long run, under memory so short that it preempts all the time."""
    rng = random.Random(seed)
    machine = SchedulerMachine()
    machine.start(num_blocks=14, max_num_seqs=5, budget=12, depth=2, chunked=True, caching=True)
    rids: list[int] = []

    def send() -> None:
        grammar = rng.choice(["", "", "one", "two", "bad"])
        rest = [rng.randint(1, 3) for _ in range(rng.randint(1, 12))]
        prefix, salt = rng.choice([0, 4, 8, 12]), rng.choice(["", "other"])
        rid: Any = machine.send(
            prefix,
            rest,
            rng.randint(1, 14),
            rng.randint(1, 3),
            rng.random() < 0.5,
            salt,
            grammar=grammar,
            wants=rng.choice(["", "", "logprobs", "logprobs", "embedding"]),
        )
        rids.append(rid)

    def some_rid() -> int:
        return rng.choice(rids) if rids else 0

    events = [
        (8, send),
        (4, machine.compile),
        (12, machine.plan),
        (12, machine.run_step),
        (3, lambda: machine.abort(some_rid(), rng.randint(0, 2))),
        (2, lambda: machine.stop_hit(some_rid(), rng.randint(0, 2))),
        (1, lambda: machine.fail_one(rng.randint(0, 4))),
        (2 * steps_run_out, lambda: machine.run_out_of_memory(rng.randint(0, 6))),
    ]
    weights = [weight for weight, _ in events]
    for _ in range(1000):
        rng.choices(events, weights)[0][1]()
        machine.blocks_add_up()
        machine.the_events_tell_which_blocks_are_known()
        machine.tokens_are_right()
    assert machine.scheduler.planner.preemptions > (0 if steps_run_out else 10)
    machine.teardown()
