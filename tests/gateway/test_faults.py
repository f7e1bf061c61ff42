"""Clients that leave or do not read, sequences that fail, a ring that is not there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from yarl import URL

from gateway import server, streams
from gateway.errors import ApiError
from gateway.server import Connection, Port
from ipc.messages import ABORT, ERROR, LENGTH, Abort, Generate, Refusal
from tests.gateway.answers import events_in, next_event
from tests.gateway.scripted_ring import PATIENCE_S, ScriptedRing, head, tail

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OVERLOADED = Refusal(429, "overloaded_error", "1024 requests are waiting")
TOO_LONG = Refusal(400, "invalid_request_error", "900 + 200 tokens are more than 1000", "max_tokens")


async def send(url: str, body: dict[str, Any], receive_buffer: int = 0) -> socket.socket:
    """A request on a bare socket, whose reader reads nothing unless told to."""
    bare = socket.socket()
    if receive_buffer:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    bare.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(bare, (URL(url).host, URL(url).port))
    data = orjson.dumps(body)
    head_lines = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    await loop.sock_sendall(bare, head_lines.encode() + b"\r\n\r\n" + data)
    return bare


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no message announces."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


# -- refusals that come round the ring -------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("refusal", [OVERLOADED, TOO_LONG], ids=["429", "400"])
async def test_a_refusal_before_the_first_token_is_the_status(
    ring: ScriptedRing, http: aiohttp.ClientSession, stream: bool, refusal: Refusal
) -> None:
    ring.script = lambda generate: ring.refuse(generate, refusal)
    async with http.post(TEXT, json={"prompt": "x", "stream": stream, "n": 2}) as response:
        assert response.status == refusal.status
        assert (await response.json())["error"] == {
            "message": refusal.message,
            "type": refusal.kind,
            "param": refusal.param or None,
            "code": refusal.status,
        }
        if refusal.status == 429:
            assert response.headers["Retry-After"] == "1"
            assert response.headers["retry-after-ms"] == "1000"
    assert ring.engine.in_flight() == {"requests": 0, "sequences": 0, "look_ups": 0}
    assert ring.aborted() == []


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [False, True])
async def test_one_refused_prompt_refuses_the_request(
    ring: ScriptedRing, http: aiohttp.ClientSession, stream: bool
) -> None:
    def script(generate: Generate) -> None:
        if generate.text == "long":
            ring.refuse(generate, TOO_LONG)

    ring.script = script
    async with http.post(TEXT, json={"prompt": ["short", "long"], "n": 2, "stream": stream}) as response:
        assert response.status == 400
    assert len(ring.aborted()) == 2, "what was not refused is aborted"


@pytest.mark.asyncio
async def test_a_failure_after_the_first_token_is_an_event(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    def script(generate: Generate) -> None:
        ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "a", [1])])

    ring.script = script
    stream = await client.completions.create(model="tiny", prompt="x", stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError) as caught:  # noqa: PT012 - the events before the error are part of it
        async for chunk in stream:
            assert chunk.choices[0].finish_reason is None
            texts.append(chunk.choices[0].text)
            if texts == ["a"]:
                rid = (await ring.next(Generate)).rid
                refusal = Refusal(500, "server_error", "the step failed")
                ring.bring(rows=[(rid, "b", [1])], tails=[tail(rid, 2, ERROR, refusal=refusal)])
    assert texts == ["a", "b"]
    assert caught.value.message == "the step failed"


@pytest.mark.asyncio
async def test_a_failed_stream_is_well_formed(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "a", [1])])
    body = {"prompt": "x", "stream": True, "n": 2, "stream_options": {"include_usage": True}}
    async with http.post(TEXT, json=body) as response:
        await next_event(response)
        rid = (await ring.next(Generate)).rid
        ring.bring(tails=[tail(rid, 1, ERROR, refusal=Refusal(500, "server_error", "the step failed"))])
        rest = events_in(await response.read())
    assert rest[-1]["error"]["message"] == "the step failed"
    assert all("usage" not in event or event["usage"] is None for event in rest)
    assert ring.aborted() == [rid + 1]


@pytest.mark.asyncio
async def test_an_abort_that_nobody_asked_for_is_a_failure(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], tails=[tail(generate.rid, 0, ABORT)])
    async with http.post(TEXT, json={"prompt": "x"}) as response:
        assert response.status == 500
        assert (await response.json())["error"]["type"] == "server_error"


@pytest.mark.asyncio
async def test_late_and_duplicate_news_is_ignored(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    def script(generate: Generate) -> None:
        rid = generate.rid
        ring.bring(heads=[head(999)], rows=[(999, "never asked for", [1])], tails=[tail(999, 1)])
        ring.bring(heads=[head(rid)], rows=[(rid, "a", [1])], tails=[tail(rid, 1), tail(rid, 9, LENGTH)])
        ring.bring(heads=[head(rid)], rows=[(rid, "late", [1])], tails=[tail(rid, 2)])

    ring.script = script
    async with http.post(TEXT, json={"prompt": "x", "stream": True}) as response:
        events = events_in(await response.read())
    assert [event["choices"][0]["text"] for event in events] == ["a"]
    assert [event["choices"][0]["finish_reason"] for event in events] == ["stop"]


@pytest.mark.asyncio
async def test_a_bug_in_a_handler_is_a_500_and_no_more(
    ring: ScriptedRing, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> bytes:
        raise ZeroDivisionError("secret")

    ring.script = lambda generate: ring.answer(generate, ["a", "b"])
    monkeypatch.setattr("gateway.completions.CompletionAnswer._choice", fail)
    async with http.post(TEXT, json={"prompt": "x"}) as response:
        assert response.status == 500
        assert "secret" not in await response.text()
    async with http.post(TEXT, json={"prompt": "x", "stream": True}) as response:
        events = events_in(await response.read())
    assert events[-1]["error"]["code"] == 500
    assert ring.engine.in_flight()["requests"] == 0


# -- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("started", [False, True])
async def test_a_client_that_leaves_aborts_its_request(
    ring: ScriptedRing, url: str, stream: bool, started: bool
) -> None:
    bare = await send(url, {"prompt": ["x", "y"], "n": 2, "stream": stream})
    first = await ring.next(Generate)
    if started:
        ring.bring(heads=[head(first.rid)], rows=[(first.rid, "a", [1])])
        if stream:
            await asyncio.get_running_loop().sock_recv(bare, 1)
        ring.bring(rows=[(first.rid, "b", [2])], tails=[tail(first.rid, 2)])
    bare.close()
    expected = set(range(first.rid, first.rid + 4)) - ({first.rid} if started else set())
    await ring.until(lambda: set(ring.aborted()) == expected)
    await until(lambda: ring.engine.in_flight() == {"requests": 0, "sequences": 0, "look_ups": 0})


@pytest.mark.asyncio
async def test_a_client_that_leaves_after_the_end_aborts_nothing(ring: ScriptedRing, url: str) -> None:
    ring.script = lambda generate: ring.answer(generate, ["a", "b"])
    bare = await send(url, {"prompt": "x", "stream": True})
    await asyncio.get_running_loop().sock_recv(bare, 1)
    bare.close()
    await until(lambda: ring.engine.in_flight()["requests"] == 0)
    assert ring.aborted() == []


# -- clients that do not read ----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_reader_that_is_too_slow_is_cut(ring: ScriptedRing, http: aiohttp.ClientSession, url: str) -> None:
    """Its connection is closed and its request aborted; the fan-out never waits, and others notice nothing."""
    bare = await send(url, {"prompt": "x", "stream": True}, receive_buffer=4096)
    slow = (await ring.next(Generate)).rid
    ring.script = lambda generate: ring.answer(generate, ["a", "b"])
    ring.bring(heads=[head(slow)])
    sent = 0
    while not ring.aborted():
        ring.bring(rows=[(slow, "x" * 65536, [1])])
        sent += 65536
        # What the kernel takes for a reader that does not read is bounded.
        assert sent < streams.MAX_UNSENT_BYTES + (64 << 20)
        async with http.post(TEXT, json={"prompt": "y"}) as response:
            assert (await response.json())["choices"][0]["text"] == "ab"
    assert ring.aborted() == [slow]
    with contextlib.suppress(ConnectionResetError):
        while await asyncio.get_running_loop().sock_recv(bare, 1 << 20):
            pass
    bare.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_reader_that_stops_is_cut(
    ring: ScriptedRing, port: Port, url: str, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """After STALL_S without taking anything, while there is something for it to take."""
    monkeypatch.setattr(server, "STALL_S", 0.1)
    monkeypatch.setattr(streams, "MAX_UNSENT_BYTES", 1 << 40)
    bare = await send(url, {"prompt": "x", "stream": stream}, receive_buffer=4096)
    rid = (await ring.next(Generate)).rid
    ring.bring(heads=[head(rid)], rows=[(rid, "x" * (16 << 20), [1])], tails=[] if stream else [tail(rid, 1)])
    await until(lambda: port.num_connections == 0)
    if stream:
        await ring.until(lambda: ring.aborted() == [rid])
    await until(lambda: ring.engine.in_flight()["requests"] == 0)
    bare.close()


@pytest.mark.asyncio
async def test_the_pieces_of_a_slow_reader_are_merged(
    ring: ScriptedRing, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a write waits for the reader, what comes is collected and sent as one event; none of it is lost."""
    connection_made = Connection.connection_made

    def with_small_buffer(connection: Connection, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection_made(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", with_small_buffer)
    bare = await send(url, {"prompt": "x", "stream": True}, receive_buffer=4096)
    rid = (await ring.next(Generate)).rid
    filling, words = "x" * 900_000, [f"word {i} " for i in range(1000)]
    ring.bring(heads=[head(rid)], rows=[(rid, filling, [1])])
    loop = asyncio.get_running_loop()
    received = bytearray(await loop.sock_recv(bare, 1024))  # the filling is being written, and blocks
    for word in words:
        ring.bring(rows=[(rid, word, [1])])
        await asyncio.sleep(0)
    ring.bring(tails=[tail(rid, 1001)])
    while not received.endswith(b"\r\n0\r\n\r\n"):
        data = await loop.sock_recv(bare, 1 << 20)
        assert data, "the connection was closed"
        received += data
    bare.close()
    body = b""
    rest = bytes(received).partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    events = events_in(body)
    assert "".join(event["choices"][0]["text"] for event in events) == filling + "".join(words)
    assert len(events) == 2


# -- a ring that is not there ----------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
async def test_nothing_is_admitted_until_all_are_ready(
    ring: ScriptedRing, http: aiohttp.ClientSession, path: str
) -> None:
    for states in ({"model": "starting"}, {"detokenizer": "lost"}):
        ring.set_states(**states)
        async with http.post(path, json={"prompt": "x"}) as response:
            assert response.status == 503
            assert 1 <= int(response.headers["Retry-After"]) <= 120
            assert (await response.json())["error"]["type"] == "unavailable_error"
    ring.set_states()
    ring.view.draining = True
    async with http.post(path, json={"prompt": "x"}) as response:
        assert response.status == 503
    assert ring.sent == []


@pytest.mark.asyncio
async def test_a_missing_text_fails_what_may_lack_words(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    def script(generate: Generate) -> None:
        ring.bring([head(generate.rid)], [(generate.rid, "one", [1])])
        ring.num_texts += 1
        ring.bring([], [(generate.rid, "three", [3])], [tail(generate.rid, 3)])

    ring.script = script
    async with http.post(TEXT, json={"prompt": "x"}) as response:
        assert response.status == 500
        assert "a part of the answer was lost" in (await response.json())["error"]["message"]
    ring.script = lambda generate: ring.answer(generate, ["all", " well"])
    async with http.post(TEXT, json={"prompt": "x"}) as response:
        assert (await response.json())["choices"][0]["text"] == "all well"


@pytest.mark.asyncio
async def test_everything_in_flight_fails_with_the_ring(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    unary = asyncio.create_task(http.post(TEXT, json={"prompt": "unary"}))
    first = await ring.next(Generate)
    waiting = asyncio.create_task(http.post(TEXT, json={"prompt": "waiting", "stream": True}))
    second = await ring.next(Generate)
    look_up = asyncio.create_task(http.post("/tokenize", json={"prompt": "x"}))
    await ring.until(lambda: ring.engine.in_flight()["look_ups"] == 1)
    running = asyncio.create_task(http.post(TEXT, json={"prompt": "running", "stream": True}))
    third = await ring.next(Generate)
    ring.bring(heads=[head(third.rid)], rows=[(third.rid, "a", [1])])
    stream = await running
    await next_event(stream)
    assert ring.engine.fail_all(ApiError(503, "the server has lost a process")) == 3
    for response in (await unary, await waiting, await look_up):
        assert response.status == 503
        assert "Retry-After" in response.headers
        response.release()
    (event,) = events_in(await stream.read())
    assert event["error"]["code"] == 503
    assert set(ring.aborted()) == {first.rid, second.rid, third.rid}
    assert [type(message) for message in ring.sent].count(Abort) == 3
