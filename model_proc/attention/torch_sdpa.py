"""Paged attention with PyTorch's scaled_dot_product_attention: the reference, and the way that runs everywhere.

Sequences that decode one token are padded to the longest of them and computed together; every prefill chunk is
computed on its own. Both gather their keys and values from the cache first, so a step moves every cached byte twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model_proc.attention.paged import AttentionParams, HeadTransform, KVCache
from model_proc.batch import Batch, StepInputs
from model_proc.kernels.ops import rms_norm
from model_proc.models.rope import rotate


class TorchAttention:
    """The AttentionBackend of this file."""

    def step(self, cache: KVCache, batch: Batch, inputs: StepInputs) -> TorchAttentionStep:
        return TorchAttentionStep(cache, batch, inputs)


@dataclass(slots=True)
class Group:
    """Sequences that are computed in one call: B of them, Q query tokens each, padded to L cached tokens."""

    rows: Tensor  # [B * Q] the queries among the step's tokens
    cache_rows: Tensor  # [B * L] the cached tokens
    query_positions: Tensor  # [B, Q]
    key_positions: Tensor  # [L]
    whole_prompt: bool  # every query sees just the step's own tokens up to itself: a plain causal mask


class TorchAttentionStep:
    """The AttentionStep of this file."""

    def __init__(self, cache: KVCache, batch: Batch, inputs: StepInputs) -> None:
        self._cache = cache
        self._device = cache.keys[0].device
        self._cache_slots = torch.from_numpy(batch.cache_rows(inputs)).to(self._device)
        self._positions = torch.from_numpy(inputs.positions).to(self._device)
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        ends = np.cumsum(inputs.query_lens)
        decodes = np.flatnonzero(inputs.query_lens == 1)
        self._groups = [self._group(batch, inputs, decodes, ends)] if len(decodes) else []
        self._groups += [
            self._group(batch, inputs, np.array([index]), ends) for index in np.flatnonzero(inputs.query_lens > 1)
        ]

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        params: AttentionParams,
        transform: HeadTransform | None = None,
    ) -> Tensor:
        if transform is not None:
            query = _transformed(query, transform.q_norm, transform, self._positions)
            key = _transformed(key, transform.k_norm, transform, self._positions)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._cache_slots] = key
        values[self._cache_slots] = value
        output = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        for index, group in enumerate(self._groups):
            batch, length = group.query_positions.shape[0], len(group.key_positions)
            # [B, heads, tokens, dim], as scaled_dot_product_attention wants it
            q = query[group.rows].view(batch, -1, *query.shape[1:]).transpose(1, 2)
            k = keys[group.cache_rows].view(batch, length, *keys.shape[1:]).transpose(1, 2)
            v = values[group.cache_rows].view(batch, length, *values.shape[1:]).transpose(1, 2)
            mask = self._mask(index, group, params.sliding_window)
            if params.softcap:
                attended = _softcapped_attention(q, k, v, mask, params)
            else:
                attended = scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, scale=params.scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )  # fmt: skip
            output[group.rows] = attended.transpose(1, 2).flatten(0, 1)
        return output

    def _group(self, batch: Batch, inputs: StepInputs, members: np.ndarray, ends: np.ndarray) -> Group:
        """`members` are indexes into the step's sequences that have equally many query tokens."""
        block_size = self._cache.block_size
        length = int(inputs.context_lens[members].max())
        num_blocks = -(-length // block_size)
        blocks = batch.block_table[inputs.slots[members], :num_blocks].astype(np.int64)  # stale ids behind the end
        cache_rows = (blocks[:, :, None] * block_size + np.arange(block_size)).reshape(len(members), -1)[:, :length]
        num_queries = int(inputs.query_lens[members[0]])
        rows = (ends[members] - num_queries)[:, None] + np.arange(num_queries)
        return Group(
            rows=torch.from_numpy(rows.ravel()).to(self._device),
            cache_rows=torch.from_numpy(cache_rows.ravel()).to(self._device),
            query_positions=torch.from_numpy(inputs.positions[rows]).to(self._device),
            key_positions=torch.arange(length, device=self._device),
            whole_prompt=num_queries == length,
        )

    def _mask(self, index: int, group: Group, window: int | None) -> Tensor | None:
        """[B, 1, Q, L]: which cached token each query sees; None for a plain causal mask. Made once a step."""
        if (index, window) not in self._masks:
            if group.whole_prompt and (window is None or window >= len(group.key_positions)):
                self._masks[index, window] = None
            else:
                query, key = group.query_positions[:, :, None], group.key_positions[None, None, :]
                mask = key <= query
                if window is not None:
                    mask &= key > query - window
                self._masks[index, window] = mask[:, None]
        return self._masks[index, window]


def _transformed(heads: Tensor, norm: Tensor | None, transform: HeadTransform, positions: Tensor) -> Tensor:
    """A HeadTransform applied to heads [T, heads, dim]."""
    if norm is not None:
        heads = rms_norm(heads, norm, transform.eps)
    if transform.rope is not None:
        heads = rotate(heads, transform.rope[positions]).to(heads.dtype)
    return heads


def _softcapped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, params: AttentionParams) -> Tensor:
    """Attention whose scores pass through softcap * tanh(score / softcap), as in Gemma 2."""
    assert params.softcap is not None
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.tanh(q @ k.transpose(2, 3) * params.scale / params.softcap) * params.softcap
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = scores.float().masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v
