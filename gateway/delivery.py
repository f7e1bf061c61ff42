"""From a job to the response of its HTTP request, whatever the dialect."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from gateway.engine import Engine
from gateway.errors import ApiError
from gateway.json_response import json_response
from gateway.request import Job
from gateway.request_id import name_in_body
from gateway.sse import EventWriter
from gateway.streams import Piece, Stream
from ipc.spans import FORMAT, Spans

log = logging.getLogger(__name__)


class Shape(Protocol):
    """What a dialect makes of what the sequences of one job bring."""

    def body(self, pieces: list[Piece]) -> bytes:
        """The whole answer as JSON, from one piece for each choice."""
        ...

    def events(self, piece: Piece) -> bytes:
        """The events of a stream that a piece makes."""
        ...

    def closing(self) -> bytes:
        """The events after the last piece."""
        ...

    def failure(self, error: ApiError) -> bytes:
        """The events that end a stream with an error."""
        ...


async def deliver(
    request: web.Request, engine: Engine, job: Job, shape: Callable[[Job, Stream], Shape]
) -> web.StreamResponse:
    """Run a job and answer its request. A client that leaves cancels this, and so aborts the job. Raises ApiError."""
    name_in_body(request, job.request_id)
    with engine.submit(job) as stream:
        answer = shape(job, stream)
        if job.stream:
            return await _stream(request, stream, answer, engine.observer.spans)
        pieces = await stream.all()
        body = await _apart_if_long(job, answer.body, pieces)
    return json_response(body)


async def _stream(request: web.Request, stream: Stream, answer: Shape, spans: Spans) -> web.StreamResponse:
    # The response head waits for the first news: a refusal from inside the ring still gets its own status.
    writer = EventWriter(request)
    pieces = await writer.next(stream)
    if not writer.started:
        if stream.failure is not None:
            raise stream.failure
        await writer.start(stream)
    try:
        while True:
            begun = time.monotonic_ns() if spans.on else 0
            events = await _apart_if_long(stream.job, lambda pieces: b"".join(map(answer.events, pieces)), pieces)
            if begun:
                spans.add(FORMAT, begun, stream.rids[0], len(events))
            if stream.failure is not None:
                return await writer.finish(events + answer.failure(stream.failure))
            if stream.finished:
                return await writer.finish(events + answer.closing())
            await writer.write(events)
            pieces = await writer.next(stream)
    except ConnectionError:
        raise
    except Exception:
        log.exception("request %s failed", stream.job.request_id)
        return await writer.finish(answer.failure(ApiError(500, "the request failed inside the server")))


async def _apart_if_long(job: Job, shape: Callable[[list[Piece]], bytes], pieces: list[Piece]) -> bytes:
    """What `shape` makes of the pieces. Every token of a prompt may come with twenty others: that takes long, and not
    in the way of everybody."""
    return await asyncio.to_thread(shape, pieces) if job.reads_prompt else shape(pieces)
