"""Greedy choice and plain draws for a whole batch, in two passes over the logits (Triton).

A draw is the inverse of the cumulative distribution in the order of the vocabulary, as in `model_proc.sampler`. The
first kernel cuts each row into pieces and notes the maximum and the sum of exponentials of each; the second finds the
piece in which a row's target falls, and in it the token. Bound by the memory that the logits come from, read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model_proc.kernels.launching import next_power_of_two

PIECE = 4096  # tokens of one program


@triton.jit
def _piece_stats(logits, temperatures, maxima, sums, places, vocab_size, PIECE: tl.constexpr, PIECES: tl.constexpr):
    row, piece = tl.program_id(0), tl.program_id(1)
    columns = piece * PIECE + tl.arange(0, PIECE)
    mask = columns < vocab_size
    x = tl.load(logits + row.to(tl.int64) * vocab_size + columns, mask=mask, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperatures + row)
    highest, place = tl.max(x, axis=0, return_indices=True)
    is_bad = tl.sum((x != x).to(tl.int32), axis=0) > 0
    shift = tl.where(highest == float("-inf"), 0.0, highest)  # a piece without any possible token
    total = tl.sum(tl.exp((x - shift) / tl.where(temperature > 0, temperature, 1.0)), axis=0)
    entry = row * PIECES + piece
    tl.store(maxima + entry, tl.where(is_bad, float("nan"), highest))
    tl.store(sums + entry, total)
    tl.store(places + entry, piece * PIECE + place)


@triton.jit
def _pick(
    logits, temperatures, numbers, slots, maxima, sums, places, tokens, last_token, vocab_size,
    PIECE: tl.constexpr, PIECES: tl.constexpr, PIECES_PAD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    pieces = tl.arange(0, PIECES_PAD)
    is_piece = pieces < PIECES
    highest = tl.load(maxima + row * PIECES + pieces, mask=is_piece, other=float("-inf"))
    is_bad = tl.sum((highest != highest).to(tl.int32), axis=0) > 0
    best, best_piece = tl.max(highest, axis=0, return_indices=True)
    is_finite = (best > float("-inf")) & (best < float("inf")) & (is_bad == 0)
    temperature = tl.load(temperatures + row)
    token = tl.load(places + row * PIECES + best_piece)
    if (temperature > 0) & is_finite:
        weights = tl.load(sums + row * PIECES + pieces, mask=is_piece, other=0.0)
        weights = tl.where(highest == float("-inf"), 0.0, weights * tl.exp((highest - best) / temperature))
        ends = tl.cumsum(weights, axis=0)
        total = tl.max(ends, axis=0)
        # The sums of a parallel scan need not rise, nor the target stay below the last of them: what is chosen is the
        # first entry with any weight behind whose end the target does not lie, else the last one with any weight.
        target = tl.load(numbers + row) * total
        last = tl.max(tl.where(weights > 0, pieces, 0), axis=0)
        piece = tl.minimum(last, tl.min(tl.where((ends > target) & (weights > 0), pieces, PIECES_PAD), axis=0))
        before = tl.sum(tl.where(pieces == piece, ends - weights, 0.0), axis=0)
        columns = piece * PIECE + tl.arange(0, PIECE)
        mask = columns < vocab_size
        x = tl.load(logits + row.to(tl.int64) * vocab_size + columns, mask=mask, other=float("-inf")).to(tl.float32)
        weights = tl.exp((x - best) / temperature)
        ends = tl.cumsum(weights, axis=0)
        last = tl.max(tl.where(weights > 0, columns, 0), axis=0)
        hit = tl.min(tl.where((ends > target - before) & (weights > 0), columns, vocab_size), axis=0)
        token = tl.minimum(last, hit)
    token = token.to(tl.int64)
    tl.store(tokens + row, tl.where(is_finite, token, -1))
    tl.store(last_token + tl.load(slots + row), tl.where(is_finite, token, 0))


@triton.jit
def _resolve(given, slots, last_token, tokens, n, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < n
    token = tl.load(given + rows, mask=mask, other=0).to(tl.int64)
    slot = tl.load(slots + rows, mask=mask, other=0)
    token = tl.where(token >= 0, token, tl.load(last_token + slot, mask=mask & (token < 0), other=0))
    tl.store(tokens + rows, token, mask=mask)


def sample_plain(logits: Tensor, temperatures: Tensor, numbers: Tensor, slots: Tensor, last_token: Tensor) -> Tensor:
    """One token of each row, without penalties or truncation; also put into `last_token` at the row's slot.

    logits [S, vocabulary], rows contiguous; temperatures [S] float32, 0 being greedy; numbers [S] float32, uniform in
    [0, 1); slots [S] integers. Returns the tokens [S] int64: -1 where the logits were not numbers; `last_token` gets 0
    there, which the next step can compute with.
    """
    rows, vocab_size = logits.shape
    pieces = triton.cdiv(vocab_size, PIECE)
    maxima, sums = torch.empty((2, rows, pieces), dtype=torch.float32, device=logits.device)
    places = torch.empty((rows, pieces), dtype=torch.int32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _piece_stats[rows, pieces](
        logits, temperatures, maxima, sums, places, vocab_size, PIECE=PIECE, PIECES=pieces, num_warps=8
    )
    _pick[(rows,)](
        logits, temperatures, numbers, slots, maxima, sums, places, tokens, last_token, vocab_size,
        PIECE=PIECE, PIECES=pieces, PIECES_PAD=next_power_of_two(pieces), num_warps=8,
    )  # fmt: skip
    return tokens


def resolve_tokens(given: Tensor, slots: Tensor, last_token: Tensor) -> Tensor:
    """The ids to compute: `given` [N], or where that is negative what `slots` [N] sampled last. Returns [N] int64."""
    tokens = torch.empty(len(given), dtype=torch.int64, device=given.device)
    _resolve[(triton.cdiv(len(given), 256),)](given, slots, last_token, tokens, len(given), BLOCK=256)
    return tokens
