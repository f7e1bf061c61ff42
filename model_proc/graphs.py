"""CUDA graphs of decode steps: a step of up to so many sequences is one launch for its forward pass, one for sampling.

A graph reads its inputs from where they were when it was captured. All sizes share one input buffer, filled by a single
copy a step; rows that a step does not need belong to no slot and do nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_proc.attention.decode_kernel import DecodeRows
from model_proc.attention.decode_parts import cut_parts, max_parts
from model_proc.attention.paged import KVCache
from model_proc.attention.triton_paged import TritonAttention, TritonAttentionStep
from model_proc.batch import Batch, StepInputs
from model_proc.kernels.launching import next_power_of_two
from model_proc.kernels.sampling_kernels import resolve_tokens, sample_plain
from model_proc.models.open import Model
from model_proc.sampler import Draws

TOKEN_IDS, SLOTS, POSITIONS, CONTEXTS, TEMPERATURES, NUMBERS, PART_LENGTH, PART_SEQUENCES, PART_NUMBERS = range(9)
"""Rows of the input buffer: int32, TEMPERATURES and NUMBERS holding float32 bits. A token id of -1 is what the slot
sampled. The part rows are those of DecodeRows; they are longer than the others, whose ends are unused."""


@dataclass(slots=True)
class Captured:
    """The graphs of one size, and where their results are."""

    forward: torch.cuda.CUDAGraph
    sample: torch.cuda.CUDAGraph
    logits: Tensor  # [size, vocabulary]
    token_ids: Tensor  # [size]


def capture_sizes(wanted: list[int], max_num_seqs: int) -> list[int]:
    """The sizes that get a graph, rising: the wanted ones, or a ladder that wastes little at any number."""
    ladder = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 64), max_num_seqs]
    return sorted({min(size, max_num_seqs) for size in wanted or ladder})


class DecodeGraphs:
    """The captured sizes of one model."""

    def __init__(
        self, model: Model, attention: TritonAttention, cache: KVCache, batch: Batch, sizes: list[int],
        depth: int,
    ) -> None:  # fmt: skip
        self._model = model
        self._attention = attention
        self._cache = cache
        self._last_token = batch.last_token
        self._sizes = sizes
        self._nobody = len(batch.last_token) - 1
        device = batch.last_token.device
        self._kv_heads = cache.keys[0].shape[1]
        width = next_power_of_two(max_parts(sizes[-1], self._kv_heads, attention.num_sms))
        self._inputs = torch.zeros((9, width), dtype=torch.int32, device=device)
        self._inputs[PART_LENGTH] = 1
        self._inputs[PART_SEQUENCES] = -1
        self._rows = torch.arange(sizes[-1], dtype=torch.int32, device=device)
        self._captured: dict[int, Captured] = {}
        # One more than there are steps in flight: when a buffer's turn comes again, its step's copy has read it.
        self._host_inputs = deque(
            torch.zeros(self._inputs.shape, dtype=torch.int32, pin_memory=self._inputs.is_cuda)
            for _ in range(depth + 1)
        )

    def capture(self, progress: Callable[[int, int], None]) -> None:
        """Capture every size; the largest first, so that the smaller ones find its memory."""
        pool = torch.cuda.graph_pool_handle()
        for done, size in enumerate(reversed(self._sizes)):
            progress(done, len(self._sizes))
            self._sample(self._forward(size), size)  # compiles and tunes what is not compiled yet
            torch.cuda.synchronize()
            forward, sample = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(forward, pool=pool):
                logits = self._forward(size)
            with torch.cuda.graph(sample, pool=pool):
                token_ids = self._sample(logits, size)
            self._captured[size] = Captured(forward, sample, logits, token_ids)
        progress(len(self._sizes), len(self._sizes))

    def size_for(self, inputs: StepInputs) -> int | None:
        """The graph that computes this step; None when it is no plain decode step, or too large."""
        count = len(inputs.slots)
        if len(inputs.token_ids) != count or len(inputs.sample_slots) != count or count > self._sizes[-1]:
            return None
        return next(size for size in self._sizes if size >= count)

    def forward(self, size: int, inputs: StepInputs, draws: Draws | None) -> Tensor:
        """Run the step's forward pass -> its logits [S, vocabulary], good until the next call.

        `draws` is what `sample` is going to draw with, if it is called.
        """
        self._attention.update_tables(inputs)
        count = len(inputs.slots)
        pinned = self._host_inputs[0]
        self._host_inputs.rotate(-1)
        sequences, part_numbers, length = cut_parts(inputs.context_lens, self._kv_heads, self._attention.num_sms)
        rows = pinned.numpy()
        rows[PART_LENGTH, 0] = length
        rows[PART_SEQUENCES, : len(sequences)] = sequences
        rows[PART_SEQUENCES, len(sequences) :] = -1
        rows[PART_NUMBERS, : len(sequences)] = part_numbers
        rows[:PART_LENGTH, count:size] = 0
        rows[SLOTS, count:size] = self._nobody
        rows = rows[:, :count]
        rows[TOKEN_IDS] = np.where(inputs.from_device, -1, inputs.token_ids)
        rows[SLOTS] = inputs.slots
        rows[POSITIONS] = inputs.positions
        rows[CONTEXTS] = inputs.context_lens
        if draws is not None:
            rows[TEMPERATURES] = draws.temperatures.view(np.int32)
            rows[NUMBERS] = draws.numbers.view(np.int32)
        self._inputs.copy_(pinned, non_blocking=True)
        captured = self._captured[size]
        captured.forward.replay()
        return captured.logits[:count]

    def sample(self, size: int, count: int) -> Tensor:
        """Sample from the logits of the last forward pass -> token ids [count], as `sample_plain`."""
        captured = self._captured[size]
        captured.sample.replay()
        return captured.token_ids[:count]

    def _forward(self, size: int) -> Tensor:
        inputs = self._inputs[:, :size]
        parts = self._inputs[:, : max_parts(size, self._kv_heads, self._attention.num_sms)]
        rows = DecodeRows(
            self._rows[:size], inputs[SLOTS], inputs[CONTEXTS], parts[PART_SEQUENCES], parts[PART_NUMBERS],
            self._inputs[PART_LENGTH, :1],
        )  # fmt: skip
        step = TritonAttentionStep(self._attention, self._cache, rows, None)
        token_ids = resolve_tokens(inputs[TOKEN_IDS], inputs[SLOTS], self._last_token)
        return self._model.forward(token_ids, inputs[POSITIONS], None, step)

    def _sample(self, logits: Tensor, size: int) -> Tensor:
        inputs = self._inputs[:, :size]
        temperatures, numbers = inputs[TEMPERATURES].view(torch.float32), inputs[NUMBERS].view(torch.float32)
        return sample_plain(logits, temperatures, numbers, inputs[SLOTS], self._last_token)
