"""The persistent batch: what the runner keeps of every sequence between steps, and the inputs of one step made from it.

A sequence lives in a slot from its admission to its drop. The host knows how long each sequence is and where its KV
blocks are, but not which tokens were sampled: those stay on the device, in `last_token`, and the next step reads them
there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ipc.messages import Admit, Plan, Sampling

NOTHING: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class StepInputs:
    """One step as flat host arrays. T tokens in all, of B sequences, S of which sample at the end.

    Tokens of a sequence lie side by side, sequences in the order of the plan.
    """

    token_ids: NDArray[np.int64]  # [T]; anything where from_device is set
    from_device: NDArray[np.bool_]  # [T] the id is the slot's last sampled token
    positions: NDArray[np.int64]  # [T] of each token in its sequence
    token_slots: NDArray[np.int64]  # [T] batch slot of each token
    slots: NDArray[np.int64]  # [B]
    query_lens: NDArray[np.int64]  # [B] tokens computed in this step
    context_lens: NDArray[np.int64]  # [B] tokens of the sequence once this step has run
    sample_rows: NDArray[np.int64]  # [S] index among the T tokens of each sampling sequence's last token
    sample_slots: NDArray[np.int64]  # [S]
    sample_positions: NDArray[np.int64]  # [S] position of the token to be sampled
    table_places: NDArray[np.int64]  # [N] where the block tables changed: slot * blocks_per_sequence + index
    table_blocks: NDArray[np.int64]  # [N] the ids that are there now


class Batch:
    """Host-side state of all slots."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        blocks_per_sequence = -(-max_model_len // block_size)
        self.block_size = block_size
        # Zeroed memory is only really taken from the system where something is written to it.
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int32)
        self.block_table = np.zeros((max_num_seqs, blocks_per_sequence), dtype=np.int32)
        self.num_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_known = np.zeros(max_num_seqs, dtype=np.int64)  # leading tokens whose ids the host knows
        # Tokens, those in flight included. It samples who has computed so many: never, with one more than there are.
        self.length = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_computed = np.zeros(max_num_seqs, dtype=np.int64)
        self.output_start = np.zeros(max_num_seqs, dtype=np.int64)
        self.sampling: list[Sampling | None] = [None] * max_num_seqs
        # The last entry belongs to nobody: rows that only fill up a CUDA graph read and write it.
        self.last_token = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=device)
        self._changes: list[tuple[int, list[int]]] = []  # of the block tables since the last step: place, ids

    def drop(self, slot: int) -> None:
        """The slot's sequence is gone. A slot that is empty already is none the worse."""
        self.sampling[slot] = None

    def admit(self, admit: Admit) -> None:
        slot, length = admit.slot, len(admit.token_ids)
        self.token_ids[slot, :length] = admit.token_ids
        self.num_blocks[slot] = 0
        self.add_blocks(slot, admit.blocks)
        self.num_known[slot] = length
        self.length[slot] = length + admit.sampling.prompt_only
        self.num_computed[slot] = admit.num_computed
        self.output_start[slot] = admit.output_start
        self.sampling[slot] = admit.sampling

    def add_blocks(self, slot: int, blocks: list[int]) -> None:
        start = self.num_blocks[slot]
        self.block_table[slot, start : start + len(blocks)] = blocks
        self.num_blocks[slot] = start + len(blocks)
        if blocks:
            self._changes.append((slot * self.block_table.shape[1] + int(start), blocks))

    def advance(self, plan: Plan) -> StepInputs:
        """Let a plan's admissions, drops and tokens take effect, and give the step's inputs."""
        for slot in plan.drop:
            self.drop(slot)
        for admit in plan.admit:
            self.admit(admit)
        if plan.blocks:
            start = 0
            for slot, count in zip(plan.slots, plan.num_blocks, strict=True):
                if count:
                    self.add_blocks(slot, plan.blocks[start : start + count])
                    start += count
        slots = np.array(plan.slots, dtype=np.int64)
        query_lens = np.array(plan.num_tokens, dtype=np.int64)
        starts = self.num_computed[slots]
        context_lens = starts + query_lens
        if len(plan.num_tokens) == sum(plan.num_tokens):  # one token each: the common case, and the hurried one
            token_slots, positions, last_rows = slots, starts, np.arange(len(slots))
        else:
            ends = np.cumsum(query_lens)
            token_slots = np.repeat(slots, query_lens)
            positions = np.arange(ends[-1]) + np.repeat(starts - (ends - query_lens), query_lens)
            last_rows = ends - 1
        samples = context_lens == self.length[slots]
        self.num_computed[slots] = context_lens
        sample_slots, sample_rows = (slots, last_rows) if samples.all() else (slots[samples], last_rows[samples])
        sample_positions = self.length[sample_slots]
        self.length[sample_slots] += 1
        table_places, table_blocks = self._table_changes()
        return StepInputs(
            token_ids=self.token_ids[token_slots, positions].astype(np.int64),
            from_device=positions >= self.num_known[token_slots],
            positions=positions,
            token_slots=token_slots,
            slots=slots,
            query_lens=query_lens,
            context_lens=context_lens,
            sample_rows=sample_rows,
            sample_slots=sample_slots,
            sample_positions=sample_positions,
            table_places=table_places,
            table_blocks=table_blocks,
        )

    def cache_rows(self, inputs: StepInputs) -> NDArray[np.int64]:
        """[T] where each token's key and value go in the cache: block * block_size + offset."""
        blocks = self.block_table[inputs.token_slots, inputs.positions // self.block_size].astype(np.int64)
        return blocks * self.block_size + inputs.positions % self.block_size

    def _table_changes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What became of the block tables since the last call, as StepInputs holds it."""
        if not self._changes:
            return NOTHING, NOTHING
        changes, self._changes = self._changes, []
        counts = np.array([len(blocks) for _, blocks in changes], dtype=np.int64)
        first = np.array([place for place, _ in changes], dtype=np.int64) - (np.cumsum(counts) - counts)
        places = np.repeat(first, counts) + np.arange(counts.sum())
        return places, np.array([block for _, blocks in changes for block in blocks], dtype=np.int64)
