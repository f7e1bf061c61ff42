"""`quintet top` and the line in the log: what they say of a server's figures."""

from __future__ import annotations

import io
import logging
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from gateway.activity import Activity
from gateway.metrics.collect import collect
from gateway.metrics.figures import Figures
from gateway.top import NoEventsError, Screen, snapshots, sparkline, watch
from ipc.control_messages import Beat, SetLogLevel
from tests.gateway.scripted_ring import ScriptedRing

VIEW: dict[str, Any] = {
    "queues": {"waiting": 3, "held": 0, "prefill": 1, "decode": 6, "decode_ready": 0, "sequences": 10},
    "batch": {
        "budget": 100, "slots": 8, "lanes": 1, "steps": 12, "last": None,
        "in_flight": [{"step": 11, "prefills": 1, "decodes": 6, "prefill_tokens": 40, "decode_tokens": 6}],
    },
    "blocks": {
        "total": 64, "block_size": 16, "free": 40, "cached": 8, "in_use": 16, "shared": 4, "blocks_a_cell": 1,
        "cells": "0" * 64,
    },
    "sequences": [],
}  # fmt: skip


async def test_the_screen_shows_the_ring(ring: ScriptedRing, url: str, http: aiohttp.ClientSession) -> None:
    process = {
        "started_ns": 1, "loop_busy": 0.5, "rss_bytes": 64 << 20, "inbox_depth": 3, "inbox_peak": 9,
        "messages_in": 1234, "gc_pause_max_s": 0.004,
    }  # fmt: skip
    ring.view.update(Beat("scheduler", 9, {"process": process}))
    ring.watched = VIEW
    ring.script = lambda generate: ring.answer(generate, ["a", "b"])
    body = {"messages": [{"role": "user", "content": "Hello"}], "request_id": "mine"}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
    console = Console(width=120, record=True, file=io.StringIO())
    await watch(url, "", True, console)
    text = console.export_text()
    assert "tiny" in text
    row = next(line for line in text.splitlines() if line.startswith("scheduler"))
    assert row.split() == ["scheduler", "ready", "50", "%", "3", "9", "1234", "64", "MiB", "4", "ms"]
    assert "40 prefill + 6 decode of 100" in text
    assert "shared 4  in use 12  cached 8  free 40" in text
    assert any(line.split()[:2] == ["mine", "length"] for line in text.splitlines())


async def test_a_ring_that_is_not_ready_can_be_shown(ring: ScriptedRing, url: str) -> None:
    ring.set_states(scheduler="starting")
    console = Console(width=120, record=True, file=io.StringIO())
    await watch(url, "", True, console)
    assert "starting" in console.export_text()


async def test_no_server_is_a_sentence() -> None:
    with pytest.raises(NoEventsError, match="--url"):
        await anext(snapshots("http://127.0.0.1:9", ""))


def test_a_sparkline_is_as_high_as_its_values() -> None:
    screen = Screen()
    screen._rates.extend([0.0, 4.0, 8.0])
    assert sparkline(screen._rates) == " ▄█"


def figures(ring: ScriptedRing, **stats: Any) -> Figures:
    ring.view.update(Beat("scheduler", 1, stats))
    return collect(ring.view, ring.engine.observer.metrics, {})


def test_a_busy_server_says_so_and_an_idle_one_is_silent(ring: ScriptedRing, caplog: pytest.LogCaptureFixture) -> None:
    def tally(generated: int, ended: int) -> dict[str, Any]:
        return {"generated_tokens": generated, "step_tokens": {"prefill": 50}, "ends": {"stop": ended}}

    stats: dict[str, Any] = {"steps": 10, "tally": tally(100, 1), "blocks_total": 100}
    activity = Activity(lambda: figures(ring, **stats))
    with caplog.at_level(logging.INFO):
        activity.look(0.0)
        activity.look(10.0)
        assert caplog.messages == []
        stats |= {"steps": 30, "tally": tally(600, 6), "running": 4, "waiting": 2, "held": 1, "blocks_in_use": 25}
        stats |= {"prefix_queries": 200, "prefix_hits": 50}
        activity.look(20.0)
    assert caplog.messages == ["0.5 req/s, 0 prompt tok/s, 50 tok/s, running 4, waiting 3, KV 25.0 %, prefix hits 25 %"]


async def test_the_log_level_is_changed_everywhere(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.post("/log_level", json={"level": "debug"}) as response:
        assert response.status == 200
        answer = await response.json()
    assert answer == {"level": "debug", "processes": [*ring.view.states, "supervisor"]}
    assert sum(message == SetLogLevel("debug") for message in ring.sent) == 6
    async with http.post("/log_level", json={"level": "loud"}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "level"
