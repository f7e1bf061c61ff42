"""Attention of prefill chunks over the paged cache, and the kernel that fills the cache before it (Triton).

A program computes a tile of queries of one head against all keys that they see (FlashAttention-2, Dao, 2023). The
chunk's own keys are read from the cache too, so a cached prefix is nothing special. Bound by the matrix units where
chunks are long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model_proc.attention.dense_prefill import Group
from model_proc.attention.paged import AttentionParams, HeadTransform
from model_proc.kernels.launching import next_power_of_two

BLOCK_M = 128  # queries of one program


@triton.jit(do_not_specialize=["num_dense"])
def _prepare(
    query, key, value,  # [T, heads, dim]
    query_out, key_out, value_out,  # [N and padding, heads, dim]
    key_cache, value_cache,  # [rows, kv_heads, dim]
    token_rows, out_rows, cache_rows, positions,  # [N] int32
    num_dense,
    q_norm, k_norm, rope, eps,
    query_stride, key_stride, value_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    HEADS_PAD: tl.constexpr, KV_PAD: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ROPE: tl.constexpr,
):  # fmt: skip
    """One token: its queries and keys transformed, its key and value put into the cache."""
    index = tl.program_id(0)
    row = tl.load(token_rows + index).to(tl.int64)
    out_row = tl.load(out_rows + index).to(tl.int64)
    place = tl.load(cache_rows + index).to(tl.int64) * KV_HEADS * DIM
    position = tl.load(positions + index)
    dims = tl.arange(0, DIM_PAD)
    is_dim = dims < DIM
    half: tl.constexpr = DIM // 2
    partner = tl.where(dims < half, dims + half, dims - half)
    angle = tl.where(dims < half, dims, dims - half)
    if HAS_ROPE:
        cos = tl.load(rope + position * DIM + angle, mask=is_dim, other=0.0)[None, :]
        sin = tl.load(rope + position * DIM + half + angle, mask=is_dim, other=0.0)
        sin = tl.where(dims < half, -sin, sin)[None, :]

    heads = tl.arange(0, HEADS_PAD)
    mask = (heads < HEADS)[:, None] & is_dim[None, :]
    source = query + row * query_stride + heads[:, None] * DIM
    x = tl.load(source + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None]
        x = x * scale * tl.load(q_norm + dims, mask=is_dim, other=0.0).to(tl.float32)[None, :]
    if HAS_ROPE:
        y = tl.load(source + partner[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_NORM:
            y = y * scale * tl.load(q_norm + partner, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        x = x * cos + y * sin
    target = query_out + out_row * HEADS * DIM + heads[:, None] * DIM + dims[None, :]
    tl.store(target, x.to(query_out.dtype.element_ty), mask=mask)

    heads = tl.arange(0, KV_PAD)
    mask = (heads < KV_HEADS)[:, None] & is_dim[None, :]
    source = key + row * key_stride + heads[:, None] * DIM
    x = tl.load(source + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None]
        x = x * scale * tl.load(k_norm + dims, mask=is_dim, other=0.0).to(tl.float32)[None, :]
    if HAS_ROPE:
        y = tl.load(source + partner[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_NORM:
            y = y * scale * tl.load(k_norm + partner, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        x = x * cos + y * sin
    target = place + heads[:, None] * DIM + dims[None, :]
    tl.store(key_cache + target, x.to(key_cache.dtype.element_ty), mask=mask)
    v = tl.load(value + row * value_stride + heads[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
    tl.store(value_cache + target, v.to(value_cache.dtype.element_ty), mask=mask)
    if out_row < num_dense:
        target = out_row * KV_HEADS * DIM + heads[:, None] * DIM + dims[None, :]
        tl.store(key_out + target, x.to(key_out.dtype.element_ty), mask=mask)
        tl.store(value_out + target, v, mask=mask)


@triton.jit
def _attend(
    q, best, total, acc, positions, context, begin, end,
    key_cache, value_cache, table, kv_head, num_kv_heads, dims, scale, softcap,
    DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """The queries at `positions` [M] against the cached tokens from `begin` to `end`."""
    is_dim = (dims < DIM)[None, :]
    for start in range(begin, end, BLOCK_N):
        cached = start + tl.arange(0, BLOCK_N)
        blocks = tl.load(table + cached // BLOCK_SIZE, mask=cached < context, other=0).to(tl.int64)
        rows = ((blocks * BLOCK_SIZE + cached % BLOCK_SIZE) * num_kv_heads + kv_head) * DIM
        mask = is_dim
        if MASKED:
            mask = mask & (cached < context)[:, None]
        k = tl.load(key_cache + rows[:, None] + dims[None, :], mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if HAS_SOFTCAP:
            cap = softcap * 1.4426950408889634
            scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)
        if MASKED:
            seen = cached[None, :] <= positions[:, None]
            if WINDOW > 0:
                seen = seen & (cached[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, -1.0e30)
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_best[:, None])
        correction = tl.exp2(best - new_best)
        v = tl.load(value_cache + rows[:, None] + dims[None, :], mask=mask, other=0.0)
        acc = acc * correction[:, None]
        acc += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * correction + tl.sum(weights, axis=1)
        best = new_best
    return best, total, acc


@triton.jit
def _prefill(
    query,  # [N and padding, heads, dim]
    out,  # [T, heads, dim]
    key_cache, value_cache,  # [rows, kv_heads, dim]
    tables,  # [slots, blocks] int32
    tile_sequences, tile_starts,  # [tiles] int32: which sequence, and from which of its queries on
    query_rows, first_rows, slots, query_lens, contexts,  # [B] int32
    scale, softcap, query_stride, out_stride, table_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    num_kv_heads = tl.num_programs(1) // GROUP
    sequence = tl.load(tile_sequences + tile)
    start = tl.load(tile_starts + tile)
    query_len, context = tl.load(query_lens + sequence), tl.load(contexts + sequence)
    table = tables + tl.load(slots + sequence).to(tl.int64) * table_stride
    offsets = start + tl.arange(0, BLOCK_M)
    rows = tl.load(query_rows + sequence).to(tl.int64) + offsets
    dims = tl.arange(0, DIM_PAD)
    mask = (offsets < query_len)[:, None] & (dims < DIM)[None, :]
    q = tl.load(query + rows[:, None] * query_stride + head * DIM + dims[None, :], mask=mask, other=0.0)
    scale = scale * 1.4426950408889634  # log2(e): powers of two are cheaper than powers of e
    computed = context - query_len
    positions = computed + offsets
    best = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM_PAD], tl.float32)
    end = tl.minimum(computed + start + BLOCK_M, context)
    lowest = 0
    whole = (computed + start) // BLOCK_N * BLOCK_N  # every query of the tile sees all tokens before this one
    if WINDOW > 0:
        lowest = tl.maximum(0, computed + start - WINDOW + 1) // BLOCK_N * BLOCK_N
        whole = lowest
    best, total, acc = _attend(
        q, best, total, acc, positions, context, lowest, whole, key_cache, value_cache, table, head // GROUP,
        num_kv_heads, dims, scale, softcap, DIM, BLOCK_SIZE, BLOCK_N, False, WINDOW, HAS_SOFTCAP,
    )  # fmt: skip
    best, total, acc = _attend(
        q, best, total, acc, positions, context, whole, end, key_cache, value_cache, table, head // GROUP,
        num_kv_heads, dims, scale, softcap, DIM, BLOCK_SIZE, BLOCK_N, True, WINDOW, HAS_SOFTCAP,
    )  # fmt: skip
    rows = tl.load(first_rows + sequence).to(tl.int64) + offsets
    target = out + rows[:, None] * out_stride + head * DIM + dims[None, :]
    tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)


@dataclass(slots=True)
class PrefillRows:
    """Which tokens of a step are prefill chunks; all tensors int32 on the device.

    Transformed queries lie in an order of their own: first the groups of `dense`, then the chunks that the paged kernel
    computes.
    """

    num_rows: int  # queries, padding included
    num_dense: int  # of them in `dense`
    num_dense_tokens: int  # tokens that those are for: the first ones of the N
    dense: list[Group]
    is_whole_step: bool  # the dense groups without padding are the step's tokens, in their order
    token_rows: Tensor  # [N] index among the step's tokens
    out_rows: Tensor  # [N] where their queries go
    cache_rows: Tensor  # [N] where their keys and values go in the cache
    positions: Tensor  # [N]
    tile_sequences: Tensor  # [tiles] which of the B paged chunks each tile of BLOCK_M queries belongs to
    tile_starts: Tensor  # [tiles] the tile's first query within it
    query_rows: Tensor  # [B] a chunk's first query
    first_rows: Tensor  # [B] its first row among the step's tokens
    slots: Tensor  # [B]
    query_lens: Tensor  # [B]
    contexts: Tensor  # [B] tokens of the sequence, the chunk included


@dataclass(slots=True)
class Prepared:
    """A layer's transformed heads in the order of PrefillRows."""

    query: Tensor  # [num_rows, heads, dim]
    key: Tensor  # [num_dense, kv_heads, dim]
    value: Tensor  # [num_dense, kv_heads, dim]


