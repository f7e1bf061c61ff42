"""The routes of the HTTP API, and the one place where failures become responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, hdrs, web

from gateway.body import check_length
from gateway.engine import Engine
from gateway.errors import ApiError
from gateway.generation import Generation
from gateway.inspection import Inspection
from gateway.look_ups import LookUps
from gateway.request_id import REQUEST_ID_HEADER, check_request_id, request_id_of
from gateway.ring import RingView
from gateway.server import connection_of
from gateway.status import Status
from ipc.config import GatewayConfig

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


def build_app(engine: Engine, ring: RingView, config: GatewayConfig) -> web.Application:
    """The HTTP application, to be run on `gateway.server.Port`."""
    max_body_bytes = config.max_body_mib << 20
    generation = Generation(engine, ring, config)
    inspection = Inspection(engine, ring)
    look_ups = LookUps(engine, ring, max_body_bytes)
    status = Status(engine, ring)

    async def expect(request: web.Request) -> web.StreamResponse | None:
        """Answer `Expect: 100-continue`; a body that is too large is refused before it is sent."""
        connection_of(request).request_begins()
        try:
            if request.headers[hdrs.EXPECT].lower() != "100-continue":
                raise ApiError(417, "the only expectation that is met is 100-continue")
            check_length(request, max_body_bytes)
        except ApiError as error:
            return error.response()
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    app = web.Application(middlewares=[contain], client_max_size=max_body_bytes)
    app.on_response_prepare.append(sign)
    for path, handler in {
        "/v1/chat/completions": generation.chat_completions,
        "/v1/completions": generation.completions,
        "/tokenize": look_ups.tokenize,
        "/detokenize": look_ups.detokenize,
    }.items():
        app.router.add_post(path, handler, expect_handler=expect)
    for path, handler in {
        "/health": status.health,
        "/ready": status.ready,
        "/version": status.version,
        "/v1/models": status.models,
        "/v1/models/{name:.+}": status.model,
        "/v1/loads": status.loads,
        "/v1/requests/{id:.+}": inspection.request,
    }.items():
        app.router.add_get(path, handler)
    # As in SGLang it takes both methods; a HEAD, which only looks, must not flush.
    app.router.add_post("/flush_cache", inspection.flush_cache)
    app.router.add_get("/flush_cache", inspection.flush_cache, allow_head=False)
    return app


@web.middleware
async def contain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever fails, the client gets the one error body."""
    connection = connection_of(request)
    connection.request_begins()
    try:
        check_request_id(request)
        return await _answer(request, handler)
    except ApiError as error:
        return error.response()
    except asyncio.CancelledError:
        log.info("%s %s: the client has left (499), request %s", request.method, request.path, request_id_of(request))
        raise
    finally:
        connection.request_ends(request)


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """What every response carries."""
    response.headers[REQUEST_ID_HEADER] = request_id_of(request)
    response.headers[hdrs.SERVER] = "quintet"


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's response. Raises ApiError for everything that is not one."""
    if request.version >= HttpVersion11 and hdrs.HOST not in request.headers:
        raise ApiError(400, "the Host header is missing")
    try:
        return await handler(request)
    except (ApiError, ConnectionError):
        raise
    except web.HTTPMethodNotAllowed as error:
        message = f"{request.method} is not allowed here"
        raise ApiError(error.status, message, headers={"Allow": error.headers["Allow"]}) from None
    except web.HTTPNotFound:
        raise ApiError(404, "there is no such route") from None
    except web.HTTPException as error:
        raise ApiError(error.status, error.reason) from None
    except Exception:
        log.exception("request %s failed", request_id_of(request))
        raise ApiError(500, "the request failed inside the server") from None
