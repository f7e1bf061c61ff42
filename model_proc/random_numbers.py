"""Random numbers as a function of (seed, position), so that a seeded request gives the same tokens in any batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """One number in [0, 1) for each pair; both arguments [N].

    The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014),
    applied to the seed and then to the position's step from there.
    """
    with np.errstate(over="ignore"):
        state = _mix(seeds.astype(np.uint64)) + positions.astype(np.uint64) * _GOLDEN
        bits = _mix(state + _GOLDEN)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)  # 24 bits: exact, and always below 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
