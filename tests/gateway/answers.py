"""Helpers of the tests that read answers."""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from typing import Any

import aiohttp
import orjson
from yarl import URL

from ipc.messages import Logprobs

DONE = b"data: [DONE]\n\n"


def logprobs_of(tokens: list[list[tuple[int, float, bytes]]]) -> Logprobs:
    """The wire's columns for tokens, each with its candidates as (id, log-probability, bytes)."""
    entries = [entry for row in tokens for entry in row]
    return Logprobs(
        counts=[len(row) for row in tokens],
        ids=array("i", [entry[0] for entry in entries]),
        values=[entry[1] for entry in entries],
        pieces=[entry[2] for entry in entries],
    )


def events_in(data: bytes) -> list[Any]:
    """The events of a whole stream, which must be well formed and end with [DONE]."""
    assert data.endswith(DONE)
    events = data.removesuffix(DONE).split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") for event in events)
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


async def next_event(response: aiohttp.ClientResponse) -> Any:
    """The next event of a stream that is still running; None for [DONE]."""
    line = await response.content.readline()
    assert await response.content.readline() == b"\n"
    data = line.removeprefix(b"data: ").strip()
    return None if data == b"[DONE]" else orjson.loads(data)


async def talk(url: str, data: bytes) -> bytes:
    """Send bytes and return all that comes back until the server closes the connection.

    A server that closes before it has read everything resets the connection; what it said before counts.
    """
    reader, writer = await asyncio.open_connection(URL(url).host, URL(url).port)
    writer.write(data)
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := await reader.read(1 << 16):
            answer += chunk
    writer.close()
    return answer
