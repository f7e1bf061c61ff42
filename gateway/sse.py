"""Server-sent events to one client, who may read slowly, stop reading or leave."""

from __future__ import annotations

import asyncio
import logging
import math

from aiohttp import web

from gateway.streams import Stream

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy must not collect the events
}
DONE = b"data: [DONE]\n\n"

# A write returns at once as long as less than 64 KiB are waiting to be sent; so says the transport's default.
UNBLOCKED_BYTES = 60 << 10
STALL_S = 30.0  # a reader that takes nothing for so long is cut
STALL_CHECK_S = 5.0

log = logging.getLogger(__name__)


def event(data: bytes) -> bytes:
    """JSON as one event."""
    return b"data: " + data + b"\n\n"


class EventWriter:
    """An HTTP response made of events. The connection of a reader that is too slow is closed; its handler is
    cancelled then, like that of a client that left."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=HEADERS)

    async def start(self, stream: Stream) -> None:
        """Send the response head. From here on every failure is an event."""
        stream.on_overflow = self._on_overflow
        await self._response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        """Send events; waits while the reader is slow. Raises ConnectionError when the connection is gone."""
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        if transport.get_write_buffer_size() == 0 and len(data) < UNBLOCKED_BYTES:
            await self._response.write(data)
        else:
            await self._write_patiently(transport, data)

    async def finish(self, data: bytes) -> web.StreamResponse:
        """Send the last events and end the response."""
        await self.write(data + DONE)
        await self._response.write_eof()
        return self._response

    async def _write_patiently(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write, as long as the reader goes on reading at all."""
        # In a task of its own: aiohttp cannot wait again for a drain whose waiting was cancelled.
        write = asyncio.ensure_future(self._response.write(data))
        least_waiting, stalled_s = math.inf, 0.0
        try:
            while not (await asyncio.wait({write}, timeout=STALL_CHECK_S))[0]:
                waiting = transport.get_write_buffer_size()
                stalled_s = 0.0 if waiting < least_waiting else stalled_s + STALL_CHECK_S
                least_waiting = min(waiting, least_waiting)
                if stalled_s >= STALL_S:
                    self._cut("has stopped reading")
                    raise ConnectionAbortedError("the client has stopped reading")
            await write
        finally:
            write.cancel()

    def _on_overflow(self) -> None:
        self._cut("reads too slowly")

    def _cut(self, why: str) -> None:
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            log.warning("cut the connection of a client that %s", why)
            transport.abort()
