"""Completions, measured from the client's side. Works against any OpenAI-style server, and takes little CPU itself.

On a small machine the client competes with the server that it measures. So an event of a stream gets no more than a
look for two byte patterns: events that carry text and nothing else, as almost all do, are only timed. What the look
cannot tell, such as the last event, or all events of a server that writes its JSON with other spaces, is kept and
parsed once the request has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmark.http_connection import Connection

_NOT_THE_END = b'"finish_reason":null'
_NO_TEXT = b'"text":""'
_EVENT = b"data: {"


@dataclass(slots=True)
class Measured:
    """What became of one request. Times are in seconds; `sent` is on the clock of `time.monotonic`."""

    sent: float
    ttft: float = 0.0  # send -> first event with text; of a unary request, the whole answer
    latency: float = 0.0  # send -> last event with text; of a unary request, the whole answer
    itls: list[float] = field(default_factory=list)  # gaps between events with text
    prompt_tokens: int = 0  # as the server counts them
    completion_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that came from the prefix cache
    finish_reason: str = ""
    timings: dict[str, Any] = field(default_factory=dict)  # what the server says about the time it took, if it does
    text: str = ""  # the answer, if the client was told to keep it
    error: str = ""  # why there is no answer

    @property
    def tpot(self) -> float:
        """Seconds a token after the first."""
        return (self.latency - self.ttft) / (self.completion_tokens - 1) if self.completion_tokens > 1 else 0.0

    @property
    def succeeded(self) -> bool:
        """The model came to its own end, and nothing went wrong."""
        return self.finish_reason == "stop" and not self.error


class Client:
    """Requests to one server over connections that are kept and used again.

    async with Client(url) as client:
        measured = await client.complete({"prompt": "Once upon", "max_tokens": 16})
    """

    def __init__(self, url: str, stream: bool = True, keep_text: bool = False) -> None:
        """`url` is the server's root, such as http://127.0.0.1:8000."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r}: expected a URL like http://127.0.0.1:8000")
        self._host, self._port = parts.hostname, parts.port or 80
        self._stream = stream
        self._keep_text = keep_text
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._health_check = f"GET {parts.path.rstrip('/')}/health HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        self._before_length = (
            f"POST {parts.path.rstrip('/')}/v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._all:
            connection.close()

    async def complete(self, body: Mapping[str, Any], timeout_s: float | None = None) -> Measured:
        """POST one completion and see it through. Whatever goes wrong ends up in `error`; nothing is raised."""
        extra: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if self._stream else {}
        data = orjson.dumps({**body, **extra})
        request = b"%b%d\r\n\r\n%b" % (self._before_length, len(data), data)
        events = _Events(self._keep_text)
        parts: list[bytes] = []

        def on_part(part: bytes, now: float) -> None:
            parts.append(part)

        measured = Measured(sent=time.monotonic())
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connection()
                status = await connection.request(request, events.feed if self._stream else on_part)
        except TimeoutError:
            measured.error = f"no answer within {timeout_s} s"
        except OSError as error:
            measured.error = f"{type(error).__name__}: {error}"
        else:
            if status != 200:
                measured.error = f"{status}: {_message(b''.join(parts) or events.unread())}"
            elif self._stream:
                events.report(measured)
            else:
                _report_body(measured, b"".join(parts))
        finally:
            if connection is not None:
                self._put_back(connection, clean=not measured.error)
        return measured

    async def open(self, count: int) -> None:
        """Open connections before they are needed, so that no request waits for its own. Raises OSError.

        Each is used once, for an answer without a body: the server has accepted it then.
        """

        async def opened() -> Connection:
            connection = await self._new_connection()
            await connection.request(self._health_check, lambda part, now: None)
            return connection

        self._idle += await asyncio.gather(*(opened() for _ in range(count)))

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._all.discard(connection)
        return await self._new_connection()

    async def _new_connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        self._all.add(connection)
        return connection

    def _put_back(self, connection: Connection, clean: bool) -> None:
        """Keep a connection for the next request, unless something is still on its way over it."""
        if clean and connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
            self._all.discard(connection)


class _Events:
    """The server-sent events of one response."""

    def __init__(self, keep_all: bool) -> None:
        self._keep_all = keep_all
        self._times: list[float] = []  # when events with text came
        self._kept: list[tuple[float, bytes]] = []  # events to be parsed at the end, and when they came
        self._partial = b""

    def feed(self, data: bytes, now: float) -> None:
        *events, self._partial = (self._partial + data).split(b"\n\n")
        for event in events:
            if self._keep_all or _NOT_THE_END not in event or _NO_TEXT in event:
                self._kept.append((now, event))
            else:
                self._times.append(now)

    def unread(self) -> bytes:
        """What came instead of events."""
        return self._partial

    def report(self, measured: Measured) -> None:
        """Parse what was kept and fill in everything about the answer."""
        times = self._times
        for now, event in self._kept:
            if not event.startswith(_EVENT):
                continue  # a comment, or the [DONE] at the end
            chunk = orjson.loads(event[len(_EVENT) - 1 :])
            if "error" in chunk:
                measured.error = chunk["error"]["message"]
                return
            _take_common(measured, chunk)
            for choice in chunk["choices"]:
                if choice["text"]:
                    times.append(now)
                    if self._keep_all:
                        measured.text += choice["text"]
        if not times or not measured.finish_reason:
            measured.error = "the stream ended without " + ("an end of the answer" if times else "text")
            return
        times.sort()
        measured.ttft = times[0] - measured.sent
        measured.latency = times[-1] - measured.sent
        measured.itls = [later - earlier for earlier, later in pairwise(times)]


def _report_body(measured: Measured, data: bytes) -> None:
    """Fill in everything about an answer that came as one body."""
    measured.latency = measured.ttft = time.monotonic() - measured.sent
    body = orjson.loads(data)
    _take_common(measured, body)
    measured.text = body["choices"][0]["text"]


def _take_common(measured: Measured, body: dict[str, Any]) -> None:
    """What a whole answer and a stream's event have in common: ends, usage, timings."""
    for choice in body["choices"]:
        measured.finish_reason = choice.get("finish_reason") or measured.finish_reason
    if usage := body.get("usage"):
        measured.prompt_tokens = usage["prompt_tokens"]
        measured.completion_tokens = usage["completion_tokens"]
        measured.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    measured.timings = body.get("timings") or measured.timings


def _message(data: bytes) -> str:
    """The message of an error's body, or as much of the body as fits a line."""
    try:
        return str(orjson.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
