"""What all endpoints that generate need, whatever their dialect: the ring, the settings, and the way in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.auth import shown_keys
from gateway.body import Meaning, read_as
from gateway.engine import Engine
from gateway.request import Envelope
from gateway.request_id import request_id_of
from gateway.ring import RingView
from gateway.templates import Templates
from gateway.tracing import TRACE_HEADERS
from ipc.config import GatewayConfig


class Intake:
    """One for all endpoints, so that what is known of the chat template is known to all."""

    def __init__(self, engine: Engine, ring: RingView, config: GatewayConfig) -> None:
        self.engine = engine
        self.ring = ring
        self.config = config
        self.templates = Templates(engine, config)

    async def read(self, request: web.Request, understand: Callable[[dict[str, Any]], Meaning]) -> Meaning:
        """What `understand` makes of the body of a request that can be served now. It may be called in a thread.

        Raises ApiError.
        """
        self.ring.admit()
        self.engine.check_room()
        return await read_as(request, self.config.max_body_mib << 20, understand)

    def envelope(self, request: web.Request) -> Envelope:
        trace_context = {name: request.headers[name] for name in TRACE_HEADERS if name in request.headers}
        return Envelope(request_id_of(request), next(iter(shown_keys(request)), ""), trace_context)
