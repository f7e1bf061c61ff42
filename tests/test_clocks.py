"""A clock that is set must not make anything early, late or negative: only the monotonic one measures."""

from __future__ import annotations

import ast

import pytest

from tests.test_rooms import ROOMS, ROOT, files_of

# What is shown to people as a date.
DATES = {
    "gateway/answer.py",
    "gateway/dialects/responses_answer.py",
    "gateway/inspection.py",
    "gateway/live.py",
    "gateway/ring.py",
    "gateway/tracing.py",
    "scheduler_proc/kv_publisher.py",
}


def uses_wall_clock(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns")


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "quintet"])
def test_no_room_measures_with_the_wall_clock(room: str) -> None:
    for path in files_of(room):
        if any(map(uses_wall_clock, ast.walk(ast.parse(path.read_text())))):
            assert str(path.relative_to(ROOT)) in DATES, path
