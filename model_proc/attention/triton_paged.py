"""Paged attention with Triton kernels of our own: what a GPU uses."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_proc.attention.decode_kernel import DecodeRows, DecodeScratch, decode_attention
from model_proc.attention.paged import AttentionParams, HeadTransform, KVCache
from model_proc.attention.prefill_kernel import BLOCK_M, PrefillRows, prefill_attention, prepare
from model_proc.batch import Batch, StepInputs
from model_proc.staging import upload

INTERPRETER_SMS = 2  # as if a GPU of this size were interpreted: several splits, little work


class TritonAttention:
    """The AttentionBackend of this file. It keeps the block tables on the device, brought up to date by every step."""

    def __init__(self, batch: Batch, device: torch.device, pdl: bool = False) -> None:
        self.tables = torch.zeros(batch.block_table.shape, dtype=torch.int32, device=device)  # [slots, blocks]
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else None
        self.scratch = DecodeScratch(device, num_sms or INTERPRETER_SMS)
        self.pdl = pdl

    def update_tables(self, inputs: StepInputs) -> None:
        """Put the blocks that sequences got with this step into the tables."""
        if len(inputs.table_places):
            places, blocks = upload((inputs.table_places, inputs.table_blocks), self.tables.device)
            self.tables.view(-1)[places] = blocks.int()

    def step(self, cache: KVCache, batch: Batch, inputs: StepInputs) -> TritonAttentionStep:
        self.update_tables(inputs)
        decodes, prefills = _rows(inputs, self.tables.device)
        return TritonAttentionStep(self, cache, decodes, prefills)


class TritonAttentionStep:
    """The AttentionStep of this file: the sequences that decode in one launch, the others in another."""

    def __init__(
        self, backend: TritonAttention, cache: KVCache, decodes: DecodeRows | None, prefills: PrefillRows | None
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._decodes = decodes
        self._prefills = prefills

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        params: AttentionParams,
        transform: HeadTransform | None = None,
    ) -> Tensor:
        keys, values, block_size = self._cache.keys[layer], self._cache.values[layer], self._cache.block_size
        tables = self._backend.tables
        query, key, value = _packed(query), _packed(key), _packed(value)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if self._prefills is not None:
            prepared = prepare(query, key, value, keys, values, self._prefills, transform)
            prefill_attention(prepared, out, keys, values, tables, block_size, self._prefills, params)
        if self._decodes is not None:
            backend = self._backend
            decode_attention(
                query, key, value, out, keys, values, tables, block_size, self._decodes, params, transform,
                backend.scratch, backend.pdl,
            )  # fmt: skip
        return out


def _packed(heads: Tensor) -> Tensor:
    """Heads [T, heads, dim] with a row's heads side by side, as the kernels read them."""
    return heads if heads.stride()[1:] == (heads.shape[2], 1) else heads.contiguous()


def _rows(inputs: StepInputs, device: torch.device) -> tuple[DecodeRows | None, PrefillRows | None]:
    """The step's sequences by kind, uploaded in one piece."""
    ends = np.cumsum(inputs.query_lens)
    is_decode = inputs.query_lens == 1
    decodes, prefills = np.flatnonzero(is_decode), np.flatnonzero(~is_decode)
    arrays: list[NDArray[np.int64]] = [ends[decodes] - 1, inputs.slots[decodes], inputs.context_lens[decodes]]
    if len(prefills):
        lens = inputs.query_lens[prefills]
        tokens = np.flatnonzero(np.repeat(~is_decode, inputs.query_lens))
        tiles = -(-lens // BLOCK_M)
        tile_sequences = np.repeat(np.arange(len(prefills)), tiles)
        tile_starts = (np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * BLOCK_M
        arrays += [
            tokens, inputs.cache_slots[tokens], inputs.positions[tokens], tile_sequences, tile_starts,
            ends[prefills] - lens, inputs.slots[prefills], lens, inputs.context_lens[prefills],
        ]  # fmt: skip
    uploaded = upload(arrays, device, torch.int32)
    return (
        DecodeRows(*uploaded[:3]) if len(decodes) else None,
        PrefillRows(*uploaded[3:]) if len(prefills) else None,
    )
