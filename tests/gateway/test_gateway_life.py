"""The gateway's process on real sockets: start, serve, drain, lose the ring, stop."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from array import array
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import pytest_asyncio
import zmq

from gateway.main import Gateway
from ipc.config import GatewayConfig, RingConfig
from ipc.control_messages import Beat, Drain, Drained, Fatal, Loading, Lost, Ready, RingState, Shutdown
from ipc.messages import Abort, FlushCache, Generate, Report, Submit, Text
from ipc.process import EXIT_FATAL, FatalError, Process
from ipc.sockets import AsyncInbox, Inbox, Outbox
from tests.gateway.answers import events_in, next_event
from tests.gateway.scripted_ring import CONFIG, MODEL, NAMES, PATIENCE_S, head, tail

TEXT = "/v1/completions"
Message = TypeVar("Message")


@pytest.fixture
def run_dir() -> Iterator[str]:
    """A folder with a short name: socket paths have 107 bytes."""
    folder = tempfile.mkdtemp(prefix="quintet-test-")
    yield folder
    shutil.rmtree(folder)


class Neighbour:
    """The inbox of a process that the test plays."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: str, name: str) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        inbox = Inbox(context, run_dir, name, epoch=3)
        self._inbox = AsyncInbox(inbox, asyncio.get_running_loop(), self._messages.put_nowait)

    async def next(self, kind: type[Message]) -> Message:
        """The next message of a kind; others that come before it are dropped."""
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance(message := await self._messages.get(), kind):
                pass
        return message

    def has_message(self) -> bool:
        return not self._messages.empty()

    def close(self) -> None:
        self._inbox.close()


class World:
    """A gateway's process, with the test in the place of all others."""

    def __init__(self, run_dir: str, config: GatewayConfig = CONFIG) -> None:
        self.process = Process("gateway", RingConfig(run_dir, epoch=3, log_level="info"), config)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.supervisor = Neighbour(self._context, run_dir, "supervisor")
        self.tokenizer = Neighbour(self._context, run_dir, "tokenizer")
        self.scheduler = Neighbour(self._context, run_dir, "scheduler")
        self._gateway = Outbox(self._context, run_dir, "gateway", epoch=3)
        self.num_texts = 0
        self.running = asyncio.create_task(Gateway(self.process).run())

    def send(self, message: Any) -> None:
        """Into the gateway's inbox."""
        self._gateway.send(message)

    def set_states(self, **states: str) -> None:
        self.send(RingState(dict.fromkeys(NAMES, "ready") | states))

    def bring(self, rid: int, text: str, ends: bool = False, opens: bool = False) -> None:
        """One token for one sequence."""
        tails = [tail(rid, 1)] if ends else []
        heads = [head(rid)] if opens else []
        self.send(Text(heads, [rid], [text], [1], array("i", [1]), None, tails, 1, number=self.num_texts))
        self.num_texts += 1

    async def close(self) -> None:
        self.send(Shutdown())
        async with asyncio.timeout(PATIENCE_S):
            await self.running
        self.process.close()
        for part in (self.supervisor, self.tokenizer, self.scheduler, self._gateway):
            part.close()
        self._context.term()


@pytest_asyncio.fixture
async def world(run_dir: str) -> AsyncIterator[World]:
    world = World(run_dir)
    yield world
    await world.close()


