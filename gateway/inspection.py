"""The endpoints that ask the scheduler, and other gateways: GET /v1/requests/{id} and /flush_cache."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from gateway.company import Company
from gateway.engine import Engine
from gateway.errors import SHOWN_NAME_CHARS, ApiError, shorten
from gateway.json_response import json_response
from gateway.ring import RingView
from gateway.streams import Stream
from gateway.timings import NS_PER_MS, span_ms
from ipc.codec import Map

PREFIXES = ("chatcmpl-", "cmpl-", "msg_", "resp_")  # what answers put before a request's id


class Inspection:
    """The handlers."""

    def __init__(self, engine: Engine, ring: RingView, company: Company) -> None:
        self._engine = engine
        self._ring = ring
        self._company = company
        company.answer("request", self._held_here)

    async def request(self, request: web.Request) -> web.Response:
        """Where a request is: of those in flight any, of those that have ended the last few hundred.

        Of several that are called the same it is the newest. Raises ApiError 404 and 503.
        """
        self._ring.need("scheduler")
        given = request.match_info["id"]
        names = list(dict.fromkeys((given, *(given.removeprefix(prefix) for prefix in PREFIXES))))
        answers, silent = await self._company.ask_others("request", {"names": names})
        for name in names:
            here = self._engine.find(name)
            found = [held(here)] if here is not None else []
            found += [answer[name] for answer in answers if name in answer]
            newest = max(found, key=lambda each: each["received_ns"], default=None)
            reported = await self._engine.inspect(name)
            if newest is not None or reported:
                model = self._ring.name_for(None) if newest is None else newest["model"]
                return json_response(describe(name, model, newest, reported, time.monotonic_ns(), time.time()))
        if silent:
            raise silent[0]  # it may be the one that knows
        shown = shorten(given, SHOWN_NAME_CHARS)
        raise ApiError(404, f"no request is called {shown!r}; those that ended are remembered for a while only")

    async def _held_here(self, details: Map) -> Map:
        """Another gateway asks for requests of these names."""
        streams = {name: self._engine.find(name) for name in details["names"]}
        return {name: held(stream) for name, stream in streams.items() if stream is not None}

    async def flush_cache(self, request: web.Request) -> web.Response:
        """Forget every cached prefix; how many KV blocks that made free. Raises ApiError 503."""
        self._ring.need("scheduler")
        return json_response({"blocks": await self._engine.flush_cache()})


def held(stream: Stream) -> Map:
    """What its gateway knows of a request in flight, as plain data: another one may have been asked for it."""
    return {
        "received_ns": stream.job.received_ns,
        "model": stream.job.model,
        "n": stream.job.n,
        "stream": stream.job.stream,
        "metadata": stream.job.metadata,
        "unsent_bytes": stream.unsent_bytes,
        "sequences": [
            {"rid": rid, "index": each.index, "sent_tokens": each.num_taken, "has_ended": each.tail is not None}
            for rid, each in zip(stream.rids, stream.sequences, strict=True)
        ],
    }


def describe(
    request_id: str, model: str, held: Map | None, reported: list[Map], now_ns: int, now_s: float
) -> dict[str, Any]:
    """What is known of a request: by its gateway, which has `held` of it, and by the scheduler, which `reported`.

    `now_ns` is monotonic, `now_s` is the time of day. One of `held` and `reported` has something in it.
    """
    received_ns = max(item["received_ns"] for item in reported) if held is None else held["received_ns"]
    found = {item["rid"]: item for item in reported if item["received_ns"] == received_ns}
    sequences = {} if held is None else {each["rid"]: each for each in held["sequences"]}
    places = (
        _places(found) if held is None else {rid: divmod(each["index"], held["n"]) for rid, each in sequences.items()}
    )
    age_ns = now_ns - received_ns
    return {
        "id": request_id,
        "object": "request",
        "created": int(now_s - age_ns / 1e9),
        "model": model,
        "age_ms": round(age_ns / NS_PER_MS, 3),
        "stream": held and held["stream"],
        "metadata": held and held["metadata"],
        "unsent_bytes": held and held["unsent_bytes"],
        "sequences": [
            {"prompt": prompt, "choice": choice, "rid": rid} | _progress(found.get(rid), sequences.get(rid))
            for rid, (prompt, choice) in places.items()
        ],
    }


def _places(found: dict[int, Map]) -> dict[int, tuple[int, int]]:
    """The prompt and the choice that each rid stands for. A request's prompts have rising rids, n each."""
    first_of = {rid: rid - found[rid]["choice"] for rid in sorted(found)}
    prompts = {first: prompt for prompt, first in enumerate(dict.fromkeys(first_of.values()))}
    return {rid: (prompts[first], rid - first) for rid, first in first_of.items()}


def _progress(item: Map | None, sequence: Map | None) -> dict[str, Any]:
    """How far a sequence is, its moments as milliseconds since its request was received."""
    shown: dict[str, Any] = {}
    if item is None:
        # The scheduler has not got it yet; or has forgotten it, while others of its request go on.
        has_ended = sequence is not None and sequence["has_ended"]
        shown["state"] = "finished" if has_ended else "tokenizing"
    else:
        for name, value in item.items():
            if name.endswith("_ns"):
                shown[name.removesuffix("_ns") + "_ms"] = span_ms(item["received_ns"], value)
            else:
                shown[name] = value
        del shown["received_ms"], shown["rid"], shown["choice"]
    shown["sent_tokens"] = sequence and sequence["sent_tokens"]
    return shown
