"""The scheduler and a runner in one process, without sockets: for tests of what the two compute together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import Logprobs, Output, Prepared, Refusal, Sampling, Submit
from ipc.options import complete
from model_proc.runner import Runner
from scheduler_proc.scheduler import Scheduler


@dataclass
class Outcome:
    """What came out for one sequence."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    embedding: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    reason: int = 0
    refusal: Refusal | None = None


def generate(
    runner: Runner, ready: RunnerReady, prompts: list[list[int]], sampling: list[Sampling], **options: Any
) -> tuple[list[Outcome], Scheduler]:
    """Run all prompts to their ends under a scheduler of the given options.

    `num_blocks` and `max_num_seqs` may be smaller than what the runner offers; `grammars` has one a prompt, or "".
    """
    grammars = options.pop("grammars", [""] * len(prompts))
    num_blocks = options.pop("num_blocks", ready.num_blocks)
    max_num_seqs = options.pop("max_num_seqs", ready.max_num_seqs)
    ready = replace(ready, num_blocks=num_blocks, max_num_seqs=max_num_seqs)
    scheduler = Scheduler(ready, section(SchedulerConfig, complete(options)))
    outcomes = [Outcome() for _ in prompts]
    for rid, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
        submit = Submit(rid, "", 1, Ids("i", prompt), params, Output(), 0, "", 0, 0, None, grammar=grammars[rid])
        scheduler.submit(submit, 0)
    for prepare in scheduler.grammars.outgoing:
        answers: SimpleQueue[Prepared] = SimpleQueue()
        runner.prepare(prepare, answers.put)
        scheduler.prepared(answers.get(), 0)
    while True:
        while (plan := scheduler.plan(0)) is not None:
            runner.launch(plan)
        _take(scheduler, outcomes)
        if not runner.in_flight:
            return outcomes, scheduler
        scheduler.result(runner.collect(), 0)


def _take(scheduler: Scheduler, outcomes: list[Outcome]) -> None:
    for message in scheduler.outgoing:
        for head in message.heads:
            outcomes[head.rid].cached_tokens = head.cached_tokens
        for reading in message.readings:
            outcome = outcomes[reading.rid]
            assert reading.start == len(outcome.prompt_logprobs) or not reading.logprobs.counts
            outcome.prompt_logprobs += _rows(reading.logprobs)
            outcome.embedding += reading.embedding
        for rid, token in zip(message.rids, message.token_ids, strict=True):
            outcomes[rid].token_ids.append(token)
        if message.logprobs is not None:
            for rid, row in zip(message.rids, _rows(message.logprobs), strict=True):
                outcomes[rid].logprobs.append(row)
        for tail in message.tails:
            outcomes[tail.rid].reason = tail.reason
            outcomes[tail.rid].refusal = tail.refusal
    scheduler.outgoing.clear()


def _rows(logprobs: Logprobs) -> list[list[tuple[int, float]]]:
    entries = iter(zip(logprobs.ids, logprobs.values, strict=True))
    return [[next(entries) for _ in range(count)] for count in logprobs.counts]
