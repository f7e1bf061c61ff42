"""A keep-alive HTTP/1.1 client connection that does as little as a client can: for loads that share the server's cores.

The body's bytes go to a callback as they arrive, with the time of their arrival; nothing is decoded or copied here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

# Called with a part of the body and the time of its arrival, in seconds of `time.monotonic`.
OnBody = Callable[[bytes, float], None]

_HEAD_END = b"\r\n\r\n"
_CHUNKED = -1


class HttpError(ConnectionError):
    """The connection was lost, or what came over it is not HTTP as this client knows it."""


class NoAnswerError(HttpError):
    """The connection was closed before anything of the response had come."""


@dataclass(slots=True)
class Exchange:
    """A response that is on its way."""

    on_body: OnBody
    done: asyncio.Future[int]  # gets the HTTP status when the response has ended
    status: int = 0  # 0 until the head has arrived
    missing: int = 0  # bytes of the body still to come, or _CHUNKED
    close: bool = False  # the server will close the connection behind this response


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._rest = b""  # received, and not enough to go on with

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def request(self, data: bytes, on_body: OnBody) -> asyncio.Future[int]:
        """Send a whole request. The future gives the status once the response has ended, or raises HttpError."""
        if self._transport is None or self._exchange is not None:
            raise HttpError("a connection carries one request at a time, while it is open")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exchange = Exchange(on_body, done)
        self._transport.write(data)
        return done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's side ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        exchange = self._exchange
        reason = "the server closed the connection" if exc is None else str(exc)
        unanswered = exchange is not None and not exchange.status and not self._rest
        self._fail(NoAnswerError(reason) if unanswered else HttpError(reason))

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._rest:
            data = self._rest + data
            self._rest = b""
        exchange = self._exchange
        if exchange is None:
            return self._give_up("the server sent what nobody asked for")
        try:
            if not exchange.status:
                head, found, data = data.partition(_HEAD_END)
                if not found:
                    self._rest = head
                    return None
                _read_head(exchange, head)
            if exchange.missing == _CHUNKED:
                self._take_chunks(exchange, data, now)
            else:
                self._take_counted(exchange, data, now)
        except ValueError as error:
            self._give_up(f"not HTTP/1.1: {error}")
        return None

    # ------------------------------------------------------------------------------------------------------------------

    def _take_chunks(self, exchange: Exchange, data: bytes, now: float) -> None:
        """Hand on every chunk that is complete: `size in hexadecimal \\r\\n bytes \\r\\n`, the last one of size 0."""
        start = 0
        while (line_end := data.find(b"\r\n", start)) >= 0:
            first = line_end + 2
            last = first + int(data[start:line_end].partition(b";")[0], 16)
            if len(data) < last + 2:
                break
            if first == last:
                return self._end(exchange)
            exchange.on_body(data[first:last], now)
            start = last + 2
        self._rest = data[start:]
        return None

    def _take_counted(self, exchange: Exchange, data: bytes, now: float) -> None:
        if data:
            exchange.missing -= len(data)
            exchange.on_body(data, now)
        if exchange.missing <= 0:
            self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        self._exchange = None
        if exchange.close:
            self.close()
        if not exchange.done.done():  # a caller that gave up has cancelled it
            exchange.done.set_result(exchange.status)

    def _give_up(self, reason: str) -> None:
        self._fail(HttpError(reason))
        self.close()

    def _fail(self, error: HttpError) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.done.done():
            exchange.done.set_exception(error)


def _read_head(exchange: Exchange, head: bytes) -> None:
    """Take status, framing and the fate of the connection from a response head. Raises ValueError."""
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    if version != "HTTP/1.1":
        raise ValueError(f"the response begins with {status_line[:40]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        exchange.missing = _CHUNKED
    elif "content-length" in headers:
        exchange.missing = int(headers["content-length"])
    else:
        raise ValueError("the response has neither a length nor chunks")
    exchange.close = headers.get("connection", "").lower() == "close"
    exchange.status = int(rest[:3])
