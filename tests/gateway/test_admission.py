"""The gateway's own bound on what is under way, and when refused requests may come again."""

from __future__ import annotations

import asyncio

import aiohttp
import openai
import pytest
import pytest_asyncio

from ipc.messages import Generate, Refusal
from tests.gateway.scripted_ring import ScriptedRing, head, tail

TEXT = "/v1/completions"


@pytest_asyncio.fixture
async def ring() -> ScriptedRing:
    """A ring that takes three sequences before the first answer."""
    ring = ScriptedRing()
    ring.limit_under_way(3)
    return ring


@pytest.mark.asyncio
async def test_what_is_under_way_is_bounded_until_something_comes_back(
    ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    asking = [asyncio.create_task(http.post(TEXT, json={"prompt": "x"})) for _ in range(3)]
    generates = [await ring.next(Generate) for _ in asking]
    async with http.post(TEXT, json={"prompt": "y"}) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        assert response.headers["retry-after-ms"] == "1000"
    assert ring.sent == []
    ring.bring([head(generates[0].rid)])
    another = asyncio.create_task(http.post(TEXT, json={"prompt": "z"}))
    generates.append(await ring.next(Generate))
    asking[1].cancel()  # its client leaves
    await ring.until(lambda: ring.aborted() == [generates[1].rid])
    last = asyncio.create_task(http.post(TEXT, json={"prompt": "z"}))
    generates.append(await ring.next(Generate))
    for generate in generates:
        ring.bring([head(generate.rid)], [(generate.rid, "a", [1])], [tail(generate.rid, 1)])
    assert [(await each).status for each in (asking[0], asking[2], another, last)] == [200] * 4


@pytest.mark.asyncio
async def test_a_request_larger_than_the_bound_is_let_in_alone(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x", "n": 5}))
    ring.answer(await ring.next(Generate), ["a"])
    assert (await asking).status == 200


@pytest.mark.asyncio
async def test_a_refusal_of_the_scheduler_says_when_to_come_again(
    ring: ScriptedRing, client: openai.AsyncOpenAI
) -> None:
    refusal = Refusal(429, "overloaded_error", "the queue is full", retry_after_ms=7300)
    ring.script = lambda generate: ring.refuse(generate, refusal)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.completions.create(model="tiny", prompt="x")
    assert caught.value.response.headers["retry-after"] == "8"
    assert caught.value.response.headers["retry-after-ms"] == "7300"


@pytest.mark.asyncio
async def test_a_draining_server_says_when_it_is_over(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.view.drain(40.0)
    for path, data in ((TEXT, {"prompt": "x"}), ("/ready", None)):
        async with http.request("POST" if data else "GET", path, json=data) as response:
            assert response.status == 503
            assert 35 <= int(response.headers["Retry-After"]) <= 40
    ring.view.drain(1000.0)
    async with http.post(TEXT, json={"prompt": "x"}) as response:
        assert response.headers["Retry-After"] == "120"
