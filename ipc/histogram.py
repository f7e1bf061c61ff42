"""Counts of values by size: what a process collects of something that happens often, and its beats carry away."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


class Histogram:
    """A bucket for the values up to each of the rising `bounds`, and one for the values above them all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total: float = 0.0  # of the values

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or as many equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def export(self) -> dict[str, Any]:
        """As plain data, with its bounds, so that whoever gets it need not know them."""
        return {"bounds": list(self.bounds), "counts": self.counts.copy(), "sum": float(self.total)}
