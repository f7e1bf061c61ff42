"""GET /v1/requests/{id} and /flush_cache: questions to the scheduler, and what the gateway adds to the answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from gateway import engine
from gateway.errors import ApiError
from ipc.messages import FlushCache, Generate, Inspect, Report
from tests.gateway.answers import events_in, next_event
from tests.gateway.scripted_ring import MS, ScriptedRing, head, tail

TEXT = "/v1/completions"


def reported(rid: int, choice: int, received_ns: int, **fields: Any) -> dict[str, Any]:
    """What the scheduler says of a sequence: queued after 3 ms, its first step planned after 4 ms."""
    return {
        "rid": rid,
        "choice": choice,
        "state": "decode",
        "in_step": True,
        "queue_position": None,
        "prompt_tokens": 40,
        "computed_tokens": 42,
        "cached_tokens": 16,
        "output_tokens": 3,
        "blocks": 3,
        "slot": 5,
        "preemptions": 1,
        "priority": 0,
        "received_ns": received_ns,
        "tokenized_ns": received_ns + 2 * MS,
        "queued_ns": received_ns + 3 * MS,
        "scheduled_ns": received_ns + 4 * MS,
        "first_token_ns": received_ns + 6 * MS + 1500,
        "finished_ns": 0,
        "finish_reason": "",
    } | fields


def shown(rid: int, prompt: int, choice: int, sent_tokens: int | None, **fields: Any) -> dict[str, Any]:
    """What the client gets to see of that."""
    return {
        "prompt": prompt,
        "choice": choice,
        "rid": rid,
        "state": "decode",
        "in_step": True,
        "queue_position": None,
        "prompt_tokens": 40,
        "computed_tokens": 42,
        "cached_tokens": 16,
        "output_tokens": 3,
        "blocks": 3,
        "slot": 5,
        "preemptions": 1,
        "priority": 0,
        "tokenized_ms": 2.0,
        "queued_ms": 3.0,
        "scheduled_ms": 4.0,
        "first_token_ms": 6.002,
        "finished_ms": None,
        "finish_reason": "",
        "sent_tokens": sent_tokens,
    } | fields


async def inspect(http: aiohttp.ClientSession, name: str) -> dict[str, Any]:
    async with http.get(f"/v1/requests/{name}") as response:
        assert response.status == 200, await response.text()
        return await response.json()


@pytest.mark.asyncio
async def test_a_stream_that_runs(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "a", [1, 2])])
    body = {"prompt": "x", "stream": True, "request_id": "r1", "metadata": {"label": "blue"}}
    async with http.post(TEXT, json=body) as response:
        await next_event(response)
        generate = await ring.next(Generate)
        ring.reports["r1"] = [reported(generate.rid, 0, generate.received_ns)]
        answer = await inspect(http, "cmpl-r1")
        assert abs(answer.pop("created") - time.time()) < 60
        assert answer.pop("age_ms") > 0
        assert answer == {
            "id": "r1",
            "object": "request",
            "model": "tiny",
            "stream": True,
            "metadata": {"label": "blue"},
            "unsent_bytes": 0,
            "sequences": [shown(generate.rid, 0, 0, sent_tokens=2)],
        }
        ring.bring(tails=[tail(generate.rid, 2)])
        assert events_in(await response.read())


@pytest.mark.asyncio
async def test_what_the_scheduler_does_not_know_yet_is_being_tokenized(
    ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": ["x", "y"], "n": 2, "request_id": "r1"}))
    first, second = await ring.next(Generate), await ring.next(Generate)
    places = [(first.rid, 0, 0), (first.rid + 1, 0, 1), (second.rid, 1, 0), (second.rid + 1, 1, 1)]
    tokenizing = [
        {"prompt": prompt, "choice": choice, "rid": rid, "state": "tokenizing", "sent_tokens": 0}
        for rid, prompt, choice in places
    ]
    answer = await inspect(http, "r1")
    assert answer["sequences"] == tokenizing
    assert (answer["stream"], answer["metadata"], answer["unsent_bytes"]) == (False, None, 0)
    # The second prompt was the faster one, and its first choice has come to its end.
    ring.reports["r1"] = [reported(second.rid + choice, choice, second.received_ns) for choice in (1, 0)]
    ring.bring(heads=[head(second.rid)], rows=[(second.rid, "abc", [1])], tails=[tail(second.rid, 1)])
    answer = await inspect(http, "r1")
    assert answer["unsent_bytes"] == 3
    assert answer["sequences"] == [
        *tokenizing[:2],
        shown(second.rid, 1, 0, sent_tokens=0),
        shown(second.rid + 1, 1, 1, sent_tokens=0),
    ]
    # It remembers some that have ended, but not for ever.
    ring.reports["r1"] = []
    assert [each["state"] for each in (await inspect(http, "r1"))["sequences"]] == [
        "tokenizing",
        "tokenizing",
        "finished",
        "tokenizing",
    ]
    ring.answer(first, ["a"])
    ring.answer(second, ["b"])
    (await asking).release()


@pytest.mark.asyncio
async def test_one_that_has_ended(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    """The gateway holds it no more; the scheduler remembers it for a while."""
    received_ns = time.monotonic_ns() - 5000 * MS
    end: dict[str, Any] = {"state": "finished", "slot": None, "finish_reason": "stop"}
    ring.reports["r1"] = [
        reported(rid, choice, received_ns, finished_ns=received_ns + 90 * MS, **end)
        for rid, choice in ((72, 0), (71, 1), (73, 1), (70, 0))
    ]
    answer = await inspect(http, "r1")
    assert 5000 <= answer["age_ms"] < 65_000
    assert abs(answer["created"] - (time.time() - 5)) < 60
    assert (answer["model"], answer["stream"], answer["metadata"], answer["unsent_bytes"]) == ("tiny", None, None, None)
    assert answer["sequences"] == [
        shown(rid, prompt, choice, None, finished_ms=90.0, **end)
        for rid, prompt, choice in ((70, 0, 0), (71, 0, 1), (72, 1, 0), (73, 1, 1))
    ]


@pytest.mark.asyncio
async def test_of_several_with_one_name_it_is_the_newest(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.reports["r1"] = [reported(5, 0, 1000), reported(9, 0, 3000), reported(7, 0, 2000)]
    assert [each["rid"] for each in (await inspect(http, "r1"))["sequences"]] == [9]
    tasks = [asyncio.create_task(http.post(TEXT, json={"prompt": "x", "request_id": "r1"})) for _ in range(2)]
    older, newer = await ring.next(Generate), await ring.next(Generate)
    assert [each["rid"] for each in (await inspect(http, "r1"))["sequences"]] == [newer.rid]
    for generate in (older, newer):
        ring.answer(generate, ["a"])
    for task in tasks:
        (await task).release()


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["r1", "50% sure/of?it#now", "cmpl-", "chatcmpl-x", "cmpl-chatcmpl-x"])
@pytest.mark.parametrize("prefix", ["", "cmpl-", "chatcmpl-"])
async def test_names_with_and_without_their_prefix(
    ring: ScriptedRing, http: aiohttp.ClientSession, name: str, prefix: str
) -> None:
    ring.reports[name] = [reported(5, 0, 1000)]
    answer = await inspect(http, quote(prefix + name, safe=""))
    assert answer["id"] == name


@pytest.mark.asyncio
async def test_nobody_is_called_so(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    for name in ("r1", "cmpl-r1", "x" * 5000):
        async with http.get(f"/v1/requests/{name}") as response:
            assert response.status == 404
            error = (await response.json())["error"]
        assert (error["type"], error["param"], error["code"]) == ("not_found_error", None, 404)
        assert name[:90] in error["message"]
    assert {question.request_id for question in ring.asked if isinstance(question, Inspect)} >= {"r1", "cmpl-r1"}
    assert ring.sent == [], "the tokenizer has nothing to do with it"
    assert ring.engine.in_flight()["look_ups"] == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_flush_cache(ring: ScriptedRing, http: aiohttp.ClientSession, method: str) -> None:
    asking = asyncio.create_task(http.request(method, "/flush_cache"))
    await ring.until(lambda: len(ring.asked) == 1)
    [question] = ring.asked
    assert isinstance(question, FlushCache)
    ring.engine.on_answer(Report(question.rid + 1, {"blocks": 9}))  # somebody else's
    ring.report(question.rid, {"blocks": 12})
    response = await asking
    assert (response.status, await response.json()) == (200, {"blocks": 12})


@pytest.mark.asyncio
async def test_to_look_is_not_to_flush(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.head("/flush_cache") as response:
        assert response.status == 405
        assert set(response.headers["Allow"].split(",")) == {"GET", "POST"}
    assert ring.asked == []


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/flush_cache", "/v1/requests/r1"])
class TestNoAnswer:
    async def test_while_the_scheduler_is_not_there(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str
    ) -> None:
        for state in ("starting", "lost"):
            ring.set_states(scheduler=state)
            async with http.get(path) as response:
                assert response.status == 503
                assert (await response.json())["error"]["message"] == f"the scheduler is {state}"
        assert ring.asked == []

    async def test_a_scheduler_that_does_not_answer(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "REPORT_PATIENCE_S", 0.01)
        monkeypatch.setattr(ring, "report", lambda rid, body: None)
        async with http.get(path) as response:
            assert response.status == 503
            assert "no answer within 0.01 s" in (await response.json())["error"]["message"]
        assert ring.engine.in_flight()["look_ups"] == 0

    async def test_a_ring_that_is_lost_meanwhile(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ring, "report", lambda rid, body: None)
        asking = asyncio.create_task(http.get(path))
        await ring.until(lambda: len(ring.asked) == 1)
        ring.engine.fail_all(ApiError(503, "the server has lost a process"))
        response = await asking
        assert response.status == 503
        assert "lost a process" in await response.text()


@pytest.mark.asyncio
async def test_a_request_can_be_looked_at_while_the_server_drains(
    ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    ring.view.draining = True
    ring.reports["r1"] = [reported(5, 0, 1000)]
    assert (await inspect(http, "r1"))["id"] == "r1"
