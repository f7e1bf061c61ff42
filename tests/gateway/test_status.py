"""The endpoints that run nothing: health, readiness, models, look-ups, loads, version."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

import aiohttp
import openai
import pytest

from gateway.app import build_app
from gateway.auth import KeyRing
from gateway.ring import RingView
from gateway.server import Port
from ipc.control_messages import Beat, Loading, RingState
from ipc.messages import Detokenize, Generate, LookUp, Refusal, Tokenize
from tests.gateway.scripted_ring import CONFIG, MODEL, NAMES, ScriptedRing

REFUSED = Refusal(400, "invalid_request_error", "the chat template refuses them", "messages")


@pytest.mark.asyncio
async def test_readiness_names_who_is_missing(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.get("/ready") as response:
        assert response.status == 200
    ring.set_states(model="starting")
    ring.view.update(Loading("loading weights", 3, 8))
    async with http.get("/ready") as response:
        assert response.status == 503
        assert "Retry-After" in response.headers
        answer = await response.json()
    assert "model is starting" in answer["error"]["message"]
    assert answer["error"]["type"] == "unavailable_error"
    assert (answer["states"]["model"], answer["states"]["scheduler"]) == ("starting", "ready")
    assert answer["loading"] == {"phase": "loading weights", "done": 3, "total": 8}
    async with http.get("/health") as response:
        assert (response.status, await response.read()) == (200, b"")
    ring.set_states()
    ring.view.draining = True
    async with http.get("/ready") as response:
        assert response.status == 503


@pytest.mark.asyncio
async def test_models(ring: ScriptedRing, client: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    models = (await client.models.list()).data
    assert [model.id for model in models] == ["tiny"]
    assert models[0].object == "model"
    assert models[0].to_dict()["max_model_len"] == 1000
    assert (await client.models.retrieve("tiny")).id == "tiny"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")
    ring.view.model = None
    async with http.get("/v1/models") as response:
        assert response.status == 503


@pytest.mark.asyncio
async def test_served_names(ring: ScriptedRing) -> None:
    """Several names serve the same model; the answer shows the one that was asked for."""
    view = RingView(["org/model", "alias"])
    view.update(MODEL)
    view.update(RingState(dict.fromkeys(NAMES, "ready")))
    port = Port(build_app(ring.engine, view, CONFIG, KeyRing([])))
    url = await port.open("127.0.0.1", 0)
    ring.script = lambda generate: ring.answer(generate, ["x"])
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["org/model", "alias"]
        async with http.get("/v1/models/org/model") as response:
            assert (await response.json())["id"] == "org/model"
        for body, name in (({}, "org/model"), ({"model": "alias"}, "alias")):
            async with http.post("/v1/completions", json={"prompt": "x"} | body) as response:
                assert (await response.json())["model"] == name
        async with http.post("/v1/completions", json={"prompt": "x", "model": "tiny"}) as response:
            assert response.status == 404
    await port.close()


@pytest.mark.asyncio
async def test_tokenize(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    cases: list[tuple[dict[str, Any], str | None, bool]] = [
        ({"prompt": "hi"}, "hi", True),
        ({"prompt": "", "add_special_tokens": False, "model": "tiny"}, "", False),
        ({"messages": [{"role": "user", "content": "hi"}]}, None, False),
    ]
    for body, text, special in cases:
        asking = asyncio.create_task(http.post("/tokenize", json=body))
        question = await ring.next(Tokenize)
        assert (question.text, question.add_special_tokens) == (text, special)
        assert (question.chat is None) == (text is not None)
        ring.engine.on_answer(LookUp(question.rid + 1, "", array("i"), None))  # somebody else's
        ring.engine.on_answer(LookUp(question.rid, "", array("i", [4, 5]), None))
        response = await asking
        assert await response.json() == {"count": 2, "max_model_len": 1000, "tokens": [4, 5]}
    assert ring.engine.in_flight()["look_ups"] == 0


@pytest.mark.asyncio
async def test_detokenize(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    for tokens in ([4, 5], []):
        asking = asyncio.create_task(http.post("/detokenize", json={"tokens": tokens}))
        question = await ring.next(Detokenize)
        assert question.token_ids.tolist() == tokens
        ring.engine.on_answer(LookUp(question.rid, "hi", array("i"), None))
        response = await asking
        assert await response.json() == {"prompt": "hi"}


@pytest.mark.asyncio
async def test_look_ups_that_are_refused(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    asking = asyncio.create_task(http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}))
    question = await ring.next(Tokenize)
    ring.engine.on_answer(LookUp(question.rid, "", array("i"), REFUSED))
    response = await asking
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "messages"


@pytest.mark.asyncio
async def test_bad_look_ups(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/tokenize", {"prompt": "a", "other": True}, "other"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [500]}, "tokens"),
    ]
    for path, body, param in cases:
        async with http.post(path, json=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == param
    assert ring.sent == []


@pytest.mark.asyncio
async def test_loads(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    stats = {"waiting_prefill": 4, "running_decode": 9, "ready_decode": 3, "running": 12, "steps_in_flight": 2}
    ring.view.update(Beat("scheduler", 7, {"running": 1, "lanes": 4}))
    ring.view.update(Beat("scheduler", 9, stats | {"lanes": 4}))
    waiting = asyncio.create_task(http.post("/v1/completions", json={"prompt": "x", "n": 3}))
    generate = await ring.next(Generate)
    async with http.get("/v1/loads") as response:
        answer = await response.json()
    assert answer["processes"]["scheduler"].pop("age_s") >= 0
    assert answer == {
        "prefill_queue_len": 4,
        "decode_queue_len": 3,
        "running_queue_len": 12,
        "inflight_requests": 1,
        "inflight_batches": 2,
        "busy_lanes": 2,
        "idle_lanes": 2,
        "processes": {"scheduler": {"progress": 9, "lanes": 4} | stats},
        "in_flight": {"requests": 1, "sequences": 3, "look_ups": 0},
    }
    ring.answer(generate, ["x"])
    (await waiting).release()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (None, (0, 0, 0)),  # no life sign yet
        ({}, (0, 0, 0)),  # it is still starting
        ({"steps_in_flight": 2, "lanes": 1}, (2, 1, 0)),  # one runs, the other waits for it
        ({"steps_in_flight": 0, "lanes": 1}, (0, 0, 1)),
    ],
)
async def test_lanes(
    ring: ScriptedRing, http: aiohttp.ClientSession, stats: dict[str, int] | None, expected: tuple[int, int, int]
) -> None:
    if stats is not None:
        ring.view.update(Beat("scheduler", 1, stats))
    async with http.get("/v1/loads") as response:
        answer = await response.json()
    assert (answer["inflight_batches"], answer["busy_lanes"], answer["idle_lanes"]) == expected
    assert (answer["prefill_queue_len"], answer["decode_queue_len"], answer["running_queue_len"]) == (0, 0, 0)


@pytest.mark.asyncio
async def test_version(http: aiohttp.ClientSession) -> None:
    async with http.get("/version") as response:
        assert list(await response.json()) == ["version"]
