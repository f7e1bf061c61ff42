"""The light client against a server that answers with prepared bytes, cut wherever the network may cut them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from benchmark.client import Client, Measured

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def event(text: str, finish_reason: str | None = None, **extra: object) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps({"id": "x", "choices": [choice], **extra}) + b"\n\n"


def last_events() -> bytes:
    usage = orjson.dumps({"choices": [], "usage": USAGE, "timings": {"queue_ms": 1.5}})
    return b"data: %b\n\ndata: [DONE]\n\n" % usage


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def answer() -> bytes:
    return HEAD + chunked(event("one "), event("two "), event("three", "stop") + last_events())


@asynccontextmanager
async def serving(
    answers: list[bytes], cut: int = 1 << 20, close: bool = False
) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that gives the next of `answers` to every request, `cut` bytes at a time.

    Yields its URL and a list with the number of the connection that each request came over.
    """
    left, connections, used = iter(answers), iter(range(1000)), []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(connections)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                used.append(number)
                data = next(left)
                for first in range(0, len(data), cut):
                    writer.write(data[first : first + cut])
                    await writer.drain()
                    await asyncio.sleep(0)
                if close:
                    return
        except asyncio.IncompleteReadError:
            return  # the client has left
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", used


async def ask(data: bytes, cut: int = 1 << 20, close: bool = False, **client: Any) -> Measured:
    async with serving([data], cut, close) as (url, _), Client(url, **client) as one:
        return await one.complete({"prompt": "x"})


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 50, 1 << 20])
async def test_a_stream_is_measured_wherever_it_is_cut(cut: int) -> None:
    measured = await ask(answer(), cut)
    assert measured.error == ""
    assert measured.succeeded
    assert (measured.prompt_tokens, measured.completion_tokens, measured.cached_tokens) == (7, 3, 4)
    assert len(measured.itls) == 2
    assert measured.latency == pytest.approx(measured.ttft + sum(measured.itls))
    assert measured.timings == {"queue_ms": 1.5}


async def test_events_without_text_are_no_text() -> None:
    measured = await ask(HEAD + chunked(event(""), event("one "), event("", "stop"), last_events()))
    assert measured.succeeded
    assert measured.itls == []
    assert measured.latency == measured.ttft


async def test_text_that_looks_like_json_does_not_mislead() -> None:
    tricky = 'a "text":"" and "finish_reason":null '
    measured = await ask(HEAD + chunked(event(tricky), event(tricky, "stop") + last_events()), keep_text=True)
    assert measured.text == tricky * 2
    assert len(measured.itls) == 1


async def test_other_spaces_in_the_json_only_cost_time() -> None:
    spaced = [
        part.replace(b'":', b'": ').replace(b',"', b', "') for part in (event("one "), event("two"), event("", "stop"))
    ]
    measured = await ask(HEAD + chunked(*spaced, last_events()))
    assert measured.succeeded
    assert len(measured.itls) == 1


async def test_several_events_may_share_a_chunk_and_one_may_span_two() -> None:
    both = event("one ") + event("two ")
    measured = await ask(HEAD + chunked(both[:-5], both[-5:] + event("three", "stop") + last_events()), keep_text=True)
    assert measured.text == "one two three"
    assert len(measured.itls) == 2


async def test_an_error_in_the_stream_is_the_requests_error() -> None:
    wrong = b'data: {"error":{"message":"the model fell over"}}\n\n'
    measured = await ask(HEAD + chunked(event("one "), wrong))
    assert measured.error == "the model fell over"
    assert not measured.succeeded


def plain(status: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), more, body)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (plain(b"429 Too Many Requests", b'{"error":{"message":"the queue is full"}}'), "429: the queue is full"),
        (plain(b"502 Bad Gateway", b"<html>no</html>"), "502: <html>no</html>"),
        (HEAD + chunked(event("one ")), "the stream ended without an end of the answer"),
        (HEAD + chunked(last_events()), "the stream ended without text"),
        (b"SSH-2.0-hello\r\n\r\n", "not HTTP/1.1: the response begins with 'SSH-2.0-hello'"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "not HTTP/1.1: the response has neither a length nor chunks"),
        (HEAD + b"zz\r\n", "not HTTP/1.1: invalid literal for int() with base 16: b'zz'"),
    ],
)
async def test_what_goes_wrong_is_said(data: bytes, error: str) -> None:
    measured = await ask(data)
    assert measured.error.removeprefix("HttpError: ") == error
    assert not measured.succeeded


async def test_a_connection_that_is_cut_fails_its_request() -> None:
    measured = await ask(HEAD + chunked(event("one "))[:-7], close=True)
    assert measured.error == "HttpError: the server closed the connection"


async def test_nobody_there_fails_the_request() -> None:
    async with serving([]) as (url, _):
        pass
    async with Client(url) as client:
        assert "Connect" in (await client.complete({"prompt": "x"})).error


async def test_no_answer_in_time_fails_the_request() -> None:
    async with serving([HEAD]) as (url, _), Client(url) as client:
        assert (await client.complete({"prompt": "x"}, timeout_s=0.01)).error == "no answer within 0.01 s"


async def test_a_unary_answer_is_measured_as_a_whole() -> None:
    body = orjson.dumps(
        {"choices": [{"text": "one two", "finish_reason": "stop"}], "usage": USAGE, "timings": {"queue_ms": 2.0}}
    )
    measured = await ask(plain(b"200 OK", body), cut=10, stream=False)
    assert measured.succeeded
    assert measured.text == "one two"
    assert measured.ttft == measured.latency > 0
    assert (measured.completion_tokens, measured.itls, measured.timings) == (3, [], {"queue_ms": 2.0})


@pytest.mark.parametrize(
    ("answers", "connections"),
    [
        (lambda: [answer(), answer()], [0, 0]),
        (lambda: [plain(b"400 Bad Request", b"{}"), answer()], [0, 1]),
        (lambda: [answer().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1), answer()], [0, 1]),
    ],
    ids=["kept after success", "not after a failure", "not when the server says so"],
)
async def test_connections_are_used_again(answers: Callable[[], list[bytes]], connections: list[int]) -> None:
    async with serving(answers()) as (url, used), Client(url) as client:
        for _ in connections:
            await client.complete({"prompt": "x"})
        assert used == connections


async def test_a_connection_that_the_server_closed_while_it_was_idle_costs_no_request() -> None:
    async with serving([answer(), answer()]) as (url, used), Client(url) as client:
        await client.complete({"prompt": "x"})
        [idle] = client._idle
        assert idle._transport is not None
        # As when the server's close and the next request cross: the client still takes the connection for open.
        idle._transport.write = lambda data: idle.connection_lost(None)  # type: ignore[method-assign]
        assert (await client.complete({"prompt": "x"})).succeeded
        assert used == [0, 1]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "https://", "ftp://x"])
def test_only_http_urls_are_taken(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected a URL like http://127\.0\.0\.1:8000"):
        Client(url)
