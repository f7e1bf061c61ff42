"""What counts as standing still."""

from __future__ import annotations

from benchmark.idle import gaps


def test_gaps_between_and_inside_of_steps() -> None:
    rows = [
        ("early", 0.0, 5.0),
        ("Memcpy DtoH (Device -> Pinned)", 5.0, 10.0),  # the measured time begins
        ("Memcpy HtoD", 12.0, 20.0),  # 2 between
        ("a", 20.0, 60.0),
        ("b", 40.0, 50.0),  # inside of another kernel
        ("c", 63.0, 80.0),  # 3 inside
        ("Memcpy DtoH (Device -> Pinned)", 80.0, 85.0),
        ("Memcpy DtoH (Device -> Pinned)", 86.0, 90.0),  # a second copy of the same step
        ("Memcpy HtoD", 90.0, 100.0),
        ("Memcpy DtoH (Device -> Pinned)", 100.0, 110.0),
        ("late", 300.0, 400.0),
    ]
    assert gaps(rows) == {"steps": 2, "step_ms": 0.05, "idle_between_steps": 0.02, "idle_inside_steps": 0.04}
