"""The scheduler: one token budget a step, decodes and prefill chunks side by side, two steps planned ahead.

A step is formed when the runner has room for one, never on a timer. While a step is in flight, the next one is planned
on the assumption that every running sequence goes on; what a sequence turns out not to have wanted is discarded when
the result arrives. The runner executes plans in order on one stream, so whatever a plan frees may be used again by the
next one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Any

from ipc.codec import Ids
from ipc.config import SchedulerConfig
from ipc.messages import (
    ABORT,
    ERROR,
    LENGTH,
    STOP,
    Admit,
    Plan,
    Refusal,
    Result,
    RunnerReady,
    Submit,
    Tokens,
)
from scheduler_proc.blocks import BlockPool, extend_hashes
from scheduler_proc.queue import WaitingQueue, fcfs
from scheduler_proc.recovery import built_on
from scheduler_proc.rows import select_rows
from scheduler_proc.sequence import Sequence, State


@dataclass(slots=True)
class Step:
    """A step while it is planned, and then while it is in flight: the plan, and whose rows those are."""

    plan: Plan
    members: list[Sequence] = field(default_factory=list)  # whose slots plan.slots are
    sampling: list[Sequence] = field(default_factory=list)  # those of them that sample a token, in the same order
    prefills: list[Sequence] = field(default_factory=list)  # those of them that compute known tokens
    filled: dict[int, list[int]] = field(default_factory=dict)  # slot -> blocks that its prefill fills


class Scheduler:
    """All sequences from their Submit to their Tail. The caller passes messages and the time in, and takes out plans
    (`plan`) and what goes to the detokenizer (`outgoing`, which the caller empties).
    """

    def __init__(self, runner: RunnerReady, config: SchedulerConfig) -> None:
        self.config = config
        self.runner = runner
        self.pool = BlockPool(runner.num_blocks, runner.block_size, config.enable_prefix_caching)
        self.waiting = WaitingQueue(fcfs)
        self.running: list[Sequence] = []  # most important first
        self.outgoing: list[Tokens] = []
        self.preemptions = 0
        self.prefix_queries = 0  # prompt tokens looked up in the cache
        self.prefix_hits = 0  # and found there
        self._key = fcfs
        self._sequences: dict[int, Sequence] = {}
        self._eos = frozenset(runner.eos_token_ids)
        self._free_slots = list(range(runner.max_num_seqs - 1, -1, -1))
        self._drops: list[int] = []
        self._in_flight: dict[int, Step] = {}
        self._next_step = 0
        self._next_order = 0
        self._tokens = _no_tokens()

    # -- what comes in -------------------------------------------------------------------------------------------------

    def submit(self, submit: Submit, now: int) -> None:
        """Queue a request's sequences, or end them at once with the reason why not."""
        refusal = submit.refusal or self._refusal(submit)
        leader: Sequence | None = None
        for choice in range(submit.n):
            sequence = Sequence(submit, choice, self._next_order, now)
            self._next_order += 1
            if refusal is not None:
                self._open(sequence)
                self._tokens.tails.append(sequence.tail(ERROR, now, refusal=refusal))
                continue
            self._prepare(sequence)
            if leader is None:
                leader = sequence
                self.waiting.push(sequence)
            else:
                sequence.state = State.HELD
                leader.siblings.append(sequence)
        self._flush(now)

    def abort(self, rids: list[int], now: int) -> None:
        """End sequences that nobody wants any more. Unknown rids and a second abort are no-ops."""
        for rid in rids:
            sequence = self._sequences.get(rid)
            if sequence is not None:
                self._finish(sequence, ABORT, now)
        self._flush(now)

    def stop_hit(self, rids: list[int], now: int) -> None:
        """End sequences whose text met a stop string. The detokenizer has told the client already."""
        for rid in rids:
            sequence = self._sequences.get(rid)
            if sequence is not None:
                self._remove(sequence)

    def result(self, result: Result, now: int) -> None:
        """Take in what a step sampled: append, find the ends, pass the tokens on."""
        step = self._in_flight.pop(result.step, None)
        if step is None:
            return
        sampled = self._fail(step, result, now) if result.failed else step.sampling
        self._append(sampled, result, now)
        for sequence in step.members:
            if sequence.state is State.PREEMPTED and sequence.last_step == result.step:
                self._requeue(sequence)
        self._flush(now)

    # -- what goes out -------------------------------------------------------------------------------------------------

    def plan(self, now: int) -> Plan | None:
        """The next step, or None when the pipeline is full or there is nothing to do."""
        if len(self._in_flight) >= self.config.pipeline_depth:
            return None
        step = Step(Plan(self._next_step, [], [], [], [], [], []))
        preemptions = self.preemptions
        budget = self._plan_running(step)
        if self.preemptions == preemptions:  # else memory is short: admit nobody
            self._plan_waiting(step, budget, now)
        if not step.members:
            return None
        step.plan.drop, self._drops = self._drops, []
        self._next_step += 1
        self._in_flight[step.plan.step] = step
        self._register_prefills(step)
        return step.plan

    def stats(self) -> dict[str, Any]:
        """The figures of this moment, as plain data."""
        pool = self.pool
        return {
            "waiting": len(self.waiting),
            "running": len(self.running),
            "sequences": len(self._sequences),
            "steps_in_flight": len(self._in_flight),
            "steps": self._next_step,
            "preemptions": self.preemptions,
            "blocks_total": pool.num_blocks,
            "blocks_free": pool.num_free,
            "blocks_cached": pool.num_cached,
            "blocks_in_use": pool.num_in_use,
            "prefix_queries": self.prefix_queries,
            "prefix_hits": self.prefix_hits,
            "evictions": pool.evictions,
        }

    # -- planning ------------------------------------------------------------------------------------------------------

    def _plan_running(self, step: Step) -> int:
        """Plan what the running sequences want next. Returns the token budget that is left."""
        budget = self.config.max_num_batched_tokens
        plan, number = step.plan, step.plan.step
        # This loop runs once for every running sequence and step. Sequences that it preempts stand behind it in the
        # list, so that it never meets them.
        for sequence in self.running:
            if budget <= 0:
                break
            num_planned, num_tokens = sequence.num_planned, sequence.num_tokens
            if num_tokens >= sequence.max_length:
                continue  # only its last results are missing
            if num_tokens - num_planned == 1 and num_planned < sequence.capacity:
                # The common case, a decode into a block that is there: what `_add` does, without the call.
                plan.slots.append(sequence.slot)
                plan.num_tokens.append(1)
                plan.num_blocks.append(0)
                step.members.append(sequence)
                step.sampling.append(sequence)
                sequence.last_step = number
                sequence.num_planned = num_tokens
                sequence.num_tokens = num_tokens + 1
                budget -= 1
                continue
            wanted = self._chunk(num_tokens - num_planned, budget, alone=not step.members)
            if wanted == 0:
                continue
            missing = -(-(num_planned + wanted - sequence.capacity) // self.pool.block_size)
            if missing > 0:
                if not self._make_room(sequence, missing):
                    break
                blocks = self.pool.allocate(missing)
                sequence.blocks += blocks
                sequence.capacity += missing * self.pool.block_size
                plan.blocks += blocks
            plan.num_blocks.append(max(missing, 0))
            self._add(step, sequence, wanted)
            budget -= wanted
        return budget

    def _plan_waiting(self, step: Step, budget: int, now: int) -> None:
        """Admit waiting sequences while there is budget, a slot and memory for the next one's whole prompt."""
        block_size = self.pool.block_size
        while budget > 0 and self._free_slots and (sequence := self.waiting.first()) is not None:
            length = len(sequence.token_ids)
            shared: list[int] = []
            if self.config.enable_prefix_caching:
                extend_hashes(sequence.hashes, sequence.root, sequence.token_ids, block_size)
                # The last token is always computed: its logits are what the prefill is for.
                shared = self.pool.match(sequence.hashes[: (length - 1) // block_size])
            cached = len(shared) * block_size
            wanted = self._chunk(length - cached, budget, alone=not step.members)
            needed = -(-length // block_size) - len(shared)
            available = self.pool.num_available - self.pool.num_cached_of(shared) - self._reserve()
            if wanted == 0 or needed > available:
                return
            self.waiting.pop()
            self.pool.share(shared)
            sequence.num_shared = len(shared)
            sequence.blocks = shared + self.pool.allocate(needed)
            sequence.capacity = len(sequence.blocks) * block_size
            sequence.num_planned = cached
            sequence.num_registered = len(shared)
            sequence.slot = self._free_slots.pop()
            sequence.state = State.RUNNING
            insort(self.running, sequence, key=self._key)
            if sequence.scheduled_ns == 0:
                sequence.scheduled_ns = now
                sequence.cached_tokens = cached
                self.prefix_queries += length
                self.prefix_hits += cached
            step.plan.admit.append(_admit(sequence))
            step.plan.num_blocks.append(0)  # they came with the admission
            self._add(step, sequence, wanted)
            budget -= wanted

    def _add(self, step: Step, sequence: Sequence, num_tokens: int) -> None:
        """Put `num_tokens` more tokens of a running sequence into a step."""
        plan = step.plan
        plan.slots.append(sequence.slot)
        plan.num_tokens.append(num_tokens)
        step.members.append(sequence)
        if num_tokens > 1 or sequence.num_planned < sequence.prompt_len:
            step.prefills.append(sequence)
        sequence.last_step = plan.step
        sequence.num_planned += num_tokens
        if sequence.num_planned == sequence.num_tokens:
            sequence.num_tokens += 1
            step.sampling.append(sequence)

    def _chunk(self, wanted: int, budget: int, alone: bool) -> int:
        """How many of the wanted prefill tokens go into a step with this budget left."""
        if self.config.enable_chunked_prefill:
            return min(wanted, budget)
        # Unchunked, a prompt is computed whole; one that is over the budget gets a step of its own.
        return wanted if wanted <= budget or alone else 0

    def _reserve(self) -> int:
        """Blocks kept back at admission, so that the decodes that run already need not preempt at once."""
        return min(len(self.running), self.pool.num_blocks // 100)

    def _make_room(self, sequence: Sequence, missing: int) -> bool:
        """Preempt the least important sequences until `missing` blocks are there; False when that hit `sequence`."""
        while self.pool.num_available < missing:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _register_prefills(self, step: Step) -> None:
        """Let later plans find the blocks that this step's prefills fill, and let siblings go on to hit them."""
        for sequence in step.prefills:
            step.filled[sequence.slot] = self._register(sequence, sequence.num_planned)
            if sequence.siblings and sequence.num_tokens > sequence.prompt_len:
                for sibling in _take_siblings(sequence):
                    sibling.hashes = sequence.hashes[: sibling.prompt_len // self.pool.block_size]
                    sibling.state = State.WAITING
                    self.waiting.push(sibling)

    def _register(self, sequence: Sequence, num_computed: int) -> list[int]:
        """Give the blocks that are full by now their names. Returns those that were not registered before."""
        first = sequence.num_registered
        last = min(num_computed, len(sequence.token_ids)) // self.pool.block_size
        if not self.config.enable_prefix_caching or last <= first:
            return []
        extend_hashes(sequence.hashes, sequence.root, sequence.token_ids, self.pool.block_size)
        for index in range(first, last):
            self.pool.register(sequence.blocks[index], sequence.hashes[index])
        sequence.num_registered = last
        return sequence.blocks[first:last]

    # -- results -------------------------------------------------------------------------------------------------------

    def _append(self, sampled: list[Sequence], result: Result, now: int) -> None:
        """Append each sampled token to its sequence and to what goes out; end the sequences that it ends."""
        number = result.step
        if any(number <= sequence.discard_until for sequence in sampled):
            # Some were sampled on an assumption that turned out wrong.
            kept = [row for row, sequence in enumerate(sampled) if number > sequence.discard_until]
            sampled = [sampled[row] for row in kept]
            self._tokens.token_ids = Ids("i", [result.token_ids[row] for row in kept])
            self._tokens.logprobs = select_rows(result.logprobs, kept) if result.logprobs else None
        else:
            self._tokens.token_ids = result.token_ids
            self._tokens.logprobs = result.logprobs
        self._tokens.rids = [sequence.rid for sequence in sampled]
        for sequence, token in zip(sampled, self._tokens.token_ids, strict=True):
            token_ids = sequence.token_ids
            token_ids.append(token)
            if len(token_ids) >= sequence.next_look or token in sequence.stop_ids:
                self._look(sequence, token, now)

    def _look(self, sequence: Sequence, token: int, now: int) -> None:
        """What some tokens bring with them: the first one, one behind a full block, one that ends the sequence."""
        block_size = self.pool.block_size
        length = len(sequence.token_ids)
        if not sequence.opened:
            sequence.first_token_ns = now
            self._open(sequence)
        # The KV of the new token itself is not computed yet.
        if (length - 1) % block_size == 0 and sequence.state is State.RUNNING:
            self._register(sequence, length - 1)
        sequence.next_look = min(((length - 1) // block_size + 1) * block_size + 1, sequence.max_length)
        self._end_if_due(sequence, token, now)

    def _end_if_due(self, sequence: Sequence, token: int, now: int) -> None:
        if token in sequence.stop_ids and sequence.num_output >= sequence.min_output:
            self._finish(sequence, STOP, now, stop_token=token)
        elif len(sequence.token_ids) >= sequence.max_length:
            self._finish(sequence, LENGTH, now)

    def _fail(self, step: Step, result: Result, now: int) -> list[Sequence]:
        """End the sequences whose work failed, and rewind those that built on it. Returns who did sample."""
        member_of = dict(zip(step.plan.slots, step.members, strict=True))
        bad: set[int] = set()
        for slot, error in zip(result.failed, result.errors, strict=True):
            sequence = member_of[slot]
            # Everything that it computed itself: what failed here may have gone wrong some chunks earlier.
            bad.update(sequence.blocks[sequence.num_shared :], step.filled.get(slot, ()))
            if result.step > sequence.discard_until:  # else it is over, or rewound already
                self._finish(sequence, ERROR, now, refusal=Refusal(500, "server_error", error))
        for sequence in built_on(bad, self.running):
            sequence.discard_until = sequence.last_step
            self._preempt(sequence)
        self.pool.forget(bad)
        # Whoever built on bad blocks and has left since did so in the steps behind this one.
        for later in self._in_flight.values():
            for blocks in later.filled.values():
                self.pool.forget(blocks)
        failed = {id(member_of[slot]) for slot in result.failed}
        return [sequence for sequence in step.sampling if id(sequence) not in failed]

    # -- the life of a sequence ----------------------------------------------------------------------------------------

    def _refusal(self, submit: Submit) -> Refusal | None:
        """Why a request cannot be taken in, if so."""
        most = self.config.max_num_queued_reqs
        if submit.n > most:
            return Refusal(400, "invalid_request_error", f"n: {submit.n} is more than the {most} that may wait", "n")
        queued = len(self._sequences) - len(self.running)
        if queued + submit.n > most:
            return Refusal(
                429, "overloaded_error", f"the queue is full: {queued} requests are waiting; try again later"
            )
        length = len(submit.token_ids) + submit.sampling.max_tokens
        capacity = self.pool.num_blocks * self.pool.block_size
        limit = min(self.runner.max_model_len, capacity)
        if length > limit:
            text = (
                f"the prompt has {len(submit.token_ids)} tokens and max_tokens is {submit.sampling.max_tokens}: "
                f"together they are over the {limit} tokens that fit here"
            )
            return Refusal(400, "invalid_request_error", text, "max_tokens")
        return None

    def _prepare(self, sequence: Sequence) -> None:
        stop_ids = frozenset(sequence.sampling.stop_token_ids)
        sequence.stop_ids = stop_ids if sequence.sampling.ignore_eos else stop_ids | self._eos
        self._sequences[sequence.rid] = sequence

    def _open(self, sequence: Sequence) -> None:
        """Announce a sequence downstream, once, before anything else of it."""
        if not sequence.opened:
            sequence.opened = True
            self._tokens.heads.append(sequence.head())

    def _finish(
        self, sequence: Sequence, reason: int, now: int, stop_token: int | None = None, refusal: Refusal | None = None
    ) -> None:
        """End a sequence and say so downstream."""
        self._open(sequence)
        self._tokens.tails.append(sequence.tail(reason, now, stop_token, refusal))
        self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        """Take a sequence out of whatever it is in, and give back what it holds."""
        if sequence.state is State.RUNNING:
            self._release(sequence)
        elif sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        sequence.state = State.FINISHED
        sequence.discard_until = math.inf
        del self._sequences[sequence.rid]
        siblings = _take_siblings(sequence)
        if siblings:  # nobody to wait for any more: the first of them leads the others
            siblings[0].siblings = siblings[1:]
            siblings[0].state = State.WAITING
            self.waiting.push(siblings[0])

    def _release(self, sequence: Sequence) -> None:
        """Give back a running sequence's slot and blocks; the next plan may use them again."""
        del self.running[bisect_left(self.running, self._key(sequence), key=self._key)]
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.capacity = 0
        sequence.num_registered = 0
        self._drops.append(sequence.slot)
        self._free_slots.append(sequence.slot)
        sequence.slot = -1

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's slot and blocks away; it is computed again later, from its tokens."""
        self._release(sequence)
        self.preemptions += 1
        sequence.preemptions += 1
        sequence.state = State.PREEMPTED
        if sequence.last_step not in self._in_flight:
            self._requeue(sequence)

    def _requeue(self, sequence: Sequence) -> None:
        """Queue a preempted sequence again, now that every token it has sampled is known."""
        sequence.num_tokens = len(sequence.token_ids)
        sequence.state = State.WAITING
        self.waiting.push(sequence)

    def _flush(self, now: int) -> None:
        """Close the message for the detokenizer, if anything is in it."""
        tokens = self._tokens
        if tokens.heads or tokens.rids or tokens.tails:
            tokens.time_ns = now
            self.outgoing.append(tokens)
            self._tokens = _no_tokens()


def _admit(sequence: Sequence) -> Admit:
    return Admit(
        slot=sequence.slot, rid=sequence.rid, token_ids=sequence.token_ids[:], output_start=sequence.prompt_len,
        num_computed=sequence.num_planned, blocks=sequence.blocks[:], sampling=sequence.sampling,
    )  # fmt: skip


def _take_siblings(sequence: Sequence) -> list[Sequence]:
    """The sequences that wait for this one and are still wanted; it has none afterwards."""
    siblings, sequence.siblings = sequence.siblings, []
    return [sibling for sibling in siblings if sibling.state is State.HELD]


def _no_tokens() -> Tokens:
    return Tokens(heads=[], rids=[], token_ids=Ids("i"), logprobs=None, tails=[], time_ns=0)
