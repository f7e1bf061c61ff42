"""Random numbers as a function of (seed, position), so that a seeded request gives the same tokens in any batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ONE, _LOW_BITS = np.uint64(1), np.uint64(40)
_SHIFTS = np.array([30, 27, 31], dtype=np.uint64)
_FACTORS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
_SCALE = np.float32(2**-24)


def seed_states(seeds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """What `uniform` starts from, one for each seed."""
    return _mix(seeds.astype(np.uint64))


def uniform(states: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """One number in [0, 1) for each pair of a seed's state and a position; both arguments [N].

    The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014),
    applied to the seed and then to the position's step from there.
    """
    bits = _mix(states + (positions.astype(np.uint64) + _ONE) * _GOLDEN)
    return (bits >> _LOW_BITS).astype(np.float32) * _SCALE  # 24 bits: exact, and always below 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])