def prepare(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, rows: PrefillRows,
    transform: HeadTransform | None,
) -> Prepared:  # fmt: skip
    """Transform the heads of `rows` and fill the cache."""
    heads, (kv_heads, dim) = query.shape[1], key.shape[1:]
    # Padding is multiplied by 0, which makes nothing of a number, but not of what is no number.
    new = torch.empty if rows.num_dense == rows.num_dense_tokens else torch.zeros
    prepared = Prepared(
        new((rows.num_rows, heads, dim), dtype=query.dtype, device=query.device),
        new((rows.num_dense, kv_heads, dim), dtype=query.dtype, device=query.device),
        new((rows.num_dense, kv_heads, dim), dtype=query.dtype, device=query.device),
    )
    q_norm = k_norm = rope = None
    eps = 0.0
    if transform is not None:
        q_norm, k_norm, rope, eps = transform.q_norm, transform.k_norm, transform.rope, transform.eps
    _prepare[(len(rows.token_rows),)](
        query, key, value, prepared.query, prepared.key, prepared.value, key_cache, value_cache, rows.token_rows,
        rows.out_rows, rows.cache_rows, rows.positions, rows.num_dense, q_norm, k_norm, rope, eps, query.stride(0),
        key.stride(0), value.stride(0),
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, DIM_PAD=next_power_of_two(dim),
        HEADS_PAD=next_power_of_two(heads), KV_PAD=next_power_of_two(kv_heads), HAS_NORM=q_norm is not None,
        HAS_ROPE=rope is not None, num_warps=4 if heads * dim <= 4096 else 8,
    )  # fmt: skip
    return prepared


