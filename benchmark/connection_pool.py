"""Connections to one server that are kept and used again, and the few questions that a client asks beside its load."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

from benchmark.http_connection import Connection, NoAnswerError, OnBody


class ConnectionPool:
    """Requests to one server. Every connection carries one at a time."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """`url` is the server's root, such as http://127.0.0.1:8000; `headers` go with every request.

        Raises ValueError for what is no such URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r}: expected a URL like http://127.0.0.1:8000")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        self._root = parts.path.rstrip("/")
        lines = {"Host": parts.netloc.rpartition("@")[2], **(headers or {})}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._all:
            connection.close()

    def head(self, method: str, path: str) -> bytes:
        """A request's head up to its length: for those that are sent often."""
        kind = "Content-Type: application/json\r\nContent-Length: " if method == "POST" else ""
        return f"{method} {self._root}{path} HTTP/1.1\r\n{self._head}{kind}".encode()

    async def send(self, request: bytes, on_body: OnBody) -> int:
        """Send a whole request, hand its body to `on_body` as it comes, and return the status. Raises OSError.

        A server may close a connection that was idle just when it is used again. Then another one is tried, until
        one has been opened for this very request.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_open:
                self._all.discard(connection)
                continue
            try:
                return await self._send(connection, request, on_body)
            except NoAnswerError:
                continue
        return await self._send(await self._new_connection(), request, on_body)

    async def _send(self, connection: Connection, request: bytes, on_body: OnBody) -> int:
        status = 0
        try:
            status = await connection.request(request, on_body)
        finally:
            if status == 200 and connection.is_open:
                self._idle.append(connection)
            else:  # something may still be on its way over it
                connection.close()
                self._all.discard(connection)
        return status

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the JSON body of one answer; the body is None when it is not JSON. Raises OSError."""
        parts: list[bytes] = []
        request = self.head(method, path)
        if method == "POST":
            data = orjson.dumps(body)
            request += b"%d\r\n\r\n%b" % (len(data), data)
        else:
            request += b"\r\n"
        status = await self.send(request, lambda part, now: parts.append(part))
        try:
            return status, orjson.loads(b"".join(parts))
        except ValueError:
            return status, None

    async def open(self, count: int) -> None:
        """Open connections before they are needed, so that no request waits for its own. Raises OSError.

        Each is used once, for an answer that nobody needs: the server has accepted it then.
        """
        question = self.head("GET", "/health") + b"\r\n"

        async def opened() -> Connection:
            connection = await self._new_connection()
            await connection.request(question, lambda part, now: None)
            return connection

        self._idle += await asyncio.gather(*(opened() for _ in range(count - len(self._idle))))

    async def _new_connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        self._all.add(connection)
        return connection
