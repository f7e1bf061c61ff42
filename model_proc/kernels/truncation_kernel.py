"""Where top-k, top-p and min-p cut a distribution, without sorting it and without asking the host (Triton).

Probabilities are not negative, so their order is that of their bits, and a threshold is found by searching the bits:
each pass over a row measures what lies above three candidates, which leaves a quarter of them. A row is read some
fifteen times by one program, from the second-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 8192  # probabilities that a program looks at together


@triton.jit
def _above(row, vocab_size, pivot, COUNTS: tl.constexpr, PIECE: tl.constexpr):
    """How many entries of a row are above `pivot`, or what they sum to."""
    columns = tl.arange(0, PIECE)
    acc = tl.zeros([PIECE], tl.float32)
    for start in range(0, vocab_size, PIECE):
        x = tl.load(row + start + columns, mask=start + columns < vocab_size, other=0.0)
        if COUNTS:
            acc += tl.where(x > pivot, 1.0, 0.0)
        else:
            acc += tl.where(x > pivot, x, 0.0)
    return tl.sum(acc, axis=0)


@triton.jit
def _lowest(row, vocab_size, highest, limit, COUNTS: tl.constexpr, PIECE: tl.constexpr):
    """The lowest value above which lies less than `limit`, found between 0 and `highest`, above which lies nothing."""
    columns = tl.arange(0, PIECE)
    low = tl.zeros([], tl.int32)
    high = highest.to(tl.int32, bitcast=True)
    while low < high:
        step = (high - low) // 4
        first = (low + step).to(tl.float32, bitcast=True)
        second = (low + 2 * step).to(tl.float32, bitcast=True)
        third = (low + 3 * step).to(tl.float32, bitcast=True)
        above_first = tl.zeros([PIECE], tl.float32)
        above_second = tl.zeros([PIECE], tl.float32)
        above_third = tl.zeros([PIECE], tl.float32)
        for start in range(0, vocab_size, PIECE):
            x = tl.load(row + start + columns, mask=start + columns < vocab_size, other=0.0)
            share = x
            if COUNTS:
                share = tl.full([PIECE], 1.0, tl.float32)
            above_first += tl.where(x > first, share, 0.0)
            above_second += tl.where(x > second, share, 0.0)
            above_third += tl.where(x > third, share, 0.0)
        fits_first = tl.sum(above_first, axis=0) < limit
        fits_second = tl.sum(above_second, axis=0) < limit
        fits_third = tl.sum(above_third, axis=0) < limit
        bottom = low
        low = tl.where(fits_first, bottom, tl.where(fits_second, bottom + step + 1, bottom + 2 * step + 1))
        low = tl.where(fits_third, low, bottom + 3 * step + 1)
        high = tl.where(fits_third, bottom + 3 * step, high)
        high = tl.where(fits_second, bottom + 2 * step, high)
        high = tl.where(fits_first, bottom + step, high)
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _thresholds(probs, top_k, top_p, min_p, out, vocab_size, PIECE: tl.constexpr):
    index = tl.program_id(0)
    row = probs + index.to(tl.int64) * vocab_size
    columns = tl.arange(0, PIECE)
    best = tl.zeros([PIECE], tl.float32)
    for start in range(0, vocab_size, PIECE):
        best = tl.maximum(best, tl.load(row + start + columns, mask=start + columns < vocab_size, other=0.0))
    highest = tl.max(best, axis=0)
    k, p = tl.load(top_k + index), tl.load(top_p + index)
    threshold = tl.load(min_p + index) * highest
    mass = 1.0 + highest * 0.0
    if k < vocab_size:
        cut = _lowest(row, vocab_size, highest, k.to(tl.float32), True, PIECE)
        threshold = tl.maximum(threshold, cut)
        # Of those that are as likely as the last one, only as many count as there are places.
        places = k.to(tl.float32) - _above(row, vocab_size, cut, True, PIECE)
        mass = _above(row, vocab_size, cut, False, PIECE) + places * cut
    if p < 1.0:
        threshold = tl.maximum(threshold, _lowest(row, vocab_size, highest, p * mass, False, PIECE))
    tl.store(out + index, threshold)


def thresholds(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """[S, 1]: the smallest probability that survives top_k, then top_p of what is left, and min_p.

    probs [S, vocabulary] float32, rows contiguous; top_k [S, 1] int64, the vocabulary's size being off; top_p and
    min_p [S, 1] float32.
    """
    rows, vocab_size = probs.shape
    out = torch.empty((rows, 1), dtype=torch.float32, device=probs.device)
    _thresholds[(rows,)](probs, top_k, top_p, min_p, out, vocab_size, PIECE=PIECE, num_warps=16)
    return out
