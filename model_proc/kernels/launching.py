"""What all Triton kernels here share."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter, on the CPU: how they are tested where there is no GPU."""


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`, which is at least 1."""
    return 1 << (value - 1).bit_length()


def launch_options(pdl: bool) -> dict[str, bool]:
    """What a kernel is launched with so that it may start before the one in front of it has ended."""
    return {} if INTERPRETED else {"launch_pdl": pdl}
