"""Paged attention with Triton kernels of our own: what a GPU uses."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_proc.attention.decode_kernel import DecodeRows, DecodeScratch, decode_attention
from model_proc.attention.decode_parts import cut_parts
from model_proc.attention.dense_prefill import attend_densely, group_prompts
from model_proc.attention.paged import AttentionParams, HeadTransform, KVCache, LayerShape
from model_proc.attention.prefill_kernel import BLOCK_M, PrefillRows, Prepared, prefill_attention, prepare
from model_proc.batch import Batch, StepInputs
from model_proc.kernels.launching import next_power_of_two
from model_proc.staging import upload

INTERPRETER_SMS = 2  # as if a GPU of this size were interpreted: several splits, little work


MAX_ROW_BYTES = 512  # of one head's key: what the shared memory of a multiprocessor has room for


def supports(shape: LayerShape, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such a layer."""
    padded = next_power_of_two(shape.key_dim) * dtype.itemsize
    return shape.key_dim == shape.value_dim and shape.key_dim % 8 == 0 and padded <= MAX_ROW_BYTES


class TritonAttention:
    """The AttentionBackend of this file. It keeps the block tables on the device, brought up to date by every step."""

    def __init__(self, batch: Batch, device: torch.device, pdl: bool = False) -> None:
        self.tables = torch.zeros(batch.block_table.shape, dtype=torch.int32, device=device)  # [slots, blocks]
        is_gpu = device.type == "cuda"
        self.num_sms = torch.cuda.get_device_properties(device).multi_processor_count if is_gpu else INTERPRETER_SMS
        self.scratch = DecodeScratch(device)
        self.pdl = pdl
        self.uses_dense = False  # whether whole long prompts go to cuDNN; whoever made its plans sets it

    def update_tables(self, inputs: StepInputs) -> None:
        """Put the blocks that sequences got with this step into the tables."""
        if len(inputs.table_places):
            places, blocks = upload((inputs.table_places, inputs.table_blocks), self.tables.device)
            self.tables.view(-1)[places] = blocks.int()

    def step(self, cache: KVCache, batch: Batch, inputs: StepInputs) -> TritonAttentionStep:
        self.update_tables(inputs)
        is_decode = inputs.query_lens == 1
        device = self.tables.device
        decodes = self._decode_rows(cache, inputs, np.flatnonzero(is_decode)) if is_decode.any() else None
        prefills = None if is_decode.all() else _prefill_rows(batch, inputs, is_decode, self.uses_dense, device)
        return TritonAttentionStep(self, cache, decodes, prefills)

    def _decode_rows(self, cache: KVCache, inputs: StepInputs, members: NDArray[np.int64]) -> DecodeRows:
        """The sequences `members` of the step, which compute one token each."""
        contexts = inputs.context_lens[members]
        last_rows = np.cumsum(inputs.query_lens)[members] - 1
        sequences, numbers, length = cut_parts(contexts, cache.keys[0].shape[1], self.num_sms)
        arrays = (last_rows, inputs.slots[members], contexts, sequences, numbers, np.array([length]))
        return DecodeRows(*upload(arrays, self.tables.device, torch.int32))


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
        rows = self._prefills
        out: Tensor | None = None
        if rows is not None:
            prepared = prepare(query, key, value, keys, values, rows, transform)
            attended = self._attend_densely(prepared, rows, params) if rows.dense else None
            if attended is not None and rows.is_whole_step:
                return attended
            out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
            if attended is not None:
                out[rows.token_rows[: rows.num_dense_tokens]] = attended[rows.out_rows[: rows.num_dense_tokens]]
            if len(rows.slots):
                prefill_attention(prepared.query, out, keys, values, tables, block_size, rows, params)
        if self._decodes is not None:
            backend = self._backend
            out = torch.empty(query.shape, dtype=query.dtype, device=query.device) if out is None else out
            decode_attention(
                query, key, value, out, keys, values, tables, block_size, self._decodes, params, transform,
                backend.scratch, backend.pdl,
            )  # fmt: skip
        assert out is not None
        return out

    @staticmethod
    def _attend_densely(prepared: Prepared, rows: PrefillRows, params: AttentionParams) -> Tensor:
        return attend_densely(prepared.query, prepared.key, prepared.value, rows.dense, params)


def _packed(heads: Tensor) -> Tensor:
    """Heads [T, heads, dim] with a row's heads side by side, as the kernels read them."""
    return heads if heads.stride()[1:] == (heads.shape[2], 1) else heads.contiguous()


def _prefill_rows(
    batch: Batch, inputs: StepInputs, is_decode: NDArray[np.bool_], uses_dense: bool, device: torch.device
) -> PrefillRows:
    """The sequences of the step that compute more than one token: whole long prompts first, then the others."""
    chunks = np.flatnonzero(~is_decode)
    lens, contexts = inputs.query_lens[chunks], inputs.context_lens[chunks]
    is_candidate = (lens == contexts) & uses_dense
    dense, places = group_prompts(np.where(is_candidate, lens, 0))
    num_dense = sum(group.count * group.length for group in dense)
    first = np.full(len(chunks), -1, dtype=np.int64)  # where each chunk's queries go
    for index, row in places:
        first[index] = row
    paged = np.flatnonzero(first < 0)
    paged_lens = lens[paged]
    first[paged] = num_dense + np.cumsum(paged_lens) - paged_lens
    order = np.concatenate([np.array([index for index, _ in places], dtype=np.int64), paged])  # dense ones first
    starts = np.cumsum(inputs.query_lens)[chunks] - lens
    within = np.arange(lens.sum()) - np.repeat(np.cumsum(lens[order]) - lens[order], lens[order])
    tokens = np.repeat(starts[order], lens[order]) + within
    tiles = -(-paged_lens // BLOCK_M)
    tile_sequences = np.repeat(np.arange(len(paged)), tiles)
    tile_starts = (np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * BLOCK_M
    arrays = (
        tokens, np.repeat(first[order], lens[order]) + within, batch.cache_rows(inputs)[tokens],
        inputs.positions[tokens], tile_sequences, tile_starts, first[paged], starts[paged], inputs.slots[chunks[paged]],
        paged_lens, contexts[paged],
    )  # fmt: skip
    num_dense_tokens = int(lens[order[: len(places)]].sum())
    in_order = bool((np.diff(tokens) == 1).all())
    return PrefillRows(
        num_dense + int(paged_lens.sum()),
        num_dense,
        num_dense_tokens,
        dense,
        num_dense == num_dense_tokens == len(inputs.token_ids) and in_order,
        *upload(arrays, device, torch.int32),
    )
