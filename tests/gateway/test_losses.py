"""Which requests a gateway ends when a process of the ring is lost."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from ipc.control_messages import Held, Lost
from ipc.messages import STOP, Generate
from tests.gateway.answers import events_in, next_event
from tests.gateway.scripted_ring import ScriptedRing, head, tail

TEXT = "/v1/completions"


async def ask(ring: ScriptedRing, http: aiohttp.ClientSession) -> tuple[asyncio.Task[aiohttp.ClientResponse], int]:
    """A request that has been sent into the ring, and its rid."""
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x"}))
    return asking, (await ring.next(Generate)).rid


async def status_of(asking: asyncio.Task[aiohttp.ClientResponse]) -> int:
    return (await asking).status


@pytest.mark.asyncio
@pytest.mark.parametrize("held_first", [True, False])
async def test_a_lost_tokenizer_takes_only_what_it_was_at_work_on(
    ring: ScriptedRing, http: aiohttp.ClientSession, held_first: bool
) -> None:
    kept, kept_rid = await ask(ring, http)
    gone, _ = await ask(ring, http)
    held, lost = Held("tokenizer", 0, 0, [kept_rid]), Lost("tokenizer", 0, 9)
    if held_first:
        ring.engine.on_held(held)
        late, _ = await ask(ring, http)  # still sent to the dead run: the loss is not known yet
        ring.engine.on_lost(lost)
    else:
        ring.engine.on_lost(lost)
        ring.engine.on_held(held)
    assert await status_of(gone) == 503
    if held_first:
        assert await status_of(late) == 503
    after, after_rid = await ask(ring, http)  # goes to the successor
    ring.bring([head(kept_rid)], [(kept_rid, "a", [1])], [tail(kept_rid, 1)])
    ring.bring([head(after_rid)], [(after_rid, "b", [1])], [tail(after_rid, 1)])
    assert await status_of(kept) == 200
    assert await status_of(after) == 200


@pytest.mark.asyncio
async def test_a_lost_detokenizer_ends_what_had_begun_and_what_is_not_held(
    ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    begun, begun_rid = await ask(ring, http)
    waits, waits_rid = await ask(ring, http)
    gone, _ = await ask(ring, http)  # its end was in the detokenizer
    ring.bring([head(begun_rid)], [(begun_rid, "a", [1])])
    ring.engine.on_lost(Lost("detokenizer", 5, 9))
    assert await status_of(begun) == 503
    ring.engine.on_held(Held("detokenizer", 5, 0, [waits_rid]))
    assert await status_of(gone) == 503
    ring.num_texts = 0  # of its successor
    ring.bring([head(waits_rid)], [(waits_rid, "a", [1])], [tail(waits_rid, 1)])
    assert await status_of(waits) == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("process", ["scheduler", "model"])
async def test_a_lost_scheduler_or_model_ends_everything(
    ring: ScriptedRing, http: aiohttp.ClientSession, process: str
) -> None:
    asking, rid = await ask(ring, http)
    ring.engine.on_lost(Lost(process, 4, 9))
    response = await asking
    assert response.status == 503
    assert response.headers["Retry-After"]
    assert process in (await response.json())["error"]["message"]
    await ring.until(lambda: ring.aborted() == [rid])


@pytest.mark.asyncio
async def test_an_end_is_not_followed_by_another(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    """The last token and the loss reach the gateway together: the answer was complete."""
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x", "stream": True}))
    rid = (await ring.next(Generate)).rid
    ring.bring([head(rid)], [(rid, "a", [1])])
    stream = await asking
    await next_event(stream)
    ring.bring([], [(rid, "b", [2])], [tail(rid, 2, STOP)])
    ring.engine.on_lost(Lost("scheduler", 4, 9))
    events = events_in(await stream.read())
    assert [event["choices"][0]["finish_reason"] for event in events] == ["stop"]


@pytest.mark.asyncio
async def test_an_end_that_comes_behind_a_loss_does_not_count(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    """The loss comes first this time, and the last token before anybody has looked: one end, the error."""
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x", "stream": True, "n": 2}))
    rid = (await ring.next(Generate)).rid
    ring.bring([head(rid), head(rid + 1)], [(rid, "a", [1]), (rid + 1, "a", [1])])
    stream = await asking
    await next_event(stream)
    await next_event(stream)
    ring.bring([], [(rid, "b", [2])], [tail(rid, 2, STOP)])
    ring.engine.on_lost(Lost("scheduler", 4, 9))
    ring.bring([], [(rid + 1, "b", [2])], [tail(rid + 1, 2, STOP)])
    events = events_in(await stream.read())
    assert sum("error" in event for event in events) == 1
    ended = [choice["index"] for event in events for choice in event.get("choices", []) if choice["finish_reason"]]
    assert 1 not in ended


@pytest.mark.asyncio
async def test_what_the_scheduler_holds_and_nobody_wants_is_aborted_again(ring: ScriptedRing) -> None:
    ring.engine.on_lost(Lost("tokenizer", 0, 9))
    ring.engine.on_held(Held("tokenizer", 0, 0, [77, 78]))
    assert [message.rids for message in ring.asked] == [[77, 78]]  # type: ignore[union-attr]


@pytest.mark.asyncio
async def test_a_request_that_comes_while_a_process_is_lost_is_refused_though_it_was_let_in(
    ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    """Its body arrives slowly, and the process dies meanwhile."""

    async def body() -> object:
        yield b'{"prompt": '
        ring.set_states(scheduler="lost")
        yield b'"x"}'

    async with http.post(TEXT, data=body(), headers={"Content-Type": "application/json"}) as response:
        assert response.status == 503
        assert "scheduler is lost" in (await response.json())["error"]["message"]
    assert ring.sent == []


@pytest.mark.asyncio
async def test_health_fails_only_when_a_process_is_lost_for_good(
    ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    for state, status in (("lost", 200), ("starting", 200), ("failed", 503)):
        ring.set_states(model=state)
        async with http.get("/health") as response:
            assert response.status == status
        async with http.get("/ready") as response:
            assert response.status == 503
            assert f"model is {state}" in (await response.json())["error"]["message"]
