"""Plans one step: who gets how many tokens of the budget.

`--prefill-order` says who is asked first: `mixed` goes by importance alone, the running ones and then the new ones;
`decode-first` and `prefill-first` split the running ones by what they want; `separate` gives prefills steps of their
own. The rules for prefills (see `_chunk`) and
for memory (see `_make_room` and `_admit`) hold in every order.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from ipc.config import SchedulerConfig
from ipc.control_messages import RunnerReady
from ipc.messages import Admit
from scheduler_proc.life_cycle import Event, State
from scheduler_proc.life_log import LifeLog
from scheduler_proc.residents import Residents
from scheduler_proc.sequence import Sequence
from scheduler_proc.step import Step
from scheduler_proc.tally import Tally
from scheduler_proc.token_budget import TokenBudget
from scheduler_proc.waiting import WaitingLine

UNLIMITED = 1 << 30


class Planner:
    """Owns the steps in flight. `plan` fills the next one from the residents and from the waiting line."""

    def __init__(
        self, config: SchedulerConfig, runner: RunnerReady, residents: Residents, waiting: WaitingLine, log: LifeLog
    ) -> None:
        self.in_flight: dict[int, Step] = {}
        self.tally = Tally()
        self.next_step = 0
        self.preemptions = 0
        self.budget = TokenBudget(config.max_num_batched_tokens)
        self._parked: dict[int, list[Sequence]] = {}  # preempted ones, by the step whose result they wait for
        self._config = config
        self._residents = residents
        self._waiting = waiting
        self._log = log
        self._block_size = runner.block_size
        self._exclusive = runner.lanes > 1  # a sequence is in one step at a time
        self._max_in_flight = runner.lanes if self._exclusive else config.pipeline_depth
        self._max_seqs = config.max_num_step_seqs or UNLIMITED
        self._turns = 0  # decodes of all steps so far
        self._long = config.long_prefill_token_threshold or UNLIMITED
        self._max_partials = config.max_num_partial_prefills or UNLIMITED
        self._max_long_partials = config.max_long_partial_prefills or UNLIMITED
        self._last_preemption = -2  # the step in whose planning somebody had to leave

    def plan(self, now: int) -> Step | None:
        """The next step, in flight from now on; None when the pipeline is full or there is nothing to do."""
        if len(self.in_flight) >= self._max_in_flight:
            return None
        step = Step(self.next_step, self.budget.tokens, self._max_seqs, planned_ns=now)
        running = self._candidates()
        if self.in_flight and self._may_wait(running):
            return None
        if self._config.prefill_order == "mixed":
            # When the running ones fill the step they take turns, and whoever is new has never had one.
            takes_turns = len(running) >= self._max_seqs
            if takes_turns:
                self._admit(step, now)
            self._go_on(step, running, now)
            if not takes_turns:
                self._admit(step, now)
        else:
            decodes = [sequence for sequence in running if sequence.num_tokens - sequence.num_planned <= 1]
            prefills = [sequence for sequence in running if sequence.num_tokens - sequence.num_planned > 1]
            order = self._config.prefill_order
            if order == "decode-first":
                self._admit(step, now, most=1)  # what is left of a prompt in the cache is a decode
                self._go_on(step, decodes, now)
            self._go_on(step, prefills, now)
            self._admit(step, now)
            if order == "prefill-first" or (order == "separate" and not step.others):
                self._go_on(step, decodes, now)
        if not step.decodes and not step.others:
            return None
        self.next_step += 1
        self.in_flight[step.number] = step
        self.tally.planned(step)
        if step.prefills:
            self._register_prefills(step, now)
        if self._max_seqs < UNLIMITED:
            # A prefill is not a turn: whoever has just been prefilled decodes before all others.
            for sequence in step.decoding:
                self._turns += 1
                sequence.turn = self._turns
        if self._config.step_log:
            step.kv_tokens = sum(sequence.num_planned for sequence in step.members)
        return step

    def preempt(self, sequence: Sequence, now: int) -> None:
        """Take a running sequence's slot and blocks away; it is computed again later, from its tokens."""
        self._residents.leave(sequence)
        self.preemptions += 1
        sequence.preemptions += 1
        self._log.happens(sequence, Event.PREEMPTED, now)
        if sequence.last_step in self.in_flight:
            self._parked.setdefault(sequence.last_step, []).append(sequence)
        else:
            self._requeue(sequence, now)

    def discard(self, sequence: Sequence, until: float) -> None:
        """Do not believe what the steps up to `until` sample for a sequence."""
        sequence.discard_until = until
        for step in self.in_flight.values():
            step.stale = True

    def result_is_in(self, number: int, now: int) -> None:
        """Go on with those whose last result came with this step, and was taken in."""
        for sequence in self._parked.pop(number, ()):
            if sequence.state is State.PREEMPTED:
                self._requeue(sequence, now)

    def _requeue(self, sequence: Sequence, now: int) -> None:
        """Queue a preempted sequence again, now that every token it has sampled is known."""
        sequence.num_tokens = len(sequence.token_ids)
        sequence.next_look = 0
        sequence.requeued_ns = now
        self._log.happens(sequence, Event.REQUEUED, now)
        self._waiting.push(sequence, self.next_step)

    def _may_wait(self, running: list[Sequence]) -> bool:
        """Whether the step would hold nothing but prompts that do not fill it, behind a step that is at work.

        Planned when that one is done, it takes along whoever arrives meanwhile, and nobody waits longer for it.
        """
        if self._exclusive or self._waiting.num_tokens >= self.budget.tokens:
            return False
        return not any(sequence.num_tokens < sequence.max_length for sequence in running)

    # -- the running ones ----------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Sequence]:
        """The running sequences that the step may carry, in the order in which they are asked."""
        running = self._residents.sequences
        if self._exclusive:
            running = [sequence for sequence in running if sequence.last_step not in self.in_flight]
        if len(running) >= self._max_seqs:
            # Not all of them fit: who was served longest ago comes first.
            running = sorted(running, key=attrgetter("turn"))
        return running

    def _go_on(self, step: Step, sequences: Iterable[Sequence], now: int) -> None:
        """Plan what running sequences want next."""
        decodes, number = step.decodes, step.number
        room = step.room
        # This loop runs once for every running sequence and step, so the common case has no call in it.
        for sequence in sequences:
            if room <= 0:
                break
            num_tokens = sequence.num_tokens
            if num_tokens < sequence.plain_until:
                decodes.append(sequence)
                sequence.last_step = number
                sequence.num_planned = num_tokens
                sequence.num_tokens = num_tokens + 1
                room -= 1
            elif num_tokens < sequence.max_length and sequence.slot >= 0:
                self._grow(step, sequence, now)
                room = step.room
            # Else only its last results are missing, or it has just been preempted.

    def _grow(self, step: Step, sequence: Sequence, now: int) -> None:
        """Plan a prefill chunk, or a decode that needs a block."""
        wanted = self._chunk(step, sequence, sequence.num_tokens - sequence.num_planned)
        if wanted == 0:
            return
        missing = max(0, -(-(sequence.num_planned + wanted - sequence.capacity) // self._block_size))
        if missing > 0:
            if not self._make_room(step, sequence, missing, now):
                return
            blocks = self._residents.pool.allocate(missing)
            sequence.grow(blocks, self._block_size)
            step.blocks += blocks
        self._add(step, sequence, wanted, missing, now)

    def _make_room(self, step: Step, sequence: Sequence, missing: int, now: int) -> bool:
        """Preempt the least important sequences until `missing` blocks are there; False when that hit `sequence`.

        Who is in the step already stays.
        """
        pool = self._residents.pool
        if pool.num_available < missing:
            self.tally.held_for_blocks += 1
        while pool.num_available < missing:
            victim = next(other for other in reversed(self._residents.sequences) if other.last_step != step.number)
            self.preempt(victim, now)
            self._last_preemption = step.number
            if victim is sequence:
                return False
        return True

    # -- the new ones --------------------------------------------------------------------------------------------------

    def _admit(self, step: Step, now: int, most: int = UNLIMITED) -> None:
        """Admit waiting sequences while there is budget, a slot, and memory for the next one's whole prompt.

        The first one of which more than `most` tokens are missing from the cache ends it.
        """
        residents, waiting = self._residents, self._waiting
        if not residents.free_slots or len(waiting) == 0 or step.room <= 0:
            return
        if residents.sequences and (self._is_short_of_memory(step) or not self._is_ripe()):
            return
        for sequence in waiting.order(now):
            if step.room <= 0 or not residents.free_slots:
                return
            length = len(sequence.token_ids)
            shared = residents.match(sequence)
            missing_tokens = length - len(shared) * self._block_size
            if missing_tokens > most:
                return
            if self._finds_more_soon(step, sequence, len(shared), missing_tokens):
                continue
            sequence.is_long = missing_tokens > self._long
            wanted = self._chunk(step, sequence, missing_tokens)
            if wanted == 0 and self._config.enable_chunked_prefill:
                continue  # too many partial prefills; one that ends with this step may still go
            missing = -(-length // self._block_size) - len(shared)
            available = residents.pool.num_available - residents.pool.num_cached_of(shared) - self._reserve()
            if wanted == 0 or missing > available:
                self.tally.held_for_blocks += missing > available
                return  # to look further would starve whoever wants much
            sequence.rank = waiting.admit(sequence, now)
            residents.enter(sequence, shared, missing)
            self._log.happens(sequence, Event.ADMITTED, now)
            self.tally.admitted(now - (sequence.requeued_ns or sequence.queued_ns), again=sequence.requeued_ns > 0)
            if sequence.scheduled_ns == 0:
                sequence.scheduled_ns = now
                sequence.cached_tokens = length - missing_tokens
                residents.count_prompt(length, sequence.cached_tokens)
            step.admits.append(_admit(sequence))
            self._add(step, sequence, wanted, 0, now)  # its blocks came with the admission

    def _is_short_of_memory(self, step: Step) -> bool:
        """Whether somebody had to leave just now: nobody new comes in then, or the two would take turns."""
        return self._last_preemption >= step.number - 1

    def _is_ripe(self) -> bool:
        """Whether the waiting ones have been coalesced for long enough."""
        delay = self._config.prefill_delay_steps
        return delay == 0 or self._waiting.ripe(
            self.next_step, delay, self._config.max_num_batched_tokens, len(self._residents.free_slots)
        )

    def _finds_more_soon(self, step: Step, sequence: Sequence, num_shared: int, missing_tokens: int) -> bool:
        """Whether this very step fills blocks that would save a sequence at least half of its prefill.

        They can be found from the next plan on, which is soon; equal prompts that arrive together would all miss.
        """
        if not step.filling or sequence.reads_prompt:
            return False
        found = 0
        for block_hash in sequence.hashes[num_shared : (len(sequence.token_ids) - 1) // self._block_size]:
            if block_hash not in step.filling:
                break
            found += 1
        return found > 0 and 2 * found * self._block_size >= missing_tokens

    def _reserve(self) -> int:
        """Blocks kept back at admission, so that the decodes that run already need not preempt at once."""
        return min(len(self._residents.sequences), self._residents.pool.num_blocks // 100)

    # -- both ----------------------------------------------------------------------------------------------------------

    def _chunk(self, step: Step, sequence: Sequence, missing: int) -> int:
        """How many of a sequence's missing tokens go into the step; 0 when none can."""
        if not self._config.enable_chunked_prefill:
            # A prompt is computed whole; one that is over the budget gets a step of its own.
            return missing if missing <= step.budget or not (step.decodes or step.others) else 0
        most = min(step.budget, self._long) if sequence.is_long else step.budget
        if missing <= most:
            return missing
        if step.partials >= self._max_partials:
            return 0
        if sequence.is_long and step.long_partials >= self._max_long_partials:
            return 0
        return most

    def _add(self, step: Step, sequence: Sequence, num_tokens: int, num_blocks: int, now: int) -> None:
        """Put `num_tokens` more tokens of a running sequence into the step."""
        before = sequence.num_planned
        step.others.append(sequence)
        step.num_tokens.append(num_tokens)
        step.num_blocks.append(num_blocks)
        step.other_tokens += num_tokens
        sequence.last_step = step.number
        sequence.num_planned = before + num_tokens
        if num_tokens > 1 or before < sequence.prompt_len:
            step.prefills.append(sequence)
            step.num_prefill_tokens += num_tokens
            step.filling.update(sequence.hashes[before // self._block_size : sequence.num_planned // self._block_size])
        if sequence.num_planned == sequence.num_tokens:
            sequence.num_tokens += 1
            sequence.plain_until = min(sequence.capacity + 1, sequence.max_length)
            (step.prompts if sequence.sampling.prompt_only else step.sampling).append(sequence)
        else:
            self._log.happens(sequence, Event.PREFILL_CHUNK, now)
            step.partials += 1
            step.long_partials += sequence.is_long

    def _register_prefills(self, step: Step, now: int) -> None:
        """Let later plans find the blocks that this step's prefills fill, and let siblings go on to hit them."""
        for sequence in step.prefills:
            step.filled[sequence] = self._residents.register(sequence, sequence.num_planned)
            if sequence.siblings and sequence.num_tokens > sequence.prompt_len:
                for sibling in take_siblings(sequence):
                    sibling.hashes = sequence.hashes[: sibling.prompt_len // self._block_size]
                    self.release(sibling, now)

    def release(self, sibling: Sequence, now: int) -> None:
        """Queue a sequence that was held back."""
        self._log.happens(sibling, Event.RELEASED, now)
        self._waiting.push(sibling, self.next_step)


def take_siblings(sequence: Sequence) -> list[Sequence]:
    """The sequences that wait for this one and are still wanted; it has none afterwards."""
    siblings, sequence.siblings = sequence.siblings, []
    return [sibling for sibling in siblings if sibling.state is State.HELD]


def _admit(sequence: Sequence) -> Admit:
    return Admit(
        slot=sequence.slot, rid=sequence.rid, token_ids=sequence.token_ids[:], output_start=sequence.prompt_len,
        num_computed=sequence.num_planned, blocks=sequence.blocks[:], sampling=sequence.sampling,
        grammar=sequence.grammar,
    )  # fmt: skip
