"""Steps that find no memory: smaller ones are tried, and only what no step can do smaller ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import ERROR, LENGTH
from ipc.options import complete
from scheduler_proc.scheduler import Scheduler
from scheduler_proc.token_budget import PATIENCE, TokenBudget
from tests.scheduler_proc.fake_runner import EOS, Client, FakeRunner, generate, submit

PROMPTS = [[1 + index % 3] * (5 + 3 * index) for index in range(6)]
MAX_TOKENS = 9


def serve(most_tokens: int, depth: int = 2, **options: object) -> tuple[Client, Scheduler]:
    """Every prompt through a runner that has no memory for steps of more than `most_tokens`."""
    ready = RunnerReady(64, 4, 64, 8, Ids("i", [EOS]))
    values = complete({"max_num_batched_tokens": 64, "pipeline_depth": depth, **options})
    scheduler = Scheduler(ready, section(SchedulerConfig, values))
    runner, client = FakeRunner(ready), Client()
    for rid, prompt in enumerate(PROMPTS):
        scheduler.submit(submit(rid, prompt, MAX_TOKENS, ignore_eos=True), 0)
    for _ in range(2000):
        while (plan := scheduler.plan(0)) is not None:
            runner.plans.append(plan)
        if not runner.plans:
            break
        scheduler.result(runner.execute(most_tokens=most_tokens), 0)
        client.take(scheduler.outgoing)
        scheduler.residents.pool.check()
    assert scheduler.residents.pool.num_in_use == 0
    assert set(client.reason) == set(range(len(PROMPTS)))
    return client, scheduler


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("most_tokens", [1, 2, 5, 23])
def test_smaller_steps_give_the_same_tokens(most_tokens: int, caching: bool, depth: int) -> None:
    client, scheduler = serve(most_tokens, depth, enable_prefix_caching=caching)
    for rid, prompt in enumerate(PROMPTS):
        assert client.reason[rid] == LENGTH
        assert client.output[rid] == generate(prompt, MAX_TOKENS, ignore_eos=True)
    assert scheduler.planner.preemptions > 0


def test_what_cannot_be_made_smaller_ends_and_nothing_else_does() -> None:
    client, _ = serve(14, enable_chunked_prefill=False, enable_prefix_caching=False)
    for rid, prompt in enumerate(PROMPTS):
        if len(prompt) > 14:
            assert client.reason[rid] == ERROR
        elif len(prompt) + MAX_TOKENS <= 14:  # else it may be preempted, and be too long when it comes back
            assert client.output[rid] == generate(prompt, MAX_TOKENS, ignore_eos=True)


@pytest.mark.parametrize("wants", ["logprobs", "embedding"])
def test_what_a_step_behind_it_read_of_a_prompt_does_not_count(wants: str) -> None:
    """The second chunk of a prompt is at work already, on what the first one should have left there."""
    ready = RunnerReady(64, 4, 64, 8, Ids("i", [EOS]))
    scheduler = Scheduler(ready, section(SchedulerConfig, complete({"max_num_batched_tokens": 8})))
    runner, client, prompt = FakeRunner(ready), Client(), list(range(1, 16))
    scheduler.submit(
        submit(
            0, prompt, 0, prompt_only=True, prompt_logprobs=0 if wants == "logprobs" else -1,
            pooling="last" if wants == "embedding" else "",
        ), 0,
    )  # fmt: skip
    most_tokens = 7
    while not client.reason:
        while (plan := scheduler.plan(0)) is not None:
            runner.plans.append(plan)
        scheduler.result(runner.execute(most_tokens=most_tokens), 0)
        client.take(scheduler.outgoing)
    assert client.reason == {0: LENGTH}
    assert client.read.get(0, []) == (prompt if wants == "logprobs" else [])
    assert client.embedding.get(0, []) == ([sum(prompt)] if wants == "embedding" else [])


def test_who_shares_a_block_that_a_later_chunk_filled_computes_again() -> None:
    """The first chunk, which finds no memory, fills no block; the second one does, and another prompt has taken it."""
    ready = RunnerReady(4, 4, 64, 2, Ids("i", [EOS]))
    values = complete({"max_num_batched_tokens": 2, "pipeline_depth": 3})
    scheduler = Scheduler(ready, section(SchedulerConfig, values))
    runner, client, prompt = FakeRunner(ready), Client(), [5, 5, 5, 5, 1]
    for rid in (0, 1):
        scheduler.submit(submit(rid, prompt, 1), 0)
    most_tokens = 1
    while len(client.reason) < 2:
        while (plan := scheduler.plan(0)) is not None:
            runner.plans.append(plan)
        scheduler.result(runner.execute(most_tokens=most_tokens), 0)
        most_tokens = 2
        client.take(scheduler.outgoing)
    assert client.output == {rid: generate(prompt, 1, ignore_eos=False) for rid in (0, 1)}


def test_a_part_of_one_token_may_be_behind_a_block_that_is_filled_later() -> None:
    """Computed again, a sequence gets one token of a step that finds no memory, then more, which another one takes."""
    ready = RunnerReady(32, 4, 64, 4, Ids("i", [EOS]))
    values = complete({"max_num_batched_tokens": 4, "pipeline_depth": 3})
    scheduler = Scheduler(ready, section(SchedulerConfig, values))
    runner, client = FakeRunner(ready), Client()
    first = [5] * 4
    conversation = first + generate(first, 4, ignore_eos=True) + [1]
    requests = [([1], 8), (first, 8), (conversation, 1), (conversation, 1)]
    sent_before_step = [0, 0, 3, 4]
    for index in range(50):
        for rid, (prompt, max_tokens) in enumerate(requests):
            if sent_before_step[rid] == index:
                scheduler.submit(submit(rid, prompt, max_tokens, ignore_eos=True), 0)
        while (plan := scheduler.plan(0)) is not None:
            runner.plans.append(plan)
        if runner.plans:
            scheduler.result(runner.execute(most_tokens=1 if index in (5, 10) else None), 0)
            client.take(scheduler.outgoing)
    for rid, (prompt, max_tokens) in enumerate(requests):
        assert client.output[rid] == generate(prompt, max_tokens, ignore_eos=True)


def test_with_no_memory_at_all_everything_ends() -> None:
    client, scheduler = serve(0)
    assert set(client.reason.values()) == {ERROR}
    assert scheduler.planner.budget.tokens == 1


def test_the_budget_comes_back() -> None:
    budget = TokenBudget(100)
    budget.ran_out(90)
    budget.ran_out(200)  # a step that was on its way
    assert budget.tokens == 45
    for _ in range(PATIENCE):
        budget.went_well()
    assert budget.tokens == 90
    for _ in range(5 * PATIENCE):
        budget.went_well()
    assert budget.tokens == 100


def test_the_message_fits_the_codec() -> None:
    from ipc.codec import decode, encode
    from ipc.messages import Result

    result = Result(3, [], Ids("i"), None, [], [], 1, 2)
    assert decode(encode(replace(result, out_of_memory=True), 1))[1].out_of_memory
