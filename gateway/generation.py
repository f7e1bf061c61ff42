"""The endpoints that generate: /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from aiohttp import web

from gateway.answer import Answer
from gateway.body import read_json
from gateway.chat import ChatAnswer
from gateway.completions import CompletionAnswer
from gateway.engine import Engine
from gateway.errors import ApiError
from gateway.json_response import json_response
from gateway.request import Envelope, Job, chat_job, completion_job
from gateway.request_id import name_in_body, request_id_of
from gateway.ring import RingView
from gateway.sse import EventWriter, event
from gateway.streams import Stream
from gateway.tenant import bearer_key
from ipc.config import GatewayConfig

log = logging.getLogger(__name__)


class Generation:
    """The handlers. A client that leaves cancels its handler, and so aborts its request."""

    def __init__(self, engine: Engine, ring: RingView, config: GatewayConfig) -> None:
        self._engine = engine
        self._ring = ring
        self._config = config

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        job = chat_job(body, _envelope(request), self._ring, self._config)
        return await self._answer(request, job, ChatAnswer)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        job = completion_job(body, _envelope(request), self._ring, self._config)
        return await self._answer(request, job, CompletionAnswer)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        self._ring.admit()
        return await read_json(request, self._config.max_body_mib << 20)

    async def _answer(self, request: web.Request, job: Job, shape: type[Answer]) -> web.StreamResponse:
        name_in_body(request, job.request_id)
        with self._engine.submit(job) as stream:
            answer = shape(job, stream)
            if job.stream:
                return await self._stream(request, job, stream, answer)
            body = answer.body(await stream.all())
        return json_response(body)

    async def _stream(self, request: web.Request, job: Job, stream: Stream, answer: Answer) -> web.StreamResponse:
        # The response head waits for the first news: a refusal from inside the ring still gets its own status.
        pieces = await stream.some()
        if stream.failure is not None:
            raise stream.failure
        writer = EventWriter(request)
        await writer.start(stream)
        try:
            while True:
                events = b"".join(map(answer.events, pieces))
                if stream.failure is not None:
                    return await writer.finish(events + _error_event(stream.failure))
                if stream.finished:
                    return await writer.finish(events + answer.usage_event() if job.include_usage else events)
                await writer.write(events)
                pieces = await stream.some()
        except ConnectionError:
            raise
        except Exception:
            log.exception("request %s failed", job.request_id)
            return await writer.finish(_error_event(ApiError(500, "the request failed inside the server")))


def _envelope(request: web.Request) -> Envelope:
    return Envelope(request_id_of(request), bearer_key(request))


def _error_event(error: ApiError) -> bytes:
    return event(orjson.dumps(error.body()))
