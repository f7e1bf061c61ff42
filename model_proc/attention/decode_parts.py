"""How the cached tokens of decoding sequences are cut into parts that programs of a GPU work on side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_PART, MAX_PART = 64, 2048  # cached tokens of a part; MAX_PART gives way when there would be too many parts
PARTS_PER_SEQUENCE = 1  # beyond the first one, on average
PROGRAMS_PER_SM = 3  # that run at the same time


def max_parts(batch: int, kv_heads: int, num_sms: int) -> int:
    """How many parts `cut_parts` makes at most."""
    return batch + max(PARTS_PER_SEQUENCE * batch, -(-num_sms * PROGRAMS_PER_SM // kv_heads))


def cut_parts(
    contexts: NDArray[np.int64], kv_heads: int, num_sms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Cut the cached tokens of sequences into parts: of each part its sequence and number, and the length of all.

    Few tokens are cut into as many parts as the device runs at the same time; many into parts that are short beside the
    whole. A sequence without cached tokens has one part too. The parts of a sequence stand side by side, the longest
    sequence's first: what is begun last is short, so that the device is busy to the end.
    """
    batch = len(contexts)
    cached = contexts - 1
    total = int(cached.sum())
    even = min(MAX_PART, total * kv_heads // (num_sms * PROGRAMS_PER_SM))
    length = max(MIN_PART, even, -(-total // (max_parts(batch, kv_heads, num_sms) - batch)))
    length = -(-length // MIN_PART) * MIN_PART
    order = np.argsort(-cached, kind="stable")
    counts = np.maximum(1, -(-cached[order] // length))
    sequences = np.repeat(order, counts)
    return sequences, np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts), length
