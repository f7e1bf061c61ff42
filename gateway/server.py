"""The HTTP port: binding it, the connections on it, and the limits that hold before a handler sees a request."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import EMPTY_PAYLOAD, StreamReader, hdrs, web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError

from gateway import unix_socket
from gateway.errors import ApiError, shorten
from gateway.request_id import REQUEST_ID_HEADER, request_id_of
from gateway.root_path import serve_below
from ipc.port import why_not
from ipc.process import FatalError

BACKLOG = 65535  # the kernel cuts it to net.core.somaxconn; who does not fit there hears nothing for a second
MAX_CONNECTIONS = 4096
SPARE_FILES = 256  # descriptors beside those of connections
KEEPALIVE_S = 75.0  # longer than load balancers keep theirs, so that it is never us who close one they still use
HEAD_DEADLINE_S = 10.0
LINGER_S = 2.0  # how long the rest of a refused body is read, so that its sender gets to see the answer
STALL_S = 30.0  # a client that takes nothing of what is sent to it for so long is cut
SHUTDOWN_S = 2.0  # for handlers that are still at work when the port closes

log = logging.getLogger(__name__)


class Port:
    """The open port of an application. Handlers whose client leaves are cancelled."""

    def __init__(self, app: web.Application, root_path: str = "") -> None:
        self._root_path = root_path
        self._uds = ""
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
        self._server: asyncio.Server | None = None
        self.num_connections = 0

    @staticmethod
    def raise_file_limit() -> None:
        """Let this process have as many descriptors as its connections may need, where the system allows it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = MAX_CONNECTIONS + SPARE_FILES
        if hard != resource.RLIM_INFINITY and hard < needed:
            log.warning("this process may open %d files, and %d connections need more: see ulimit -Hn", hard, needed)
            needed = hard
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None = None, shared: bool = False) -> str:
        """Bind and serve, HTTPS with `tls`; the URL to reach it by. Port 0 takes a free one. Raises FatalError.

        With `shared`, other gateways may listen on the same port: the kernel deals out the connections.
        """
        await self._set_up()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._connect,
                host,
                port,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else HEAD_DEADLINE_S,
                reuse_port=shared,
            )
        except OSError as error:
            await self._runner.cleanup()
            raise FatalError(why_not(error, host, port)) from None
        bound = self._server.sockets[0].getsockname()[1]
        scheme = "http" if tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{bound}"

    async def open_unix(self, path: str, tls: ssl.SSLContext | None = None) -> str:
        """Serve on a Unix socket; where it is, as a URL. Raises FatalError."""
        await self._set_up()
        try:
            listener = unix_socket.bind(path)
        except FatalError:
            await self._runner.cleanup()
            raise
        self._server = await asyncio.get_running_loop().create_unix_server(
            self._connect,
            sock=listener,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else HEAD_DEADLINE_S,
        )
        self._uds = path
        return f"{'http' if tls is None else 'https'}+unix://{quote(path, safe='')}"

    async def _set_up(self) -> None:
        self.raise_file_limit()
        await self._runner.setup()
        if self._root_path and self._runner.server is not None:
            serve_below(self._runner.server, self._root_path)

    async def close(self) -> None:
        """Take no more connections, give handlers a moment, close all connections."""
        if self._server is not None:
            self._server.close()
            await self._runner.cleanup()
            await self._server.wait_closed()
            if self._uds:
                Path(self._uds).unlink(missing_ok=True)

    def _connect(self) -> Connection:
        manager = self._runner.server
        assert manager is not None
        # Access lines are not aiohttp's business here; nor are its defaults, which keep a connection for an hour.
        return Connection(self, manager, keepalive_timeout=KEEPALIVE_S, lingering_time=LINGER_S, access_log=None)


class Connection(web.RequestHandler):
    """aiohttp's side of one connection, with what it leaves open: a limit to how many there are, a deadline for the
    head of a request, an end to clients that stop reading, and our error body where no handler is reached."""

    __slots__ = ("_body", "_busy", "_head_deadline", "_port", "read_at")

    def __init__(self, port: Port, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self._port = port
        self._busy = False  # a handler is at work
        self.read_at = time.monotonic()  # when the first byte of the newest request was read; pipelined ones share it
        self._body: StreamReader = (
            EMPTY_PAYLOAD  # of the request before, which may still be on its way when that is answered
        )
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._port.num_connections += 1
        # The kernel sees what we cannot: whether the other side acknowledges, and whether its window opens.
        stall_ms = round(STALL_S * 1000)
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)
        super().connection_made(transport)
        if self._port.num_connections > MAX_CONNECTIONS:
            self._close_with(ApiError(503, f"more than {MAX_CONNECTIONS} connections"))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._port.num_connections -= 1
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Without data it is aiohttp itself, which goes on with what it has put aside.
        if data and not self._busy and self._body.is_eof() and self._head_deadline is None:
            self.read_at = time.monotonic()
            late = ApiError(408, "the request head did not arrive in time")
            self._head_deadline = asyncio.get_running_loop().call_later(HEAD_DEADLINE_S, self._close_with, late)
        super().data_received(data)

    def request_begins(self) -> None:
        """A request's head is complete and its handler starts."""
        self._busy = True
        self._stop_deadline()

    def request_ends(self, request: web.BaseRequest) -> None:
        """Its handler has ended."""
        self._busy = False
        self._body = request.content

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The response to what aiohttp could not parse, or could not get a response for."""
        self._stop_deadline()
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun, and nothing can be added to it")
        if isinstance(exc, ContentEncodingError):
            response = ApiError(415, "the Content-Encoding must be gzip or deflate, or left out").response()
        elif isinstance(exc, HttpProcessingError):
            log.debug("a request that is not HTTP: %s", exc)
            reason = shorten((exc.message or "malformed").splitlines()[0], 200)
            response = ApiError(400, f"the request is not valid HTTP: {reason}").response()
        else:
            log.error("a request failed outside of its handler", exc_info=exc)
            response = ApiError(status, "the request failed inside the server").response()
        response.headers[REQUEST_ID_HEADER] = request_id_of(request)
        response.headers[hdrs.SERVER] = "quintet"
        response.force_close()
        return response

    def _close_with(self, error: ApiError) -> None:
        """Answer without a request, and close."""
        if self.transport is not None:
            body = orjson.dumps(error.body())
            headers = {**error.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            reason = web.Response(status=error.status).reason
            head = f"HTTP/1.1 {error.status} {reason}\r\n{lines}Connection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.force_close()

    def _stop_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


def connection_of(request: web.BaseRequest) -> Connection:
    """The connection that a request came on."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection
