"""The products of a decoder layer for one token, each with what surrounds it (Triton).

A matrix-vector product is bound by the memory that the matrix comes from: each program reads a few rows of it whole.
The norm before a product is a factor of the sum (and a weight on each input), so it costs no pass of its own; the
activation and the residual sum behind it are done on the sums while they are in registers.

With programmatic dependent launch (PDL), a kernel starts while the one before it still runs: it loads its first piece
of the matrix, which nobody writes, and only then waits for its input.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model_proc.kernels.launching import INTERPRETED, launch_options, next_power_of_two


@triton.jit
def _matvec(
    x, norm, weight, bias, hidden, out,  # [K], [K], [N or 2N, K], [N or 2N], [N], [N]
    n, eps, scale,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ADDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = rows < n
    columns = tl.arange(0, BLOCK_K)
    places = weight + rows.to(tl.int64)[:, None] * K + columns[None, :]
    w = tl.load(places, mask=is_row[:, None] & (columns < K)[None, :], other=0.0)
    if GATED:
        up_places = places + n.to(tl.int64) * K
        u = tl.load(up_places, mask=is_row[:, None] & (columns < K)[None, :], other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        is_column = start + columns < K
        if start > 0:
            mask = is_row[:, None] & is_column[None, :]
            w = tl.load(places + start, mask=mask, other=0.0)
            if GATED:
                u = tl.load(up_places + start, mask=mask, other=0.0)
        v = tl.load(x + start + columns, mask=is_column, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += v * v
            v = v * tl.load(norm + start + columns, mask=is_column, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * v[None, :]
        if GATED:
            up_acc += u.to(tl.float32) * v[None, :]
    total = tl.sum(acc, axis=1)
    if GATED:
        up = tl.sum(up_acc, axis=1)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        total = total * factor
        if GATED:
            up = up * factor
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias + n + rows, mask=is_row, other=0.0).to(tl.float32)
    if GATED:
        total = total * tl.sigmoid(total) * up
    if ADDS:
        total = tl.load(hidden + rows, mask=is_row, other=0.0).to(tl.float32) + scale * total
    tl.store(out + rows, total.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def _norm_rows(x, norm, out, eps, K: tl.constexpr, K_PAD: tl.constexpr, PDL: tl.constexpr):
    """RMS norm of one row of [T, K]."""
    row = tl.program_id(0).to(tl.int64) * K
    columns = tl.arange(0, K_PAD)
    mask = columns < K
    weight = tl.load(norm + columns, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = tl.load(x + row + columns, mask=mask, other=0.0).to(tl.float32)
    v = v * tl.rsqrt(tl.sum(v * v, axis=0) / K + eps) * weight
    tl.store(out + row + columns, v.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gate_rows(gate_up, out, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """silu(gate) * up: a piece of one row of [T, 2 * K] -> [T, K]."""
    if PDL:
        tl.extra.cuda.gdc_wait()
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < K
    gate = tl.load(gate_up + row * 2 * K + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * K + K + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * K + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _embed_rows(table, token_ids, out, scale, K: tl.constexpr, K_PAD: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, K_PAD)
    token = tl.load(token_ids + row).to(tl.int64)
    v = tl.load(table + token * K + columns, mask=columns < K, other=0.0).to(tl.float32) * scale
    tl.store(out + row * K + columns, v.to(out.dtype.element_ty), mask=columns < K)


def matvec(
    x: Tensor, weight: Tensor, norm: Tensor | None = None, eps: float = 0.0, bias: Tensor | None = None,
    hidden: Tensor | None = None, scale: float = 1.0, gated: bool = False, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """One row: x [1, K] times weight [N, K] (or [2 * N, K] when gated) -> [1, N], in the dtype of x.

    With `norm` [K], x is normed before; with `bias` [N], it is added behind; gated, the first half is passed through
    SiLU and multiplied by the second. With `hidden` [1, N], the result is hidden + scale * product.
    """
    k = weight.shape[1]
    n = weight.shape[0] // (2 if gated else 1)
    out = torch.empty((1, n), dtype=x.dtype, device=x.device)
    block_n, block_k, num_warps = matvec_blocks(n, k, gated)
    _matvec[(triton.cdiv(n, block_n),)](
        x, norm, weight, bias, hidden, out, n, eps, scale, K=k, BLOCK_N=block_n, BLOCK_K=block_k,
        HAS_NORM=norm is not None, HAS_BIAS=bias is not None, GATED=gated, ADDS=hidden is not None,
        PDL=pdl and not INTERPRETED, num_warps=num_warps, **launch_options(pdl),
    )  # fmt: skip
    return out


def matvec_blocks(n: int, k: int, gated: bool) -> tuple[int, int, int]:
    """Rows and columns of a program's piece, and its warps: what measured best on an H200 for such a matrix."""
    if k <= 1024:
        if gated:
            return 4, min(512, next_power_of_two(k)), 2
        return (8 if n <= 8192 else 4), next_power_of_two(k), 4
    if k <= 4096:
        return 4, 2048, 8
    if gated:
        return 8, 1024, 4
    return (2, 1024, 2) if k <= 8192 else (2, 2048, 4)


def norm_rows(x: Tensor, norm: Tensor, eps: float, pdl: bool = False) -> Tensor:
    """RMS norm of the rows of x [T, K], accumulated in float32."""
    out = torch.empty_like(x)
    k = x.shape[1]
    _norm_rows[(x.shape[0],)](
        x, norm, out, eps, K=k, K_PAD=next_power_of_two(k), PDL=pdl and not INTERPRETED,
        num_warps=4 if k <= 4096 else 8, **launch_options(pdl),
    )  # fmt: skip
    return out


def gate_rows(gate_up: Tensor, pdl: bool = False) -> Tensor:
    """silu(gate) * up: [T, 2 * K] -> [T, K]."""
    rows, k = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, k), dtype=gate_up.dtype, device=gate_up.device)
    block = min(2048, next_power_of_two(k))
    _gate_rows[rows, triton.cdiv(k, block)](
        gate_up, out, K=k, BLOCK=block, PDL=pdl and not INTERPRETED, num_warps=4, **launch_options(pdl)
    )
    return out


def embed_rows(table: Tensor, token_ids: Tensor, scale: float) -> Tensor:
    """Rows of table [vocabulary, K], times `scale`: [T] -> [T, K]."""
    k = table.shape[1]
    out = torch.empty((len(token_ids), k), dtype=table.dtype, device=table.device)
    _embed_rows[(len(token_ids),)](table, token_ids, out, scale, K=k, K_PAD=next_power_of_two(k), num_warps=4)
    return out
