"""The scheduler: one token budget a step, decodes and prefill chunks side by side, steps planned ahead.

A step is formed when the runner has room for one, never on a timer. While a step is in flight, the next one is planned
on the assumption that every running sequence goes on; what a sequence turns out not to have wanted is discarded when
the result arrives. The runner executes plans in order on one stream, so whatever a plan frees may be used again by the
next one. (A runner with several lanes works on several plans at once; a sequence is then in one of them at a time.)

This file takes in what arrives; `planner` makes the steps, `residents` and `waiting` keep the sequences, `policies`
order them, `figures` shows them. Nothing here sleeps, reads a clock or does I/O, so the same code runs in the server,
in the tests and in the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ipc.codec import Ids
from ipc.config import SchedulerConfig
from ipc.control_messages import RunnerReady
from ipc.messages import ABORT, ERROR, LENGTH, STOP, TIMEOUT, Plan, Prepared, Reading, Refusal, Result, Submit, Tokens
from scheduler_proc.admission import Admission
from scheduler_proc.deadlines import Deadlines
from scheduler_proc.grammars import Grammars
from scheduler_proc.kv_events import AllBlocksCleared, KvEvent
from scheduler_proc.life_cycle import END_OF_REASON, Event, State
from scheduler_proc.life_log import LifeLog
from scheduler_proc.planner import Planner, take_siblings
from scheduler_proc.policies import find_policy
from scheduler_proc.recovery import built_on, filled_by
from scheduler_proc.reports import Reports
from scheduler_proc.residents import Residents
from scheduler_proc.rows import select_rows
from scheduler_proc.sequence import Sequence
from scheduler_proc.step import Step
from scheduler_proc.waiting import WaitingLine

# Where a deadline may find a sequence, for the client.
WHEREABOUTS = {
    State.PREPARING: "its grammar was being compiled",
    State.HELD: "it was waiting",
    State.WAITING: "it was waiting",
    State.PREEMPTED: "it was waiting",
    State.PREFILL: "its prompt was being computed",
    State.DECODE: "its output was being computed",
}


NO_MEMORY = "memory ran out in this request's step, which cannot be made smaller; ask for less, or try again later"


class Scheduler:
    """All sequences from their Submit to their Tail. The caller passes messages and the time in, and takes out plans
    (`plan`), what else the runner must know (`grammars.outgoing`), what goes to the detokenizer (`outgoing`) and what
    happened to whom (`log.entries`); it empties the three.
    """

    def __init__(self, runner: RunnerReady, config: SchedulerConfig) -> None:
        """Raises PolicyError when the configured policy does not exist."""
        self.config = config
        self.runner = runner
        self.outgoing: list[Tokens] = []
        self.log = LifeLog(config.enable_log_requests)
        self.residents = Residents(runner, config.enable_prefix_caching)
        self.policy = find_policy(config.scheduling_policy)(self.residents.match)
        self.waiting = WaitingLine(self.policy, round(config.scheduling_aging * 1e9))
        self.planner = Planner(config, runner, self.residents, self.waiting, self.log)
        self.tally = self.planner.tally
        self.grammars = Grammars()
        self.admission = Admission(config, runner, self.tally)
        self.reports = Reports()
        self.last_step: Step | None = None  # the one whose result arrived last
        self.timeouts = 0  # so many sequences have met their deadline
        self._sequences: dict[int, Sequence] = {}
        self._deadlines = Deadlines(self._sequences)
        self._eos = frozenset(runner.eos_token_ids)
        self._next_order = 0
        self._last_finished_ns = 0  # by the runner
        self._tokens = _no_tokens()

    # -- what comes in -------------------------------------------------------------------------------------------------

    def submit(self, submit: Submit, now: int) -> None:
        """Queue a request's sequences, or end them at once with the reason why not."""
        queued = len(self._sequences) - len(self.residents.sequences)
        refusal = submit.refusal or self.admission.refusal(submit, queued, self.waiting.num_tokens, now)
        leader: Sequence | None = None
        for choice in range(submit.n):
            sequence = Sequence(submit, choice, self._next_order, now)
            self._next_order += 1
            self._sequences[sequence.rid] = sequence
            if refusal is not None:
                self._finish(sequence, ERROR, now, refusal=refusal)
                continue
            if submit.grammar:
                sequence.grammar = self.grammars.take(submit.grammar)
                sequence.min_output = 0  # the runner keeps to min_tokens as far as the grammar lets it
            stop_ids = frozenset(sequence.sampling.stop_token_ids)
            ignores_eos = sequence.sampling.ignore_eos and not submit.grammar
            sequence.stop_ids = stop_ids if ignores_eos else stop_ids | self._eos
            self._deadlines.add(sequence)
            if leader is None:
                leader = sequence
                self._queue(sequence, Event.QUEUED, now)
            else:
                self.log.happens(sequence, Event.HELD_BACK, now)
                leader.siblings.append(sequence)
        self._flush(now)

    def abort(self, rids: list[int], now: int) -> None:
        """End sequences that nobody wants any more. Unknown rids and a second abort are no-ops."""
        self._finish_all(rids, ABORT, now)

    def stop_hit(self, rids: list[int], now: int) -> None:
        """End sequences whose text met a stop string. The detokenizer has cut the text; it waits for the Tail."""
        opened = [rid for rid in rids if rid in self._sequences and self._sequences[rid].opened]
        self._finish_all(opened, STOP, now)

    def fail(self, rids: Iterable[int], refusal: Refusal, now: int) -> None:
        """End sequences that cannot go on."""
        for rid in list(rids):
            if rid in self._sequences:
                self._finish(self._sequences[rid], ERROR, now, refusal=refusal)
        self._flush(now)

    def held(self) -> Mapping[int, Sequence]:
        """All sequences that have not ended, by rid."""
        return self._sequences

    def expire(self, now: int) -> None:
        """End the sequences whose deadline has passed."""
        for sequence in self._deadlines.passed(now):
            self.timeouts += 1
            milliseconds = (sequence.deadline_ns - sequence.received_ns) // 1_000_000
            text = f"the request was not finished within its {milliseconds} ms: {WHEREABOUTS[sequence.state]}"
            self._finish(sequence, TIMEOUT, now, refusal=Refusal(504, "timeout_error", text))
        self._flush(now)

    @property
    def next_deadline_ns(self) -> int | None:
        """When `expire` has something to do at the earliest."""
        return self._deadlines.next_ns

    def prepared(self, prepared: Prepared, now: int) -> None:
        """Queue the sequences that waited for a grammar, or end them when it cannot be compiled."""
        if not self.grammars.knows(prepared.grammar):
            return  # nobody wants it any more
        if not prepared.error:
            for sequence in self.grammars.ready(prepared.grammar):
                self._queue(sequence, Event.PREPARED, now)
            return
        refusal = Refusal(400, "invalid_request_error", f"this model cannot follow the grammar: {prepared.error}")
        for leader in self.grammars.failed(prepared.grammar):
            for sequence in (*take_siblings(leader), leader):
                self._finish(sequence, ERROR, now, refusal=refusal)
        self._flush(now)

    def misses_result(self, step: int) -> bool:
        """Whether the result of this step comes before that of an older one, which cannot be with one lane."""
        in_flight = self.planner.in_flight
        return self.runner.lanes == 1 and step in in_flight and step != next(iter(in_flight))

    def result(self, result: Result, now: int) -> None:
        """Take in what a step sampled: append, find the ends, pass the tokens on."""
        step = self.planner.in_flight.pop(result.step, None)
        if step is None:
            return
        self.last_step = step
        # A step that waited for the one before it was not worked on meanwhile.
        started = max(result.started_ns, self._last_finished_ns)
        self._last_finished_ns = max(self._last_finished_ns, result.finished_ns)
        self.tally.ran(step, result)
        self.residents.step_ended(len(step.decodes) + len(step.others), max(0, result.finished_ns - started))
        for sequence in step.prefills:
            sequence.started_ns = sequence.started_ns or started
        self._pass_on(result)
        if result.out_of_memory:
            self._run_out(step, now)
        else:
            self.planner.budget.went_well()
            self._append(step, self._fail(step, result, now) if result.failed else step.samplers, result, now)
        for sequence in step.prompts:
            if result.step > sequence.discard_until:
                self._finish(sequence, LENGTH, now)
        self.planner.result_is_in(result.step, now)
        self._flush(now)

    def record_kv_events(self) -> list[KvEvent]:
        """Note from now on what happens to the blocks of the cache, in the list that this returns.

        It begins with an empty cache, so it is to be called before anything is submitted. The caller empties the list.
        """
        events: list[KvEvent] = [AllBlocksCleared()]
        self.residents.pool.events = events
        return events

    def flush_cache(self) -> int:
        """Forget every cached prefix. Returns how many blocks became free."""
        return self.residents.pool.flush()

    # -- what goes out -------------------------------------------------------------------------------------------------

    def plan(self, now: int) -> Plan | None:
        """The next step, or None when the pipeline is full or there is nothing to do."""
        step = self.planner.plan(now)
        return None if step is None else step.plan(self.residents.take_drops())

    @property
    def sequences(self) -> Iterable[Sequence]:
        """All that have not ended, in the order of their arrival."""
        return self._sequences.values()

    def retry_after_s(self, now: int) -> float:
        """When a request that finds the queue full may come again: when those who wait now are through."""
        queued = len(self._sequences) - len(self.residents.sequences)
        return self.admission.rate.retry_after_s(queued, self.waiting.num_tokens, now)

    # -- results -------------------------------------------------------------------------------------------------------

    def _append(self, step: Step, sampled: list[Sequence], result: Result, now: int) -> None:
        """Append each sampled token to its sequence and to what goes out; end the sequences that it ends."""
        if step.stale:
            # Some may have been sampled on an assumption that turned out wrong.
            kept = [row for row, sequence in enumerate(sampled) if step.number > sequence.discard_until]
            self.tally.wasted += len(sampled) - len(kept)
            sampled = [sampled[row] for row in kept]
            self._tokens.token_ids = Ids("i", [result.token_ids[row] for row in kept])
            self._tokens.logprobs = select_rows(result.logprobs, kept) if result.logprobs else None
        else:
            self._tokens.token_ids = result.token_ids
            self._tokens.logprobs = result.logprobs
        self._tokens.rids = [sequence.rid for sequence in sampled]
        self.tally.generated += len(sampled)
        if self.log.every_token:
            self._note_tokens(sampled, now)
        for sequence, token in zip(sampled, self._tokens.token_ids, strict=True):
            token_ids = sequence.token_ids
            token_ids.append(token)
            if len(token_ids) >= sequence.next_look or token in sequence.stop_ids:
                self._look(sequence, token, step.number, now)

    def _note_tokens(self, sampled: list[Sequence], now: int) -> None:
        """Note a decode for each that was decoding; the token of a prefill is what that ends with."""
        for sequence in sampled:
            if sequence.state is State.DECODE:
                self.log.happens(sequence, Event.DECODED, now)

    def _pass_on(self, result: Result) -> None:
        """Pass on what a step has read of prompts, leaving out what was passed on before a preemption."""
        for reading in result.readings:
            sequence = self._sequences.get(reading.rid)
            if sequence is None or result.step <= sequence.discard_until:
                continue
            rows = reading.logprobs.counts
            known = min(max(0, sequence.num_read - reading.start), len(rows))
            if known:
                kept = select_rows(reading.logprobs, range(known, len(rows)))
                reading = Reading(reading.rid, reading.start + known, kept, reading.embedding)
            if reading.logprobs.counts or reading.embedding:
                sequence.num_read = reading.start + len(reading.logprobs.counts)
                self._open(sequence)
                self._tokens.readings.append(reading)

    def _look(self, sequence: Sequence, token: int, step: int, now: int) -> None:
        """What some tokens bring with them: the first one, one behind a full block, one that ends the sequence."""
        block_size = self.runner.block_size
        length = len(sequence.token_ids)
        if sequence.first_step < 0:
            sequence.first_token_ns = now
            sequence.first_step = step
            self._open(sequence)
        if sequence.state is State.PREFILL:
            self.log.happens(sequence, Event.PREFILL_FINISHED, now)
        # The KV of the new token itself is not computed yet.
        if (length - 1) % block_size == 0 and sequence.slot >= 0:
            self.residents.register(sequence, length - 1)
        sequence.next_look = min(((length - 1) // block_size + 1) * block_size + 1, sequence.max_length)
        if token in sequence.stop_ids and sequence.num_output >= sequence.min_output:
            self._finish(sequence, STOP, now, stop_token=token)
        elif length >= sequence.max_length:
            self._finish(sequence, LENGTH, now)

    def _fail(self, step: Step, result: Result, now: int) -> list[Sequence]:
        """End the sequences whose work failed, and rewind those that built on it. Returns who did sample."""
        step.stale = True
        failed = set(result.failed)
        slot_of = dict(zip(step.members, step.slots, strict=True))
        member_of = {slot: sequence for sequence, slot in slot_of.items()}
        bad: set[int] = set()
        for slot, error in zip(result.failed, result.errors, strict=True):
            sequence = member_of[slot]
            # Everything that it computed itself: what failed here may have gone wrong some chunks earlier.
            bad.update(sequence.blocks[sequence.num_shared :])
            if result.step > sequence.discard_until:  # else it is over, or rewound already
                self._finish(sequence, ERROR, now, refusal=Refusal(500, "server_error", error))
        self._forget_work(bad, step, {member_of[slot] for slot in failed}, now)
        return [sequence for sequence in step.samplers if slot_of[sequence] not in failed]

    def _run_out(self, step: Step, now: int) -> None:
        """Take back a step that found no memory to run in, and make smaller ones; end what no step can do smaller."""
        self.planner.budget.ran_out(step.size)
        believed = [sequence for sequence in step.members if step.number > sequence.discard_until]
        if step.size == 1 or (len(step.members) == 1 and not self.config.enable_chunked_prefill):
            for sequence in believed:
                self._finish(sequence, ERROR, now, refusal=Refusal(500, "server_error", NO_MEMORY))
        else:
            self._rewind(believed, now)
        # Its decodes' blocks have no names before their tokens are there.
        self._forget_work(set(), step, set(step.members), now)

    def _rewind(self, sequences: list[Sequence], now: int) -> None:
        """Compute sequences again from the tokens that have arrived, whatever the steps in flight make of them."""
        for sequence in sequences:
            self.planner.discard(sequence, until=sequence.last_step)
            if sequence.slot >= 0:
                self.planner.preempt(sequence, now)

    def _forget_work(self, bad: set[int], step: Step, failed: set[Sequence], now: int) -> None:
        """Rewind who built on `bad` blocks or on what `failed` members of a step filled, and let nobody find those."""
        later = list(self.planner.in_flight.values())
        bad |= filled_by(failed, [step, *later])
        self._rewind(built_on(bad, self.residents.sequences), now)
        self.residents.pool.forget(bad)
        # Whoever built on bad blocks and has left since did so in the steps behind this one.
        self.residents.pool.forget(block for other in later for blocks in other.filled.values() for block in blocks)

    # -- the life of a sequence ----------------------------------------------------------------------------------------

    def _queue(self, sequence: Sequence, event: Event, now: int) -> None:
        """Have a sequence wait for its turn, or for its grammar before that."""
        if sequence.grammar >= 0 and not self.grammars.is_ready(sequence.grammar):
            self.log.happens(sequence, Event.PREPARE, now)
            self.grammars.wait(sequence)
        else:
            self.log.happens(sequence, event, now)
            self.waiting.push(sequence, self.planner.next_step)

    def _open(self, sequence: Sequence) -> None:
        """Announce a sequence downstream, once, before anything else of it."""
        if not sequence.opened:
            sequence.opened = True
            self._tokens.heads.append(sequence.head())

    def _finish_all(self, rids: list[int], reason: int, now: int) -> None:
        for rid in rids:
            sequence = self._sequences.get(rid)
            if sequence is not None:
                self._finish(sequence, reason, now)
        self._flush(now)

    def _finish(
        self, sequence: Sequence, reason: int, now: int, stop_token: int | None = None, refusal: Refusal | None = None
    ) -> None:
        """End a sequence: take it out of whatever it is in, give back what it holds, and say so downstream."""
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is State.PREPARING:
            self.grammars.stop_waiting(sequence)
        elif sequence.slot >= 0:
            self.residents.leave(sequence)
        if sequence.scheduled_ns:
            self.policy.left(sequence)
        if sequence.state is not State.NEW:
            self.admission.rate.left(sequence.prompt_len, now)
        self.log.happens(sequence, END_OF_REASON[reason], now)
        self.planner.discard(sequence, until=math.inf)
        del self._sequences[sequence.rid]
        self.tally.ended(reason)
        self._open(sequence)
        tail = sequence.tail(reason, now, stop_token, refusal)
        self._tokens.tails.append(tail)
        self.reports.add(sequence, tail)
        siblings = take_siblings(sequence)
        if siblings:  # nobody to wait for any more: the first of them leads the others
            siblings[0].siblings = siblings[1:]
            self._queue(siblings[0], Event.RELEASED, now)
        if sequence.grammar >= 0:
            self.grammars.release(sequence.grammar)

    def _flush(self, now: int) -> None:
        """Close the message for the detokenizer, if anything is in it."""
        tokens = self._tokens
        if tokens.heads or tokens.rids or tokens.tails or tokens.readings:
            tokens.time_ns = now
            self.outgoing.append(tokens)
            self._tokens = _no_tokens()


def _no_tokens() -> Tokens:
    return Tokens(heads=[], rids=[], token_ids=Ids("i"), logprobs=None, tails=[], time_ns=0)
