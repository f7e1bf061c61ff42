"""Server-sent events to one client, who may read slowly or leave."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from gateway.request_id import request_id_of
from gateway.streams import Piece, Stream

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy must not collect the events
}
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip
KEEP_ALIVE_S = web.AppKey("keep_alive_s", float)  # after so long without an event there is one; 0 is never

log = logging.getLogger(__name__)


def event(data: bytes, name: bytes = b"") -> bytes:
    """JSON as one event, which may have a name."""
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + data + b"\n\n"


class EventWriter:
    """An HTTP response made of events.

    The connection of a reader that is too slow is closed, which cancels its handler as if it had left. A reader that
    takes nothing at all is cut by `gateway.server.Connection`, whatever the response.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=HEADERS)

    @property
    def started(self) -> bool:
        """Whether the response head is out."""
        return self._response.prepared

    async def next(self, stream: Stream) -> list[Piece]:
        """What comes next of a stream, as `Stream.some`. While nothing does, the client is told that we are there.

        That sends the head too: a refusal that comes later is an event.
        """
        interval = self._request.app[KEEP_ALIVE_S]
        if not interval:
            return await stream.some()
        while True:
            try:
                async with asyncio.timeout(interval):
                    return await stream.some()
            except TimeoutError:
                if not self.started:
                    await self.start(stream)
                await self.write(KEEP_ALIVE)

    async def start(self, stream: Stream) -> None:
        """Send the response head. From here on every failure is an event."""
        stream.on_overflow = self._on_overflow
        await self._response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        """Send events; waits while the reader is slow. Raises ConnectionError when the connection is gone."""
        await self._response.write(data)

    async def finish(self, data: bytes) -> web.StreamResponse:
        """Send the last events and end the response."""
        await self.write(data)
        await self._response.write_eof()
        return self._response

    def _on_overflow(self) -> None:
        """More than a client may leave unread is waiting for it."""
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            log.warning("request %s: the client reads too slowly, and is cut", request_id_of(self._request))
            transport.abort()
