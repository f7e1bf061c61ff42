"""Kinds of values on the benchmarks' command lines."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def counts(text: str) -> list[int]:
    """Such numbers, separated by commas."""
    return [count(part) for part in text.split(",")]


def positive(text: str) -> float:
    """A number above 0; infinity is one."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value
