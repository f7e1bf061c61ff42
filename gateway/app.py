"""The routes of the HTTP API, and the one place where failures become responses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, hdrs, web

from gateway.about import About
from gateway.auth import ANTHROPIC_ROUTES, KeyRing
from gateway.body import check_length
from gateway.company import Company
from gateway.controls import Controls
from gateway.cors import Cors
from gateway.dialects.anthropic import Anthropic
from gateway.dialects.anthropic_answer import error_response
from gateway.dialects.responses import Responses
from gateway.dialects.sglang import SGLang
from gateway.embeddings import Embeddings
from gateway.engine import Engine
from gateway.errors import SHOWN_NAME_CHARS, ApiError, shorten
from gateway.generation import Generation
from gateway.inspection import Inspection
from gateway.intake import Intake
from gateway.live import Live
from gateway.look_ups import LookUps
from gateway.metrics.collect import collect
from gateway.metrics.page import MetricsPage
from gateway.openapi import OpenApi
from gateway.request_id import REQUEST_ID_HEADER, check_request_id, request_id_of
from gateway.ring import RingView
from gateway.server import connection_of
from gateway.sse import KEEP_ALIVE_S
from gateway.status import Status
from gateway.unbuilt import UNBUILT, not_built
from gateway.web_page import WebPage
from ipc.config import GatewayConfig

OTHER = "other"  # the route of a request that has none

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


def build_app(
    engine: Engine,
    ring: RingView,
    config: GatewayConfig,
    keys: KeyRing,
    controls: Controls | None = None,
    company: Company | None = None,
) -> web.Application:
    """The HTTP application, to be run on `gateway.server.Port`; `keys` open its routes.

    Without `controls`, their routes are missing. Without `company` there is no other gateway.
    """
    company = company or Company()
    metrics = engine.observer.metrics
    max_body_bytes = config.max_body_mib << 20
    intake = Intake(engine, ring, config)
    generation = Generation(intake)
    anthropic = Anthropic(intake)
    responses = Responses(intake, company)
    embeddings = Embeddings(intake)
    sglang = SGLang(intake)
    about = About(ring, config)
    inspection = Inspection(engine, ring, company)
    look_ups = LookUps(engine, ring, max_body_bytes)
    status = Status(engine, ring, company)
    live = Live(engine, ring, company)
    cors = Cors(config.allowed_origins)
    web_page = WebPage()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Nobody gets past here without a key, whatever the route; a browser's question comes before its key."""
        preflight = cors.preflight(request)
        if preflight is not None:
            return preflight
        if request.path not in web_page.paths:
            keys.check(request)
        return await handler(request)

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        """What every response carries."""
        response.headers[REQUEST_ID_HEADER] = request_id_of(request)
        response.headers[hdrs.SERVER] = "quintet"
        cors.sign(request, response)

    async def expect(request: web.Request) -> web.StreamResponse | None:
        """Answer `Expect: 100-continue`; a body that is too large is refused before it is sent."""
        connection_of(request).request_begins()
        try:
            if request.headers[hdrs.EXPECT].lower() != "100-continue":
                raise ApiError(417, "the only expectation that is met is 100-continue")
            keys.check(request)
            check_length(request, max_body_bytes)
        except ApiError as error:
            return _error_response(error, request)
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the response, by its route; what is no route of ours has no name here."""
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None and resource.canonical not in UNBUILT else OTHER
        status: int | None = None
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            metrics.answered(route, status)
            if status in (429, 503):
                metrics.refused(time.monotonic() - connection_of(request).read_at)

    app = web.Application(middlewares=[count, contain, guard], client_max_size=max_body_bytes)
    app[KEEP_ALIVE_S] = config.sse_keep_alive_interval
    app.on_response_prepare.append(sign)
    app.on_shutdown.append(live.close)
    for path, handler in {
        "/v1/chat/completions": generation.chat_completions,
        "/v1/completions": generation.completions,
        "/v1/embeddings": embeddings.create,
        "/v1/responses": responses.create,
        "/v1/messages": anthropic.messages,
        "/v1/messages/count_tokens": anthropic.count_tokens,
        "/generate": sglang.generate,
        "/tokenize": look_ups.tokenize,
        "/detokenize": look_ups.detokenize,
    }.items():
        app.router.add_post(path, handler, expect_handler=expect)
    for path, handler in {
        "/health": status.health,
        "/ready": status.ready,
        "/version": about.version,
        "/server_info": about.server_info,
        "/get_server_info": about.server_info,
        "/model_info": about.model_info,
        "/get_model_info": about.model_info,
        "/tokenizer_info": about.tokenizer_info,
        "/ping": about.ping,
        "/v1/models": status.models,
        "/v1/models/{name:.+}": status.model,
        "/v1/loads": status.loads,
        "/v1/events": live.events,
        "/v1/requests/{id:.+}": inspection.request,
        "/v1/responses/{id}": responses.retrieve,
    }.items():
        app.router.add_get(path, handler)
    app.router.add_post("/v1/responses/{id}/cancel", responses.cancel)
    app.router.add_put("/generate", sglang.generate, expect_handler=expect)
    app.router.add_post("/ping", about.ping)
    for path in web_page.paths:
        app.router.add_get(path, web_page.asset)
    for path in UNBUILT:
        app.router.add_route("*", path, not_built)
    app.router.add_get("/openapi.json", OpenApi(app, config.root_path).openapi)
    # As in SGLang it takes both methods; a HEAD, which only looks, must not flush.
    app.router.add_post("/flush_cache", inspection.flush_cache)
    app.router.add_get("/flush_cache", inspection.flush_cache, allow_head=False)
    if controls is not None:
        controls.add_routes(app, expect)
    if config.enable_metrics:
        page = MetricsPage(lambda: collect(ring, metrics, engine.in_flight()), config.vllm_metrics, company)
        app.router.add_get("/metrics", page.metrics)
    routes = {resource.canonical for resource in app.router.resources()} - set(UNBUILT)
    metrics.expect([*sorted(routes), OTHER])
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
        return _error_response(error, request)
    except asyncio.CancelledError:
        log.info("%s %s: the client has left (499), request %s", request.method, request.path, request_id_of(request))
        raise
    finally:
        connection.request_ends(request)


def _error_response(error: ApiError, request: web.Request) -> web.Response:
    """An error in the shape of its route's dialect."""
    return error_response(error, request) if request.path in ANTHROPIC_ROUTES else error.response()


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's response. Raises ApiError for everything that is not one."""
    if request.version >= HttpVersion11 and hdrs.HOST not in request.headers:
        raise ApiError(400, "the Host header is missing")
    try:
        return await handler(request)
    except (ApiError, ConnectionError):
        raise
    except web.HTTPMethodNotAllowed as error:
        allowed = error.headers["Allow"]
        message = f"{request.method} is not allowed on {_shown_path(request)}, which takes {allowed}"
        raise ApiError(error.status, message, headers={"Allow": allowed}) from None
    except web.HTTPNotFound:
        raise ApiError(404, f"there is no route {_shown_path(request)}; /openapi.json lists all") from None
    except web.HTTPException as error:
        raise ApiError(error.status, error.reason) from None
    except Exception:
        log.exception("request %s failed", request_id_of(request))
        raise ApiError(500, "the request failed inside the server") from None


def _shown_path(request: web.Request) -> str:
    return shorten(request.rel_url.raw_path, SHOWN_NAME_CHARS)
