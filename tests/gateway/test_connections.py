"""The port: what holds before a handler sees a request."""

from __future__ import annotations

import asyncio
import socket

import pytest
from yarl import URL

from gateway import server
from gateway.app import build_app
from gateway.auth import KeyRing
from gateway.server import Port
from ipc.process import FatalError
from tests.gateway.answers import talk
from tests.gateway.scripted_ring import CONFIG, ScriptedRing

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.asyncio
async def test_a_port_in_use_is_fatal(ring: ScriptedRing, url: str) -> None:
    port = Port(build_app(ring.engine, ring.view, CONFIG, KeyRing([])))
    taken = URL(url).port
    assert taken is not None
    with pytest.raises(FatalError, match=rf"^port {taken} on 127\.0\.0\.1 is in use: choose another with --port"):
        await port.open("127.0.0.1", taken)


@pytest.mark.asyncio
async def test_an_address_that_is_not_ours_is_fatal(ring: ScriptedRing) -> None:
    with pytest.raises(FatalError, match=r"^port 8000 on 203\.0\.113\.1 cannot be opened .*--host"):
        await Port(build_app(ring.engine, ring.view, CONFIG, KeyRing([]))).open("203.0.113.1", 8000)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\n\r\n",  # no Host
        HEALTH + b"X: " + b"a" * 10_000_000 + b"\r\n\r\n",
        HEALTH + b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + b"\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"hello\r\n\r\n",
    ],
    ids=["host", "line", "headers", "target", "tls", "words"],
)
async def test_malformed_requests(url: str, request_bytes: bytes) -> None:
    if b"Host" not in request_bytes:
        request_bytes = request_bytes.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n"
    answer = await talk(url, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ") or answer.startswith(b"HTTP/1.0 400 ")
    assert b'{"error":{"message":"' in answer
    assert b"\r\nX-Request-Id: " in answer
    assert b"\r\nServer: quintet\r\n" in answer
    assert len(answer) < 2000


@pytest.mark.asyncio
async def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    answer = await talk(url, HEALTH + b"\r\n" + HEALTH.replace(b"health", b"none") + b"Connection: close\r\n\r\n")
    assert [line.split()[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1")] == [b"200", b"404"]


@pytest.mark.asyncio
async def test_a_head_that_does_not_arrive_is_408(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_DEADLINE_S", 0.05)
    answer = await talk(url, HEALTH)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"type":"timeout_error"' in answer


@pytest.mark.asyncio
async def test_a_body_that_does_not_arrive_is_408(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.body.BODY_DEADLINE_S", 0.05)
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    answer = await talk(url, head.encode() + b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"type":"timeout_error"' in answer


@pytest.mark.asyncio
async def test_the_deadline_of_the_head_ends_with_it(
    ring: ScriptedRing, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the handler's time, and not the time between two requests."""
    monkeypatch.setattr(server, "HEAD_DEADLINE_S", 0.05)
    reader, writer = await asyncio.open_connection(URL(url).host, URL(url).port)
    for _ in range(2):
        writer.write(HEALTH + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
    writer.close()


@pytest.mark.asyncio
async def test_connections_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    held = [socket.create_connection((URL(url).host, URL(url).port)) for _ in range(2)]
    refused = await talk(url, HEALTH + b"\r\n")
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After" in refused
    held.pop().close()
    for _ in range(100):
        if b" 200 OK" in await talk(url, HEALTH + b"Connection: close\r\n\r\n"):
            break
    else:
        pytest.fail("a closed connection makes no room")
    held.pop().close()


@pytest.mark.asyncio
async def test_a_body_that_trails_its_answer_is_not_a_late_head(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is refused by its head; its body comes later, and the connection stays good."""
    monkeypatch.setattr(server, "HEAD_DEADLINE_S", 0.05)
    reader, writer = await asyncio.open_connection(URL(url).host, URL(url).port)
    writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
    writer.write(b"123456789")
    await asyncio.sleep(0.1)
    writer.write(HEALTH + b"Connection: close\r\n\r\n")
    rest = await reader.read()
    assert b"HTTP/1.1 200 OK" in rest
    assert b" 408 " not in rest
