"""GET /v1/events: what the ring is doing right now, a few times a second, for as long as somebody looks.

One task makes the snapshots for all who watch, and ends when nobody does: then all of this costs nothing. A watcher
that reads slowly gets the newest snapshot when it is ready for one. Of several gateways each shows what all of them
have. `docs/live.md` describes what is in a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import islice
from typing import Any

import orjson
from aiohttp import web

from gateway.company import Company
from gateway.engine import Engine
from gateway.errors import ApiError
from gateway.metrics.collect import collect
from gateway.metrics.series import Series
from gateway.observer import Ended
from gateway.ring import RingView
from gateway.sse import HEADERS, event
from gateway.streams import Sequence, Stream
from gateway.timings import NS_PER_MS
from ipc.codec import Map

INTERVAL_S = 0.2
WATCH_PATIENCE_S = 1.0  # a scheduler without a model has nothing to show
MAX_WATCHERS = 32
MAX_REQUESTS = 256  # in a snapshot

log = logging.getLogger(__name__)


class Live:
    """The handler, and the task behind it."""

    def __init__(self, engine: Engine, ring: RingView, company: Company) -> None:
        self._engine = engine
        self._ring = ring
        self._company = company
        company.answer("live", self._share)
        self._run = time.monotonic_ns()  # tells this gateway's counts from those of its predecessor
        self._ended = Ended()  # here and in the other gateways
        self._told: dict[str, tuple[int, int]] = {}  # of each gateway: its run, and how many it has told the ends of
        self._series = Series()
        self._snapshot: dict[str, Any] = {}
        self._number = 0  # of snapshots so far
        self._news = asyncio.Condition()
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, each a snapshot of the whole ring. Raises ApiError 503 when too many watch already."""
        if self._watchers >= MAX_WATCHERS:
            raise ApiError(503, f"{MAX_WATCHERS} clients watch already; close one of them")
        if self._closed:
            raise ApiError(503, "the server is shutting down")
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._make_snapshots())
        try:
            return await self._serve(request)
        finally:
            self._watchers -= 1
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def close(self, app: web.Application) -> None:
        """End all streams: the server shuts down."""
        self._closed = True
        async with self._news:
            self._news.notify_all()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        seen, ended = self._number, 0
        while True:
            async with self._news:
                while not self._closed and self._number == seen:
                    await self._news.wait()
            if self._closed:
                break
            snapshot = self._snapshot | {"ended": self._ended.since(ended)}
            seen, ended = self._number, self._ended.count
            await response.write(event(orjson.dumps(snapshot), b"snapshot"))
        await response.write_eof()
        return response

    async def _make_snapshots(self) -> None:
        """A new one every INTERVAL_S, whatever happens to one of them."""
        while True:
            try:
                self._snapshot = await self._make()
            except Exception:
                log.exception("there is no snapshot this time")
            async with self._news:
                self._number += 1
                self._news.notify_all()
            await asyncio.sleep(INTERVAL_S)

    async def _make(self) -> dict[str, Any]:
        ring = self._ring
        scheduler: Map = {}
        if ring.states.get("scheduler") == "ready":
            try:
                async with asyncio.timeout(WATCH_PATIENCE_S):
                    scheduler = await self._engine.watch()
            except (ApiError, TimeoutError) as error:
                log.debug("the scheduler shows nothing: %s", error)
        requests = _merge(scheduler.get("sequences", []), await self._gather())
        now_ns = time.monotonic_ns()
        figures = collect(ring, self._engine.observer.metrics, self._engine.in_flight())
        return {
            "now_ms": now_ns / NS_PER_MS,
            "time": time.time(),
            "model": ring.names[0] if ring.names else None,
            "draining": ring.draining,
            "processes": [self._process(name) for name in ring.states],
            "queues": scheduler.get("queues"),
            "batch": scheduler.get("batch"),
            "blocks": scheduler.get("blocks"),
            "requests": requests,
            "series": self._series.point(figures, now_ns),
        }

    def _process(self, name: str) -> dict[str, Any]:
        """One process: its state, and its own figures."""
        age_s = self._ring.age_s(name)
        figures = self._ring.ledger.of(name).get("process", {})
        return {
            "name": name,
            "state": self._ring.states[name],
            "age_s": None if age_s is None else round(age_s, 3),
            "progress": self._ring.progress(name),
            **{key: value for key, value in figures.items() if key != "started_ns"},
        }

    async def _gather(self) -> dict[int, dict[str, Any]]:
        """The sequences that the gateways have in flight, by rid; and take in which have ended since the last look."""
        names = [self._company.name, *self._company.others]
        shares = await asyncio.gather(*(self._share_of(name) for name in names))
        ended: list[dict[str, Any]] = []
        held: dict[int, dict[str, Any]] = {}
        for name, share in zip(names, shares, strict=True):
            if share is not None:
                self._told[name] = share["run"], share["count"]
                ended += share["ended"]
                held.update(zip(share["rids"], share["requests"], strict=True))
        for entry in sorted(ended, key=lambda entry: entry["ended_ms"]):
            self._ended.add(entry)
        return held

    async def _share_of(self, name: str) -> Map | None:
        """What a gateway has to show; None when it cannot be asked."""
        run, count = self._told.get(name, (0, 0))
        details = {"run": run, "since": count}
        if name == self._company.name:
            return await self._share(details)
        try:
            async with asyncio.timeout(WATCH_PATIENCE_S):
                return await self._company.ask(name, "live", details)
        except (ApiError, TimeoutError) as error:
            log.debug("%s shows nothing: %s", name, error)
            return None

    async def _share(self, details: Map) -> Map:
        """This gateway's part: for itself, or for another one that has been told `since` many ends of this `run`."""
        ended = self._engine.observer.ended_sequences
        members = ((stream, *member) for stream in self._engine.streams for member in _members(stream))
        held = islice((member for member in members if not member[2].over), MAX_REQUESTS)
        shown = {rid: _unknown(stream, sequence) for stream, rid, sequence in held}
        return {
            "run": self._run,
            "count": ended.count,
            "ended": ended.since(details["since"] if details["run"] == self._run else 0),
            "rids": list(shown),
            "requests": list(shown.values()),
        }


def _members(stream: Stream) -> list[tuple[int, Sequence]]:
    return list(zip(stream.rids, stream.sequences, strict=True))


def _merge(sequences: list[Map], held: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every sequence in flight: those that the scheduler has, and those that only their gateways know."""
    found = {item["rid"]: item for item in sequences}
    shown = [_known(item, held.get(rid)) for rid, item in found.items()]
    shown += [entry for rid, entry in held.items() if rid not in found]
    return shown[:MAX_REQUESTS]


def _known(item: Map, held: dict[str, Any] | None) -> dict[str, Any]:
    """A sequence as the scheduler sees it; its gateway, if that shows it, knows which choice of the request it is."""
    shown = {
        (key.removesuffix("_ns") + "_ms" if key.endswith("_ns") else key): value / NS_PER_MS or None
        if key.endswith("_ns")
        else value
        for key, value in item.items()
        if key not in ("rid", "choice")
    }
    return shown | {"index": item["choice"] if held is None else held["index"]}


def _unknown(stream: Stream, sequence: Sequence) -> dict[str, Any]:
    """A sequence as its gateway knows it: it is being tokenized, or its end is on the way back."""
    return {
        "id": stream.job.request_id,
        "index": sequence.index,
        "state": "tokenizing" if sequence.head is None else "detokenizing",
        "received_ms": stream.job.received_ns / NS_PER_MS,
        "output_tokens": sequence.num_tokens,
    }