def prefill_attention(
    query: Tensor, out: Tensor, key_cache: Tensor, value_cache: Tensor, tables: Tensor, block_size: int,
    rows: PrefillRows, params: AttentionParams,
) -> None:  # fmt: skip
    """Attend for the paged chunks of `rows`, whose keys are in the cache already; writes their rows of `out`.

    query [num_rows, heads, dim] as `prepare` made it; out [T, heads, dim]; caches [rows, kv_heads, dim].
    """
    kv_heads, dim = key_cache.shape[1:]
    dim_pad = next_power_of_two(dim)
    block_n, num_stages = _keys_at_once(dim_pad * key_cache.dtype.itemsize)
    _prefill[len(rows.tile_sequences), query.shape[1]](
        query, out, key_cache, value_cache, tables, rows.tile_sequences, rows.tile_starts, rows.query_rows,
        rows.first_rows, rows.slots, rows.query_lens, rows.contexts, params.scale, params.softcap or 0.0,
        query.stride(0), out.stride(0), tables.stride(0),
        GROUP=query.shape[1] // kv_heads, DIM=dim, DIM_PAD=dim_pad, BLOCK_SIZE=block_size,
        BLOCK_M=BLOCK_M, BLOCK_N=block_n, WINDOW=params.sliding_window or 0, HAS_SOFTCAP=bool(params.softcap),
        num_warps=8, num_stages=num_stages,
    )  # fmt: skip


def _keys_at_once(row_bytes: int) -> tuple[int, int]:
    """How many keys a program looks at together, and how many such pieces are on their way: as shared memory allows."""
    if row_bytes <= 256:
        return 128, 3
    return 32, 3
