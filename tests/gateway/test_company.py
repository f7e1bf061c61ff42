"""Two gateways: whichever of them is asked, the answer is about both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from gateway.app import build_app
from gateway.auth import KeyRing
from gateway.company import Company
from gateway.controls import Controls
from gateway.profiling.session import Profiler
from gateway.server import Port
from ipc.codec import decode, encode
from ipc.control_messages import Beat, Held, Lost, RingState
from ipc.messages import AskGateway, Generate
from ipc.names import gateway_name
from ipc.profiling import Profiled
from tests.gateway.answers import next_event
from tests.gateway.scripted_ring import CONFIG, NAMES, ScriptedRing, head, tail
from tests.gateway.test_live import snapshots

TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
STATES = dict.fromkeys((*NAMES, "gateway.1"), "ready")


class Pair:
    """Two gateways, each on a scripted ring of its own, that hear of each other as through sockets."""

    def __init__(self, folder: Path) -> None:
        self.rings = [ScriptedRing(gateway=index) for index in range(2)]
        self.companies: list[Company] = []
        self.deaf: set[str] = set()  # gateways that take no message
        self.sent: list[tuple[str, Any]] = []  # to other processes
        self.ports: list[Port] = []
        self.http: list[aiohttp.ClientSession] = []
        for index, ring in enumerate(self.rings):
            ring.view.update(RingState(STATES))
            name, other = gateway_name(index), gateway_name(1 - index)
            company = Company(name, [other], self.send, ring.engine.take_rids, ring.view.need)
            self.companies.append(company)
            profiled = Profiled(name, lambda name: pytest.fail("a gateway sends its part without a thread"))
            process: Any = SimpleNamespace(
                name=name, profiled=profiled, spans=profiled.spans,
                peer=lambda name: SimpleNamespace(send=lambda message: self.send(name, message)),
            )  # fmt: skip
            profiler = Profiler(process, ring.view, ring.engine.observer, str(folder / name))
            controls = Controls(ring.view, profiler, self.send, company)
            self.ports.append(Port(build_app(ring.engine, ring.view, CONFIG, KeyRing([]), controls, company)))

    def send(self, name: str, message: Any) -> None:
        _, message = decode(encode(message, epoch=1))
        names = [company.name for company in self.companies]
        if name not in names:
            self.sent.append((name, message))
        elif name not in self.deaf:
            company = self.companies[names.index(name)]
            take = company.on_question if isinstance(message, AskGateway) else company.on_answer
            asyncio.get_running_loop().call_soon(take, message)

    async def open(self) -> None:
        self.http = [aiohttp.ClientSession(await port.open("127.0.0.1", 0)) for port in self.ports]

    async def close(self) -> None:
        for session, port in zip(self.http, self.ports, strict=True):
            await session.close()
            await port.close()


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    await pair.open()
    yield pair
    await pair.close()


async def get(http: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with http.get(path) as response:
        return response.status, await response.json()


async def test_a_request_is_found_through_either(pair: Pair) -> None:
    asking = asyncio.create_task(pair.http[1].post(TEXT, json={"prompt": "x", "request_id": "r1", "stream": False}))
    rid = (await pair.rings[1].next(Generate)).rid
    for http in pair.http:
        status, found = await get(http, "/v1/requests/cmpl-r1")
        assert (status, found["id"], found["stream"]) == (200, "r1", False)
        assert [each["rid"] for each in found["sequences"]] == [rid]
        assert (await get(http, "/v1/requests/r2"))[0] == 404
    pair.rings[1].bring([head(rid)], [(rid, "a", [1])], [tail(rid, 1)])
    (await asking).release()


async def test_who_cannot_ask_the_other_says_so_instead_of_no(pair: Pair) -> None:
    for name in ("requests/r1", "responses/resp_r1"):
        pair.rings[0].view.update(RingState(STATES | {"gateway.1": "lost"}))
        status, answer = await get(pair.http[0], f"/v1/{name}")
        assert (status, "gateway.1 is lost" in answer["error"]["message"]) == (503, True)
        # It is lost while it is asked.
        pair.rings[0].view.update(RingState(STATES))
        pair.deaf = {"gateway.1"}
        asking = asyncio.create_task(get(pair.http[0], f"/v1/{name}"))
        while not len(pair.companies[0]._questions):
            await asyncio.sleep(0)
        pair.companies[0].on_lost(Lost("gateway.1", 5, 9))
        assert (await asking)[0] == 503
        pair.deaf = set()


async def test_a_response_is_seen_and_cancelled_through_the_other(pair: Pair) -> None:
    ring = pair.rings[1]
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "One", [1])])
    body = {"input": "Hello", "stream": True, "request_id": "r"}
    async with pair.http[1].post(RESPONSES, json=body) as response:
        for _ in range(5):
            await response.content.readline()  # the name of the event
            await next_event(response)
        status, alive = await get(pair.http[0], f"{RESPONSES}/resp_r")
        assert (status, alive["status"]) == (200, "in_progress")
        async with pair.http[0].post(f"{RESPONSES}/resp_r/cancel") as cancelled:
            assert (cancelled.status, (await cancelled.json())["status"]) == (200, "cancelled")
        assert b"was cancelled" in await response.read()
    assert (await get(pair.http[0], f"{RESPONSES}/resp_r"))[0] == 404


async def test_the_first_one_makes_the_metrics_for_both(pair: Pair) -> None:
    pair.rings[0].view.update(Beat("scheduler", 1, {"steps": 7, "process": {"started_ns": 1}}))
    pages = []
    for http in pair.http:
        async with http.get("/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain")
            pages.append(await response.text())
    assert "quintet_steps_total 7.0" in pages[0]
    assert pages[1] == pages[0]
    pair.rings[1].view.update(RingState(STATES | {"gateway": "lost"}))
    assert (await get(pair.http[1], "/metrics"))[0] == 503


async def test_the_live_page_shows_both(pair: Pair) -> None:
    async with pair.http[0].get("/v1/events") as events:
        assert (await snapshots(events))["requests"] == []
        asking = asyncio.create_task(pair.http[1].post(TEXT, json={"prompt": "x", "request_id": "r1"}))
        rid = (await pair.rings[1].next(Generate)).rid
        while not (requests := (await snapshots(events))["requests"]):
            pass
        assert [(each["id"], each["state"]) for each in requests] == [("r1", "tokenizing")]
        pair.rings[1].bring([head(rid)], [(rid, "a", [1])], [tail(rid, 1)])
        (await asking).release()
        while not (ended := (await snapshots(events))["ended"]):
            pass
        assert [(each["id"], each["reason"]) for each in ended] == [("r1", "stop")]
        assert (await snapshots(events))["ended"] == []  # each is told once
        pair.rings[0].view.update(RingState(STATES | {"gateway.1": "lost"}))
        assert (await snapshots(events))["requests"] == []


async def test_a_profile_is_one_for_both(pair: Pair) -> None:
    async with pair.http[1].post("/start_profile", json={"processes": ["model"]}) as response:
        assert (response.status, (await response.json())["processes"]) == (200, ["model"])
    assert [name for name, _ in pair.sent] == ["model"]
    async with pair.http[0].post("/start_profile") as response:
        assert response.status == 409
    async with pair.http[1].post("/start_profile", json={"seconds": "x"}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "seconds")


async def test_loads_are_those_of_both(pair: Pair) -> None:
    pair.rings[0].view.update(Beat("gateway.1", 1, {"requests": 2, "sequences": 3, "look_ups": 0}))
    _, found = await get(pair.http[0], "/v1/loads")
    assert found["in_flight"] == {"requests": 2, "sequences": 3, "look_ups": 0}
    assert found["inflight_requests"] == 2


async def test_one_that_lacks_the_other_is_not_ready_and_serves(pair: Pair) -> None:
    ring, http = pair.rings[0], pair.http[0]
    ring.view.update(RingState(STATES | {"gateway.1": "lost"}))
    status, answer = await get(http, "/ready")
    assert (status, "gateway.1 is lost" in answer["error"]["message"]) == (503, True)
    ring.script = lambda generate: ring.answer(generate, ["a"])
    async with http.post(TEXT, json={"prompt": "x"}) as response:
        assert response.status == 200


async def test_what_the_other_has_is_not_aborted_behind_a_loss(pair: Pair) -> None:
    asking = asyncio.create_task(pair.http[1].post(TEXT, json={"prompt": "x"}))
    rid = (await pair.rings[1].next(Generate)).rid
    for ring in pair.rings:
        ring.engine.on_lost(Lost("tokenizer", 0, 9))
        ring.engine.on_held(Held("tokenizer", 0, 0, [rid]))
        assert ring.asked == []
    pair.rings[1].bring([head(rid)], [(rid, "a", [1])], [tail(rid, 1)])
    assert (await asking).status == 200


async def test_a_question_that_fails_is_answered_all_the_same(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async with pair.http[0].get("/ready"):
        pass
    for about in ("request", "nothing"):
        asking = pair.companies[0].ask("gateway.1", about, {"unknown": 1})
        with pytest.raises(Exception, match="failed inside the server"):
            await asking
    assert "could not be answered" in caplog.text
