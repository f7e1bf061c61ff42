"""Attention of sequences that compute one token each, over the paged cache (Triton).

The cached tokens of a sequence are cut into parts, and every part and KV head gets a program (flash-decoding, Dao et
al., 2023). How long a part is depends on all sequences of the step together, so that the device is filled and no long
sequence keeps it waiting. All query heads of the KV head are the rows of one small matrix, so that every key and value
is read once.
The program that finishes last joins the parts, so no second launch is needed. The kernel is bound by the memory that
keys and values come from.

On the way in, it applies the HeadTransform (norm, rotation) to its query heads, and the program that has the newest
token transforms that token's key too and writes both rows to the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model_proc.attention.paged import AttentionParams, HeadTransform
from model_proc.kernels.launching import INTERPRETED, launch_options, next_power_of_two


@triton.jit
def _heads(
    pointer, stride, weight, table, position, eps, dims, DIM: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_ROPE: tl.constexpr, rows, row_mask,
):  # fmt: skip
    """Heads [rows, dims] from memory in float32, normed and rotated."""
    mask = row_mask[:, None] & (dims < DIM)[None, :]
    x = tl.load(pointer + rows[:, None] * stride + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)
        x = x * scale[:, None] * tl.load(weight + dims, mask=dims < DIM, other=0.0).to(tl.float32)[None, :]
    if HAS_ROPE:
        half: tl.constexpr = DIM // 2
        partner = tl.where(dims < half, dims + half, dims - half)
        y = tl.load(pointer + rows[:, None] * stride + partner[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_NORM:
            y = y * scale[:, None] * tl.load(weight + partner, mask=dims < DIM, other=0.0).to(tl.float32)[None, :]
        angle = tl.where(dims < half, dims, dims - half)
        cos = tl.load(table + position * DIM + angle, mask=dims < DIM, other=0.0)
        sin = tl.load(table + position * DIM + half + angle, mask=dims < DIM, other=0.0)
        x = x * cos[None, :] + tl.where(dims < half, -y, y) * sin[None, :]
    return x


@triton.jit
def _tile(
    key_cache, value_cache, table, start, end, kv_head, num_kv_heads, dims,
    DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Keys and values [BLOCK_N, dims] of the cached tokens from `start` on, and which of them lie before `end`."""
    positions = start + tl.arange(0, BLOCK_N)
    seen = positions < end
    blocks = tl.load(table + positions // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
    rows = ((blocks * BLOCK_SIZE + positions % BLOCK_SIZE) * num_kv_heads + kv_head) * DIM
    places = rows[:, None] + dims[None, :]
    mask = seen[:, None] & (dims < DIM)[None, :]
    return tl.load(key_cache + places, mask=mask, other=0.0), tl.load(value_cache + places, mask=mask, other=0.0), seen


@triton.jit
def _absorb(q, k, v, seen, best, total, acc, softcap, HAS_SOFTCAP: tl.constexpr):
    """One more tile in the running softmax (Milakov and Gimelshein, 2018)."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_SOFTCAP:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    scores = tl.where(seen[None, :], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    weights = tl.exp(scores - new_best[:, None])
    correction = tl.exp(best - new_best)
    acc = acc * correction[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_best, total * correction + tl.sum(weights, axis=1), acc


@triton.jit
def _decode(
    query, key, value, out,  # [T, heads, dim], a row's heads side by side
    key_cache, value_cache,  # [rows, kv_heads, dim]
    tables,  # [slots, blocks] int32
    token_rows, slots, contexts,  # [B] int32
    part_sequences, part_numbers,  # [P] int32: whose part, and the how manieth; a sequence of -1 is padding
    part_length,  # [1] int32
    q_norm, k_norm, rope,
    part_out,  # [P, kv_heads, M, dim] float32
    part_stats,  # [P, kv_heads, 2, M] float32: maximum, sum
    arrivals,  # [B, kv_heads] int32, zero between launches
    scale, softcap, eps,
    query_stride, key_stride, value_stride, out_stride, table_stride,
    GROUP: tl.constexpr, M: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # Programs begin in the order of their parts; the heads of a token lie side by side in the cache.
    kv_head, part = tl.program_id(0), tl.program_id(1)
    num_kv_heads = tl.num_programs(0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    index = tl.load(part_sequences + part)
    if index < 0:  # padding need not wait for anything: it makes way at once
        return
    number = tl.load(part_numbers + part)
    length = tl.load(part_length)
    context = tl.load(contexts + index)
    row = tl.load(token_rows + index).to(tl.int64)
    table = tables + tl.load(slots + index).to(tl.int64) * table_stride
    newest = context - 1
    last_part = tl.maximum(1, tl.cdiv(newest, length)) - 1
    first, first_part = 0, 0
    if WINDOW > 0:
        first = tl.maximum(0, context - WINDOW)
        first_part = tl.minimum(first // length, last_part)
    begin = tl.maximum(number * length, first)
    end = tl.minimum(number * length + length, newest)
    dims = tl.arange(0, DIM_PAD)
    members = tl.arange(0, M)
    is_dim = dims < DIM
    # What the cache holds was written by earlier steps: only the step's own queries and keys have to be waited for.
    k, v, seen = _tile(
        key_cache, value_cache, table, begin, end, kv_head, num_kv_heads, dims, DIM, BLOCK_SIZE, BLOCK_N
    )  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
    if number < first_part:
        return

    heads = query + row * query_stride + kv_head * GROUP * DIM
    q = _heads(heads, DIM, q_norm, rope, newest, eps, dims, DIM, HAS_NORM, HAS_ROPE, members, members < GROUP)
    q = (q * scale).to(key_cache.dtype.element_ty)
    best = tl.full([M], -1.0e30, tl.float32)  # finite: a first tile may have nothing to see
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DIM_PAD], tl.float32)
    best, total, acc = _absorb(q, k, v, seen, best, total, acc, softcap, HAS_SOFTCAP)
    for start in range(begin + BLOCK_N, end, BLOCK_N):
        k, v, seen = _tile(
            key_cache, value_cache, table, start, end, kv_head, num_kv_heads, dims, DIM, BLOCK_SIZE, BLOCK_N
        )  # fmt: skip
        best, total, acc = _absorb(q, k, v, seen, best, total, acc, softcap, HAS_SOFTCAP)
    if number == last_part:
        # The newest token is not read from the cache: this program is the one that writes it there.
        one = tl.arange(0, 1)
        heads = key + row * key_stride + kv_head * DIM
        k_new = _heads(heads, DIM, k_norm, rope, newest, eps, dims, DIM, HAS_NORM, HAS_ROPE, one, one < 1)
        k_new = tl.sum(k_new, axis=0).to(key_cache.dtype.element_ty)
        v_new = tl.load(value + row * value_stride + kv_head * DIM + dims, mask=is_dim, other=0.0)
        block = tl.load(table + newest // BLOCK_SIZE).to(tl.int64)
        place = ((block * BLOCK_SIZE + newest % BLOCK_SIZE) * num_kv_heads + kv_head) * DIM + dims
        tl.store(key_cache + place, k_new, mask=is_dim)
        tl.store(value_cache + place, v_new, mask=is_dim)
        score = tl.sum(q.to(tl.float32) * k_new.to(tl.float32)[None, :], axis=1)
        if HAS_SOFTCAP:
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        new_best = tl.maximum(best, score)
        correction = tl.exp(best - new_best)
        weight = tl.exp(score - new_best)
        acc = acc * correction[:, None] + weight[:, None] * v_new.to(tl.float32)[None, :]
        total = total * correction + weight
        best = new_best

    out_places = out + row * out_stride + (kv_head * GROUP + members[:, None]) * DIM + dims[None, :]
    out_mask = (members < GROUP)[:, None] & is_dim[None, :]
    if first_part == last_part:
        tl.store(out_places, (acc / total[:, None]).to(out.dtype.element_ty), mask=out_mask)
        return
    place = (part * num_kv_heads + kv_head).to(tl.int64)
    in_part = members[:, None] * DIM_PAD + dims[None, :]
    is_member = members < GROUP
    tl.store(part_out + place * M * DIM_PAD + in_part, acc, mask=out_mask)
    tl.store(part_stats + place * 2 * M + members, best, mask=is_member)
    tl.store(part_stats + place * 2 * M + M + members, total, mask=is_member)
    # Every thread's stores must be done before one thread says that this part is there.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals + index * num_kv_heads + kv_head, 1, sem="acq_rel")
    if arrived == last_part - first_part:
        tl.store(arrivals + index * num_kv_heads + kv_head, 0)
        best = tl.full([M], -1.0e30, tl.float32)
        total = tl.zeros([M], tl.float32)
        acc = tl.zeros([M, DIM_PAD], tl.float32)
        for other in range(first_part, last_part + 1):
            place = ((part - number + other) * num_kv_heads + kv_head).to(tl.int64)
            # Written by other multiprocessors in this very launch: past the first-level cache.
            stats = part_stats + place * 2 * M + members
            part_best = tl.load(stats, mask=is_member, other=-1.0e30, cache_modifier=".cg")
            part_total = tl.load(stats + M, mask=is_member, other=1.0, cache_modifier=".cg")
            outs = part_out + place * M * DIM_PAD + in_part
            part_acc = tl.load(outs, mask=out_mask, other=0.0, cache_modifier=".cg")
            new_best = tl.maximum(best, part_best)
            correction = tl.exp(best - new_best)
            part_correction = tl.exp(part_best - new_best)
            acc = acc * correction[:, None] + part_acc * part_correction[:, None]
            total = total * correction + part_total * part_correction
            best = new_best
        tl.store(out_places, (acc / total[:, None]).to(out.dtype.element_ty), mask=out_mask)


@dataclass(slots=True)
class DecodeRows:
    """Which tokens of a step decode, and how `cut_parts` cut the work; all int32 on the device."""

    token_rows: Tensor  # [B] index among the step's tokens
    slots: Tensor  # [B] row of the block table
    contexts: Tensor  # [B] tokens of the sequence, the computed one included
    part_sequences: Tensor  # [P] which of the B; -1 is padding
    part_numbers: Tensor  # [P] the how manieth part of it
    part_length: Tensor  # [1] cached tokens of a part


class DecodeScratch:
    """What the parts of one decode launch are kept in until they are joined; one for all layers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[tuple[int, int, int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def parts(self, batch: int, parts: int, kv_heads: int, m: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, statistics and arrival counters of a launch of this shape. Kept: CUDA graphs hold on to them."""
        # Rounded up, so that the many shapes of steps outside graphs share a few.
        batch, parts = next_power_of_two(batch), next_power_of_two(parts)
        key = (batch, parts, kv_heads, m * dim)
        if key not in self._kept:
            out = torch.empty(parts * kv_heads * m * dim, dtype=torch.float32, device=self._device)
            stats = torch.empty(parts * kv_heads * 2 * m, dtype=torch.float32, device=self._device)
            self._kept[key] = out, stats, torch.zeros(batch * kv_heads, dtype=torch.int32, device=self._device)
        return self._kept[key]


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tables: Tensor,
    block_size: int,
    rows: DecodeRows,
    params: AttentionParams,
    transform: HeadTransform | None,
    scratch: DecodeScratch,
    pdl: bool = False,
) -> None:
    """Attend for `rows`; writes their rows of `out` and of the cache.

    query, out [T, heads, dim]; key, value [T, kv_heads, dim]; caches [rows, kv_heads, dim]; heads and dims contiguous.
    """
    batch, kv_heads, dim = len(rows.slots), key.shape[1], key.shape[2]
    group = query.shape[1] // kv_heads
    m, dim_pad = max(16, next_power_of_two(group)), next_power_of_two(dim)
    block_n, num_warps, num_stages = decode_blocks(batch * kv_heads, dim_pad * key.dtype.itemsize)
    num_parts = len(rows.part_sequences)
    part_out, part_stats, arrivals = scratch.parts(batch, num_parts, kv_heads, m, dim_pad)
    q_norm = k_norm = rope = None
    eps = 0.0
    if transform is not None:
        q_norm, k_norm, rope, eps = transform.q_norm, transform.k_norm, transform.rope, transform.eps
    _decode[kv_heads, num_parts](
        query, key, value, out, key_cache, value_cache, tables, rows.token_rows, rows.slots, rows.contexts,
        rows.part_sequences, rows.part_numbers, rows.part_length, q_norm, k_norm, rope, part_out, part_stats, arrivals,
        params.scale, params.softcap or 0.0, eps, query.stride(0), key.stride(0), value.stride(0), out.stride(0),
        tables.stride(0),
        GROUP=group, M=m, DIM=dim, DIM_PAD=dim_pad, BLOCK_SIZE=block_size, BLOCK_N=block_n,
        WINDOW=params.sliding_window or 0, HAS_NORM=q_norm is not None, HAS_ROPE=rope is not None,
        HAS_SOFTCAP=bool(params.softcap), PDL=pdl and not INTERPRETED, num_warps=num_warps, num_stages=num_stages,
        **launch_options(pdl),
    )  # fmt: skip


def decode_blocks(pairs: int, row_bytes: int) -> tuple[int, int, int]:
    """Cached tokens that a program looks at together, its warps, and how many pieces are on their way.

    `pairs` of a sequence and a KV head, each with rows of so many bytes: what measured best on an H200. Few pairs
    need quick programs.
    """
    if row_bytes > 512:
        return 32, 4, 2
    if row_bytes > 256:
        return 64, 4, 2
    if pairs <= 64:
        return 64, 8, 2
    return (64, 2, 2) if pairs <= 512 else (64, 4, 2)
