"""The stream of snapshots at /v1/events."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
import pytest

from gateway import live
from gateway.metrics.collect import collect
from gateway.metrics.requests import RequestMetrics
from gateway.metrics.series import Series
from gateway.server import Port
from ipc.config import GatewayConfig
from ipc.control_messages import Beat
from ipc.messages import Generate, Watch
from tests.gateway.scripted_ring import CONFIG, ScriptedRing

VIEW = {
    "queues": {"waiting": 1},
    "batch": {"budget": 64},
    "blocks": {"total": 4, "cells": "0123"},
    "sequences": [{"rid": 77, "id": "other", "choice": 1, "state": "decode", "received_ns": 5_000_000, "queued_ns": 0}],
}


async def snapshots(response: aiohttp.ClientResponse) -> Any:
    """The next snapshot of a stream."""
    assert (await response.content.readline()) == b"event: snapshot\n"
    data = await response.content.readline()
    assert (await response.content.readline()) == b"\n"
    return orjson.loads(data.removeprefix(b"data: "))


async def test_a_watcher_sees_the_ring(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, object]
) -> None:
    ring.view.update(Beat("scheduler", 9, {"process": {"started_ns": 1, "rss_bytes": 4096, "loop_busy": 0.5}}))
    ring.watched = VIEW
    async with http.get("/v1/events") as events:
        assert events.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        first = await snapshots(events)
        scheduler = next(process for process in first["processes"] if process["name"] == "scheduler")
        assert scheduler["state"] == "ready"
        assert (scheduler["progress"], scheduler["rss_bytes"], scheduler["loop_busy"]) == (9, 4096, 0.5)
        assert {process["name"] for process in first["processes"]} == set(ring.view.states)
        assert (first["queues"], first["batch"], first["blocks"]) == (VIEW["queues"], VIEW["batch"], VIEW["blocks"])
        assert first["requests"] == [
            {"id": "other", "index": 1, "state": "decode", "received_ms": 5.0, "queued_ms": None}
        ]
        assert first["ended"] == []

        asked = asyncio.create_task(
            http.post("/v1/chat/completions", json=chat_body | {"request_id": "mine"}).__aenter__()
        )
        generate = await ring.next(Generate)
        second = await snapshots(events)
        while len(second["requests"]) < 2:
            second = await snapshots(events)
        assert second["requests"][1]["id"] == "mine"
        assert second["requests"][1]["state"] == "tokenizing"

        ring.answer(generate, ["a", "b"])
        (await asked).release()
        third = await snapshots(events)
        while not third["ended"]:
            third = await snapshots(events)
        [ended] = third["ended"]
        assert (ended["id"], ended["reason"], ended["output_tokens"]) == ("mine", "length", 2)
        assert ended["tokenized_ms"] == 2.0
        assert ended["first_token_ms"] == 6.0
        assert (await snapshots(events))["ended"] == []  # each is told once


async def test_nobody_is_asked_when_nobody_watches(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    assert not any(isinstance(question, Watch) for question in ring.asked)
    async with http.get("/v1/events") as events:
        await snapshots(events)
    async with http.get("/v1/events") as events:
        await snapshots(events)
    count = sum(isinstance(question, Watch) for question in ring.asked)
    await asyncio.sleep(2 * live.INTERVAL_S)
    assert sum(isinstance(question, Watch) for question in ring.asked) <= count + 1  # one may have been under way


async def test_a_ring_that_is_not_ready_can_be_watched(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.set_states(scheduler="starting", model="lost")
    async with http.get("/v1/events") as events:
        first = await snapshots(events)
    assert (first["queues"], first["blocks"], first["requests"]) == (None, None, [])
    assert {process["name"]: process["state"] for process in first["processes"]}["model"] == "lost"


async def test_streams_end_when_the_port_closes(ring: ScriptedRing, port: Port) -> None:
    url = await port.open("127.0.0.1", 0)
    async with aiohttp.ClientSession(url) as http, http.get("/v1/events") as events:
        await snapshots(events)
        async with asyncio.timeout(1.5):  # less than handlers get to finish
            await port.close()
        assert (await events.content.read()).count(b"event") <= 1


async def test_there_is_an_end_to_watchers(http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_WATCHERS", 1)
    async with http.get("/v1/events") as events:
        await snapshots(events)
        async with http.get("/v1/events") as refused:
            assert refused.status == 503


@pytest.mark.parametrize("config", [replace(CONFIG, api_key=["secret"])])
async def test_it_needs_the_key(http: aiohttp.ClientSession, config: GatewayConfig) -> None:
    async with http.get("/v1/events") as refused:
        assert refused.status == 401
    async with http.get("/v1/events", headers={"Authorization": "Bearer secret"}) as events:
        assert events.status == 200


async def test_a_point_of_the_plots_is_what_happened_lately(ring: ScriptedRing) -> None:
    metrics, series = RequestMetrics(), Series()
    tally = {"generated_tokens": 100, "step_tokens": {"prefill": 40}, "ends": {"stop": 1}}
    ring.view.update(Beat("scheduler", 1, {"steps": 10, "tally": tally}))
    first = series.point(collect(ring.view, metrics, {}), 0)
    assert first["generated_tokens_s"] == 0.0
    assert first["itl_ms"] is None
    tally = {"generated_tokens": 150, "step_tokens": {"prefill": 40}, "ends": {"stop": 3}}
    ring.view.update(Beat("scheduler", 2, {"steps": 30, "tally": tally}))
    metrics._observe("inter_token", 0.02)
    second = series.point(collect(ring.view, metrics, {}), 500_000_000)
    assert (second["generated_tokens_s"], second["requests_s"], second["steps_s"]) == (100.0, 4.0, 40.0)
    assert second["itl_ms"]["mean"] == 20.0
    assert 15 < second["itl_ms"]["p50"] <= 20
