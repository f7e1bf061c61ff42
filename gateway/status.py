"""The endpoints about the server itself: health, readiness, models, load. None of them runs the model."""

from __future__ import annotations

from aiohttp import web

from gateway.company import Company
from gateway.engine import Engine
from gateway.errors import ApiError
from gateway.json_response import json_response
from gateway.loads import runtime_stats
from gateway.ring import RingView


class Status:
    """The handlers."""

    def __init__(self, engine: Engine, ring: RingView, company: Company) -> None:
        self._engine = engine
        self._ring = ring
        self._company = company

    async def health(self, request: web.Request) -> web.Response:
        """Whether the server lives or heals itself: it does unless a process is lost for good."""
        if failed := self._ring.failed:
            raise ApiError(503, f"the server has lost a process for good: {', '.join(failed)}")
        return web.Response()

    async def ready(self, request: web.Request) -> web.Response:
        """Whether requests are admitted; if not, who is not ready and how far the model is."""
        obstacle = self._ring.obstacle()
        if obstacle is None:
            return json_response({"status": "ready"} | self._ring.readiness())
        error = self._ring.unready(obstacle)
        return json_response(error.body() | self._ring.readiness(), error.status, error.headers)

    async def models(self, request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": self._ring.model_cards()})

    async def model(self, request: web.Request) -> web.Response:
        cards = {card["id"]: card for card in self._ring.model_cards()}
        return json_response(cards[self._ring.name_for(request.match_info["name"])])

    async def loads(self, request: web.Request) -> web.Response:
        """How full the server is, the last figures of every process, and what the gateways have in flight."""
        in_flight = self._engine.in_flight()
        for name in self._company.others:
            in_flight = {each: count + self._ring.stats(name).get(each, 0) for each, count in in_flight.items()}
        stats = runtime_stats(self._ring.stats("scheduler"), in_flight)
        return json_response(stats | {"processes": self._ring.loads(), "in_flight": in_flight})