@pytest_asyncio.fixture
async def http(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the gateway, whose ring is all ready."""
    url = (await world.supervisor.next(Ready)).info["url"]
    world.send(MODEL)
    world.set_states()
    async with aiohttp.ClientSession(url) as session:
        await ready(session)
        yield session


async def ready(http: aiohttp.ClientSession, status: int = 200) -> None:
    """Wait until `/ready` says so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with http.get("/ready") as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_from_start_to_ready(world: World) -> None:
    message = await world.supervisor.next(Ready)
    assert message.process == "gateway"
    async with aiohttp.ClientSession(message.info["url"]) as http:
        async with http.get("/health") as response:
            assert response.status == 200
        async with http.get("/ready") as response:
            assert response.status == 503
        world.send(MODEL)
        world.set_states(model="starting")
        world.send(Loading("loading weights", 1, 2))
        world.send(Beat("model", 1, {"memory": 5}))
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with http.get("/v1/loads") as response:
                    if "model" in (await response.json())["processes"]:
                        break
        async with http.get("/ready") as response:
            assert (await response.json())["loading"]["done"] == 1
        world.set_states()
        await ready(http)
    assert world.process.progress > 0
    assert world.process.stats.items() >= {"requests": 0, "sequences": 0, "look_ups": 0}.items()


@pytest.mark.asyncio
async def test_a_request_round_the_ring(world: World, http: aiohttp.ClientSession) -> None:
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x"}))
    generate = await world.tokenizer.next(Generate)
    world.send(Submit(1, "", 1, array("i"), generate.sampling, generate.output, 0, "", 0, 0, None))  # astray
    world.send(Text([], [999], ["columns", "differ"], [1], array("i"), None, [], 1))  # a sender's bug
    world.num_texts += 1
    world.bring(generate.rid, "a", opens=True)
    world.bring(generate.rid, "b", ends=True)
    response = await asking
    assert (await response.json())["choices"][0]["text"] == "ab"


@pytest.mark.asyncio
async def test_a_question_to_the_scheduler_and_back(world: World, http: aiohttp.ClientSession) -> None:
    asking = asyncio.create_task(http.post("/flush_cache"))
    question = await world.scheduler.next(FlushCache)
    world.send(Report(question.rid, {"blocks": 3}))
    response = await asking
    assert (response.status, await response.json()) == (200, {"blocks": 3})


@pytest.mark.asyncio
async def test_drain_lets_running_requests_finish(world: World, http: aiohttp.ClientSession) -> None:
    assert set((await world.supervisor.next(RingState)).states.values()) == {"ready"}  # it says that it can serve
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x", "stream": True}))
    rid = (await world.tokenizer.next(Generate)).rid
    world.bring(rid, "a", opens=True)
    stream = await asking
    await next_event(stream)
    world.send(Drain(PATIENCE_S))
    await ready(http, status=503)
    async with http.post(TEXT, json={"prompt": "y"}) as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
    assert not world.supervisor.has_message()
    world.bring(rid, "b", ends=True)
    assert events_in(await stream.read())[-1]["choices"][0]["finish_reason"] == "stop"
    assert await world.supervisor.next(Drained) == Drained("gateway", 0)


@pytest.mark.asyncio
async def test_drain_when_idle_is_over_at_once(world: World, http: aiohttp.ClientSession) -> None:
    world.send(Drain(PATIENCE_S))
    assert await world.supervisor.next(Drained) == Drained("gateway", 0)


@pytest.mark.asyncio
@pytest.mark.parametrize("drains", [[0.02], [PATIENCE_S, 0.0]], ids=["deadline", "second"])
async def test_drain_cuts_what_is_left(world: World, http: aiohttp.ClientSession, drains: list[float]) -> None:
    """At the deadline; a second, shorter one counts."""
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x", "stream": True}))
    streaming = (await world.tokenizer.next(Generate)).rid
    world.bring(streaming, "a", opens=True)
    stream = await asking
    waiting = asyncio.create_task(http.post(TEXT, json={"prompt": "y"}))
    unary = (await world.tokenizer.next(Generate)).rid
    for timeout_s in drains:
        world.send(Drain(timeout_s))
    assert await world.supervisor.next(Drained) == Drained("gateway", 2)
    assert events_in(await stream.read())[-1]["error"]["type"] == "unavailable_error"
    assert (await waiting).status == 503
    aborted = [*(await world.tokenizer.next(Abort)).rids, *(await world.tokenizer.next(Abort)).rids]
    assert sorted(aborted) == [streaming, unary]


@pytest.mark.asyncio
async def test_a_lost_process_ends_what_is_in_flight(world: World, http: aiohttp.ClientSession) -> None:
    asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x"}))
    await world.tokenizer.next(Generate)
    world.send(Lost("scheduler", 3, 4))
    world.set_states(scheduler="lost")
    response = await asking
    assert response.status == 503
    assert "scheduler" in (await response.json())["error"]["message"]
    async with http.get("/ready") as response:
        assert response.status == 503
        assert "scheduler is lost" in (await response.json())["error"]["message"]


@pytest.mark.asyncio
async def test_nothing_is_let_in_between_a_loss_and_the_state_of_the_ring(
    world: World, http: aiohttp.ClientSession
) -> None:
    world.send(Lost("model", 3, 4))
    await ready(http, status=503)
    async with http.post(TEXT, json={"prompt": "x"}) as response:
        assert response.status == 503
        assert "model is lost" in (await response.json())["error"]["message"]


@pytest.mark.asyncio
async def test_shutdown_closes_the_port_and_ends_what_is_in_flight(run_dir: str) -> None:
    world = World(run_dir)
    url = (await world.supervisor.next(Ready)).info["url"]
    world.send(MODEL)
    world.set_states()
    async with aiohttp.ClientSession(url) as http:
        await ready(http)
        asking = asyncio.create_task(http.post(TEXT, json={"prompt": "x"}))
        await world.tokenizer.next(Generate)
        await world.close()
        assert (await asking).status == 503
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("/health")
    assert not world.process.running


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, max_body_mib=49), "--max-body-mib is 49"),
        (replace(CONFIG, request_timeout=1e12), "--request-timeout is 1e+12 s, but it may be 604800 s at most"),
        (replace(CONFIG, request_timeout=math.nan), "--request-timeout is nan s"),
    ],
    ids=["body", "timeout", "nan"],
)
async def test_a_limit_beyond_a_message_is_fatal(run_dir: str, config: GatewayConfig, message: str) -> None:
    world = World(run_dir, config)
    with pytest.raises(FatalError, match=f"^{re.escape(message)}"):
        await world.running
    world.running = asyncio.create_task(asyncio.sleep(0))
    await world.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("config", "warns"),
    [
        (replace(CONFIG, host="0.0.0.0"), True),
        (replace(CONFIG, host="0.0.0.0", api_key=["k"]), False),
        (CONFIG, False),
    ],
    ids=["open", "with a key", "local"],
)
async def test_a_public_address_without_a_key_is_warned_of(
    run_dir: str, config: GatewayConfig, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(run_dir, config)
    await world.supervisor.next(Ready)
    await world.close()
    assert ("can be reached from other machines" in caplog.text) is warns


class ChildGateway:
    """`python -m gateway`, as the supervisor starts it."""

    def __init__(self, run_dir: str, port: int) -> None:
        ring = {"run_dir": run_dir, "epoch": 3, "log_level": "warning", "log_format": "text", "runs": {}}
        config = asdict(replace(CONFIG, port=port))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway"], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"name": "gateway", "ring": ring, "config": config}).encode() + b"\n")
        self.process.stdin.flush()


@pytest.mark.asyncio
async def test_the_process_says_why_it_cannot_start(run_dir: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    supervisor = Neighbour(context, run_dir, "supervisor")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        child = ChildGateway(run_dir, taken.getsockname()[1])
        fatal = await supervisor.next(Fatal)
        assert (fatal.process, "is in use" in fatal.message) == ("gateway", True)
        assert await asyncio.to_thread(child.process.wait, PATIENCE_S) == EXIT_FATAL
    supervisor.close()
    context.term()


@pytest.mark.asyncio
async def test_the_process_serves_and_stops(run_dir: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    supervisor = Neighbour(context, run_dir, "supervisor")
    child = ChildGateway(run_dir, 0)
    url = (await supervisor.next(Ready)).info["url"]
    async with aiohttp.ClientSession(url) as http, http.get("/health") as response:
        assert response.status == 200
    os.kill(child.process.pid, signal.SIGTERM)  # the supervisor alone decides what that means
    await supervisor.next(Beat)
    gateway = Outbox(context, run_dir, "gateway", epoch=3)
    gateway.send(Shutdown())
    assert await asyncio.to_thread(child.process.wait, PATIENCE_S) == 0
    gateway.close()
    supervisor.close()
    context.term()
