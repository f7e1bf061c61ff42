"""/start_profile and /stop_profile: what they take, what they refuse, and the trace that comes out."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
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
from gateway.profiling import session
from gateway.profiling.parts import Part, Recorded
from gateway.profiling.session import Profiler, Wanted, write_trace
from gateway.profiling.trace import trace_events
from gateway.server import Port
from ipc.control_messages import StartProfile, StopProfile
from ipc.profiling import Profiled, chunks
from ipc.spans import ADMIT, DETOKENIZE, LAUNCH, PLAN, READ, RESULT, SEND, STEP, SUBMIT, TEXT, TOKENIZE, Recording, Row
from tests.gateway.scripted_ring import CONFIG, NAMES, ScriptedRing


class World:
    """A profiler whose other processes answer each StopProfile with one span."""

    def __init__(self, ring: ScriptedRing, folder: Path) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.silent: set[str] = set()
        profiled = Profiled("gateway", lambda name: pytest.fail("the gateway answers itself"))
        process: Any = SimpleNamespace(name="gateway", profiled=profiled, spans=profiled.spans, peer=self._peer)
        ring.engine.observer.spans = profiled.spans
        self.spans = profiled.spans
        self.profiler = Profiler(process, ring.view, ring.engine.observer, str(folder))
        self.controls = Controls(ring.view, self.profiler, self._send, Company())

    def _peer(self, name: str) -> Any:
        return SimpleNamespace(send=lambda message: self._send(name, message))

    def _send(self, name: str, message: Any) -> None:
        self.sent.append((name, message))
        if isinstance(message, StopProfile) and name not in self.silent:
            for chunk in chunks(name, Recording([(SUBMIT, 10, 20, 1, 2)], 0), b""):
                asyncio.get_running_loop().call_soon(self.profiler.on_chunk, chunk)

    def started(self) -> dict[str, StartProfile]:
        return {name: message for name, message in self.sent if isinstance(message, StartProfile)}


@pytest.fixture
def world(ring: ScriptedRing, tmp_path: Path) -> World:
    return World(ring, tmp_path / "profiles")


@pytest_asyncio.fixture
async def http(ring: ScriptedRing, world: World) -> AsyncIterator[aiohttp.ClientSession]:
    port = Port(build_app(ring.engine, ring.view, CONFIG, KeyRing([]), world.controls))
    async with aiohttp.ClientSession(await port.open("127.0.0.1", 0)) as session:
        yield session
    await port.close()


async def post(http: aiohttp.ClientSession, path: str, body: Any = None) -> tuple[int, Any]:
    async with http.post(path, json=body) if body is not None else http.post(path) as response:
        if response.status == 409:
            assert response.headers["x-should-retry"] == "false"
        return response.status, await response.json()


async def test_a_profile_from_start_to_trace(
    ring: ScriptedRing, http: aiohttp.ClientSession, world: World, chat_body: dict[str, object]
) -> None:
    status, answer = await post(http, "/start_profile")
    assert status == 200
    assert answer["processes"] == list(NAMES)
    assert set(world.started()) == set(NAMES) - {"gateway"}
    assert world.spans.on
    ring.script = lambda generate: ring.answer(generate, ["a", "b"])
    assert (await post(http, "/v1/chat/completions", chat_body | {"request_id": "mine"}))[0] == 200
    status, stopped = await post(http, "/stop_profile")
    assert status == 200
    assert stopped == {
        "trace": answer["trace"], "bytes": Path(answer["trace"]).stat().st_size, "missing": [], "dropped_spans": {},
    }  # fmt: skip
    assert not world.spans.on
    with gzip.open(stopped["trace"]) as file:
        events = json.load(file)["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == [f"quintet: {name}" for name in sorted(NAMES)]
    [request] = [event for event in events if event["ph"] == "b" and event["name"] == "request"]
    assert request["args"]["request_id"] == "mine"
    assert list(Path(stopped["trace"]).parent.iterdir()) == [Path(stopped["trace"])]


async def test_one_at_a_time_and_none_to_stop(http: aiohttp.ClientSession) -> None:
    assert (await post(http, "/stop_profile"))[0] == 409
    assert (await post(http, "/start_profile"))[0] == 200
    status, answer = await post(http, "/start_profile")
    assert (status, "stop_profile" in answer["error"]["message"]) == (409, True)
    assert (await post(http, "/stop_profile"))[0] == 200
    assert (await post(http, "/stop_profile"))[0] == 409


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"processes": ["model"]}, {}),
        ({"steps": 7}, {"steps": 7}),
        ({"num_steps": 7, "activities": ["CPU", "GPU"]}, {"steps": 7, "torch": True}),
        ({"max_iterations": 0, "delay_iterations": 0, "profiler_kwargs": {}}, {"steps": 0}),
        ({"torch": False}, {"torch": False}),
        ({"with_stack": True, "record_shapes": True}, {"stacks": True, "shapes": True}),
        ({"stacks": True, "start_step": None, "profile_by_stage": False}, {"stacks": True}),
    ],
)
async def test_what_is_asked_for(
    http: aiohttp.ClientSession, world: World, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert (await post(http, "/start_profile", body))[0] == 200
    if body.get("processes"):
        assert set(world.started()) == {"model"}
        assert not world.spans.on
    message = world.started()["model"]
    for name, value in expected.items():
        assert getattr(message, name) == value
    assert (await post(http, "/stop_profile"))[0] == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"what": 1}, "what"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": "1"}, "seconds"),
        ({"steps": 0}, "steps"),
        ({"steps": 2, "num_steps": 3}, "steps"),
        ({"steps": 2, "processes": ["model"]}, "steps"),
        ({"processes": []}, "processes"),
        ({"processes": ["modell"]}, "processes[0]"),
        ({"activities": ["XPU"]}, "activities[0]"),
        ({"torch": False, "activities": ["CPU"]}, "activities"),
        ({"output_dir": "/tmp"}, "output_dir"),
        ({"start_step": 3}, "start_step"),
        ({"profile_prefix": "../x"}, "profile_prefix"),
        ({"profile_prefix": ".x"}, "profile_prefix"),
    ],
)
async def test_what_is_refused(http: aiohttp.ClientSession, world: World, body: dict[str, Any], param: str) -> None:
    status, answer = await post(http, "/start_profile", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert world.sent == []


async def test_seconds_and_steps_end_a_profile(http: aiohttp.ClientSession, world: World) -> None:
    _, started = await post(http, "/start_profile", {"seconds": 0.05, "profile_prefix": "short"})
    path = Path(started["trace"])
    assert path.name.startswith("short-")
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.01)
    status, stopped = await post(http, "/stop_profile")  # tells where the one that has ended is
    assert (status, stopped["trace"]) == (200, str(path))
    assert (await post(http, "/stop_profile"))[0] == 409
    await post(http, "/start_profile", {"steps": 3})
    world.profiler.on_step_limit()
    status, stopped = await post(http, "/stop_profile")
    assert status == 200


async def test_a_folder_that_cannot_be_written_to(ring: ScriptedRing, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    world = World(ring, tmp_path / "file" / "profiles")
    port = Port(build_app(ring.engine, ring.view, CONFIG, KeyRing([]), world.controls))
    async with aiohttp.ClientSession(await port.open("127.0.0.1", 0)) as http:
        for _ in range(2):  # it is no profile that runs
            status, answer = await post(http, "/start_profile")
            assert status == 500
            assert "Not a directory" in answer["error"]["message"]
        assert world.sent == []
    await port.close()


async def test_a_disk_that_is_full(http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, started = await post(http, "/start_profile")
    monkeypatch.setattr(session, "_write_events", full)
    status, answer = await post(http, "/stop_profile")
    assert status == 500
    assert "No space left on device" in answer["error"]["message"]
    assert list(Path(started["trace"]).parent.iterdir()) == []
    assert (await post(http, "/start_profile"))[0] == 200


async def test_a_process_that_does_not_answer_is_named(
    http: aiohttp.ClientSession, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE_S", 0.05)
    world.silent = {"detokenizer"}
    await post(http, "/start_profile", {"torch": False})
    status, answer = await post(http, "/stop_profile")
    assert (status, answer["missing"]) == (200, ["detokenizer"])


async def test_the_end_of_the_server_ends_the_profile(world: World, tmp_path: Path) -> None:
    file = tmp_path / "whole.json"
    await world.profiler.start(Wanted(file=file))
    await world.profiler.close(5.0)
    assert json.loads(file.read_bytes())["traceEvents"]
    await world.profiler.close(5.0)  # nothing is running any more


async def test_a_gateway_has_a_part_in_the_profile_of_another(ring: ScriptedRing, world: World) -> None:
    world.profiler.on_start(StartProfile("gateway.1", 0, True, False, False))
    assert world.spans.on
    world.profiler.on_stop(StopProfile("gateway.1"))
    assert [message.last for name, message in world.sent if name == "gateway.1"] == [True]
    assert not world.spans.on
    await world.profiler.close(5.0)  # it is not this one's to end


# -- the trace itself -------------------------------------------------------------------------------------------------

REQUEST = Recorded(
    rid=5, first_rid=4, request_id="r", reason="stop", prompt_tokens=3, output_tokens=2, first_step=1,
    received_ns=1000, tokenized_ns=2000, queued_ns=3000, scheduled_ns=4000, started_ns=5000, first_token_ns=6000,
    finished_ns=9000, delivered_ns=9500, sent_ns=9900,
)  # fmt: skip


def parts() -> dict[str, Part]:
    detail = json.dumps({"requests": [[getattr(REQUEST, name) for name in Recorded.__slots__]]}).encode()
    rows: dict[str, list[Row]] = {
        "gateway": [(READ, 1000, 1500, 4, 2), (TEXT, 6500, 6600, 6000, 1), (TEXT, 9400, 9600, 9000, 1)],
        "tokenizer": [(TOKENIZE, 1600, 2000, 4, 1)],
        "scheduler": [
            (SUBMIT, 3000, 3100, 4, 3), (ADMIT, 4000, 4000, 5, 1), (PLAN, 4000, 4200, 1, 3),
            (RESULT, 6000, 6050, 1, 1), (SEND, 6100, 6200, 6000, 1), (SEND, 9100, 9200, 9000, 1),
        ],
        "model": [(LAUNCH, 4900, 5000, 1, 1), (STEP, 5000, 5900, 1, 1), (STEP, 5500, 6900, 2, 1)],
        "detokenizer": [(DETOKENIZE, 6300, 6400, 6000, 1), (DETOKENIZE, 9250, 9300, 9000, 1)],
    }  # fmt: skip
    return {
        name: Part(rows=found, detail=bytearray(detail if name == "gateway" else b"")) for name, found in rows.items()
    }


def events(phase: str) -> Iterator[dict[str, Any]]:
    return (event for event in trace_events(parts()) if event["ph"] == phase)


def test_a_request_is_followed_round_the_ring() -> None:
    way = [event for event in trace_events(parts()) if event["ph"] in "stf"]
    assert [event["ph"] for event in way] == ["s"] + ["t"] * (len(way) - 2) + ["f"]
    assert [event["pid"] for event in way] == [1, 2, 3, 3, 4, 4, 3, 3, 5, 1, 3, 5, 1]
    slices = {(event["pid"], event["tid"], event["ts"]) for event in events("X")}
    assert all((event["pid"], event["tid"], event["ts"]) in slices for event in way)


def test_stages_lie_one_behind_the_other() -> None:
    stages = REQUEST.stages()
    assert stages[0][1] == REQUEST.received_ns
    assert stages[-1][2] == REQUEST.sent_ns
    assert all(before[2] == after[1] for before, after in pairwise(stages))


def test_a_step_behind_another_one_begins_when_that_has_ended() -> None:
    steps = [event for event in events("X") if event["name"] == "step"]
    assert [(event["tid"], event["ts"], event["dur"]) for event in steps] == [(10, 4.0, 0.9), (10, 4.9, 1.0)]


def test_torch_events_are_on_the_same_clock() -> None:
    found = parts()
    torch = {"events": [{"ph": "X", "name": "aten::mm", "pid": 77, "tid": 77, "ts": 5.25, "dur": 0.5}]}
    found["model"].detail += json.dumps(torch).encode()
    [event] = [event for event in trace_events(found) if event["name"] == "aten::mm"]
    assert (event["ts"], event["pid"]) == (4.25, 4)
    assert event["tid"] >= 100


def test_plain_json_is_written_where_the_name_says_so(tmp_path: Path) -> None:
    size = write_trace(tmp_path / "x.json", parts())
    assert size == (tmp_path / "x.json").stat().st_size
    assert json.loads((tmp_path / "x.json").read_bytes())["traceEvents"]
