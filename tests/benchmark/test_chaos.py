"""The chaos runner: that it runs, that it would notice, and that a server keeps its word for a moment at least."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.chaos.__main__ import failures, main
from benchmark.chaos.clients import Load
from benchmark.chaos.watch import Watch
from benchmark.server import Server
from ipc.mock_vocabulary import WORDS

BODY = {"max_tokens": 3, "n": 2}
TEXT = "".join(WORDS[:3])
GOOD: dict[str, Any] = {
    "broken": [],
    "books": {"sequences": 0, "blocks_in_use": 0},
    "exit_code": 0,
    "left_processes": [],
    "left_sockets": False,
    "growth_counts": True,
    "kills": True,
    "growth": {"model": {"growth_percent": 1.0, "files_before": 20, "files_after": 20, "runs": 3}},
}


@pytest.mark.parametrize(
    ("texts", "ended", "errors", "count"),
    [
        ([TEXT, TEXT], [True, True], 0, 0),
        ([TEXT, ""], [True, False], 1, 0),
        ([TEXT, TEXT], [True, True], 1, 1),  # an end, and an error as well
        ([TEXT, TEXT[:4]], [True, False], 0, 1),  # no end
        ([TEXT, TEXT[:4]], [True, True], 0, 1),  # cut short
        ([TEXT, "A Wrong"], [True, False], 1, 1),
        ([TEXT, ""], [True, False], 2, 1),
    ],
)
def test_what_a_stream_may_be(texts: list[str], ended: list[bool], errors: int, count: int) -> None:
    load = Load("http://nowhere", seed=0)
    load._check_stream(texts, ended, errors, BODY)
    assert len(load.outcomes.broken) == count


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 0),
        ({"broken": ["a wrong text"]}, 1),
        ({"books": {"sequences": 0, "blocks_in_use": 4}}, 1),
        ({"books": {}}, 1),
        ({"exit_code": 1}, 1),
        ({"left_processes": ["quintet: model"]}, 1),
        ({"left_sockets": True}, 1),
        ({"growth": {"model": {"growth_percent": 9.0, "files_before": 20, "files_after": 60, "runs": 1}}}, 2),
        (
            {
                "growth_counts": False,
                "growth": {"m": {"growth_percent": 9.0, "files_before": 9, "files_after": 9, "runs": 1}},
            },
            0,
        ),
        ({"kills": False}, 1),  # it was started three times
    ],
)
def test_a_word_that_was_broken_is_found(change: dict[str, Any], count: int) -> None:
    assert len(failures(GOOD | change)) == count


def test_how_memory_moves() -> None:
    watch = Watch(Server())
    watch.samples["model"] = [(float(at), 50.0 + (at > 90) * 10, 20, 1 + (at >= 60)) for at in range(120)]
    assert watch.by_minute() == {"model": [50.0, 50.0]}
    moved = watch.growth(120.0)["model"]
    assert (moved["peak_mib_before"], moved["peak_mib_after"], moved["growth_percent"]) == (50.0, 60.0, 20.0)
    assert (moved["median_mib_before"], moved["median_mib_after"], moved["runs"]) == (50.0, 50.0, 2)


def test_a_short_run(tmp_path: Path) -> None:
    path = tmp_path / "chaos.json"
    assert main(["--minutes", "0.2", "--fault-every", "3", "--clients", "8", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["failures"] == []
    assert sum(found["faults"].values()) == 3
    assert found["ends"]["answered"] > 0
