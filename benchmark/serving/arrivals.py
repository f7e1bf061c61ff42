"""When requests arrive: at once, as a Poisson or another gamma process, or with a rate that ramps up.

The process is that of `vllm bench serve`: gaps are drawn from a gamma distribution of shape `burstiness` and mean
1 / rate, so 1 is a Poisson process, less is burstier, more is more even, and infinity is a clock. At a constant rate
all times are then scaled so that the last request arrives at N / rate: without that, the sum of the gaps would differ
by a per cent or two from seed to seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

UNLIMITED = math.inf


@dataclass(frozen=True, slots=True)
class Ramp:
    """A rate that grows from request to request, in requests a second."""

    strategy: str  # "linear" or "exponential"
    start_rps: float
    end_rps: float

    def rate(self, index: int, count: int) -> float:
        """The rate at which request `index` of `count` arrives."""
        progress = index / max(count - 1, 1)
        if self.strategy == "linear":
            return self.start_rps + (self.end_rps - self.start_rps) * progress
        return float(self.start_rps * (self.end_rps / self.start_rps) ** progress)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How requests arrive. A `ramp` takes the place of the constant rate."""

    rate: float = UNLIMITED  # requests a second
    burstiness: float = 1.0
    ramp: Ramp | None = None

    def times_s(self, count: int, rng: np.random.Generator) -> list[float]:
        """When each of `count` requests arrives, in seconds from the start, rising."""
        if self.ramp is None and self.rate == UNLIMITED:
            return [0.0] * count
        rates = np.array([self.ramp.rate(index, count) if self.ramp else self.rate for index in range(count)])
        even = self.burstiness == math.inf
        gaps = 1 / rates if even else rng.gamma(self.burstiness, 1 / (rates * self.burstiness))
        times = np.cumsum(gaps)
        if self.ramp is None and times[-1] > 0:
            times *= count / self.rate / times[-1]
        return [float(time) for time in times]
