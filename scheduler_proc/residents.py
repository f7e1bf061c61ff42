"""The running sequences and what they hold: slots of the runner's batch and blocks of its KV cache."""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter

from ipc.control_messages import RunnerReady
from scheduler_proc.blocks import BlockPool, extend_hashes
from scheduler_proc.kv_events import BlockStored, KvEvent
from scheduler_proc.sequence import Sequence

_rank = attrgetter("rank")


class Residents:
    """`sequences` stands in the order of importance, the most important first."""

    def __init__(self, runner: RunnerReady, caching: bool) -> None:
        self.pool = BlockPool(runner.num_blocks, runner.block_size, caching)
        self.sequences: list[Sequence] = []
        self.free_slots = list(range(runner.max_num_seqs - 1, -1, -1))
        # Prompts that were looked up in the cache at their first admission, in tokens and in requests.
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.prefix_requests_hit = 0
        self.prefix_requests_missed = 0
        self._drops: list[int] = []
        # Sums over all steps that have ended; a resident's share is what was added while it was one.
        self._num_steps = 0
        self._batch_sizes = 0
        self._execution_ns = 0

    def match(self, sequence: Sequence) -> list[int]:
        """The blocks in the cache that a waiting sequence can share: those of the longest known prefix."""
        if not self.pool.caching or sequence.reads_prompt:
            return []
        block_size = self.pool.block_size
        extend_hashes(sequence.hashes, sequence.root, sequence.token_ids, block_size)
        # The last token is always computed: its logits are what the prefill is for.
        return self.pool.match(sequence.hashes[: (len(sequence.token_ids) - 1) // block_size])

    def enter(self, sequence: Sequence, shared: list[int], missing: int) -> None:
        """Give a sequence a slot, the blocks that it shares, and the `missing` ones of its tokens."""
        self.pool.share(shared)
        sequence.num_shared = sequence.num_registered = len(shared)
        sequence.grow(shared + self.pool.allocate(missing), self.pool.block_size)
        sequence.num_planned = len(shared) * self.pool.block_size
        sequence.slot = self.free_slots.pop()
        insort(self.sequences, sequence, key=_rank)
        sequence.num_steps -= self._num_steps
        sequence.batch_sizes -= self._batch_sizes
        sequence.execution_ns -= self._execution_ns

    def count_prompt(self, length: int, cached: int) -> None:
        """Note how many of a prompt's tokens were found in the cache."""
        self.prefix_queries += length
        self.prefix_hits += cached
        if cached:
            self.prefix_requests_hit += 1
        else:
            self.prefix_requests_missed += 1

    def leave(self, sequence: Sequence) -> None:
        """Take back a sequence's slot and blocks; the next plan may use them again."""
        del self.sequences[bisect_left(self.sequences, sequence.rank, key=_rank)]
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.capacity = sequence.num_registered = sequence.plain_until = 0
        self._drops.append(sequence.slot)
        self.free_slots.append(sequence.slot)
        sequence.slot = -1
        sequence.num_steps += self._num_steps
        sequence.batch_sizes += self._batch_sizes
        sequence.execution_ns += self._execution_ns

    def register(self, sequence: Sequence, num_computed: int) -> list[int]:
        """Give the blocks that are full by now their names. Returns those that had none before."""
        first = sequence.num_registered
        last = min(num_computed, len(sequence.token_ids)) // self.pool.block_size
        if not self.pool.caching or last <= first:
            return []
        extend_hashes(sequence.hashes, sequence.root, sequence.token_ids, self.pool.block_size)
        blocks, hashes = sequence.blocks, sequence.hashes
        new = [index for index in range(first, last) if self.pool.register(blocks[index], hashes[index])]
        if self.pool.events is not None:
            self._note_stored(self.pool.events, sequence, new)
        sequence.num_registered = last
        return blocks[first:last]

    def _note_stored(self, events: list[KvEvent], sequence: Sequence, new: list[int]) -> None:
        """Say of some of a sequence's blocks that they can be found; those in a row are in one event."""
        block_size, hashes = self.pool.block_size, sequence.hashes
        while new:
            start = end = new[0]
            while new and new[0] == end:
                end = new.pop(0) + 1
            token_ids = sequence.token_ids[start * block_size : end * block_size]
            parent = hashes[start - 1] if start else None
            events.append(BlockStored(hashes[start:end], parent, token_ids, block_size, sequence.cache_salt))

    def take_drops(self) -> list[int]:
        """The slots that were given up since the last call."""
        drops, self._drops = self._drops, []
        return drops

    def step_ended(self, num_seqs: int, execution_ns: int) -> None:
        """Count a step towards all residents."""
        self._num_steps += 1
        self._batch_sizes += num_seqs
        self._execution_ns += execution_ns
