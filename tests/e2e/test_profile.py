"""A profile of the real processes: one timeline on which every request can be followed round the ring."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx2 as httpx

from benchmark.server import Server
from benchmark.trace import Trace, load
from benchmark.trace_report import main, report
from tests.e2e.conftest import async_client, client, wait_for

RING = ["gateway", "tokenizer", "scheduler", "model", "detokenizer"]


async def mixed_load(server: Server) -> None:
    """Long and short prompts, streamed and whole, one choice and several, a chat."""
    api = async_client(server)
    hello: Any = [{"role": "user", "content": "hello"}]

    async def stream(prompt: str) -> None:
        async for _ in await api.completions.create(model="mock", prompt=prompt, max_tokens=20, stream=True):
            pass

    await asyncio.gather(
        stream("short"),
        stream("long " * 1500),
        api.completions.create(model="mock", prompt=["one", "two"], n=2, max_tokens=8),
        api.chat.completions.create(model="mock", messages=hello, max_tokens=12),
    )


def check(trace: Trace, num_requests: int) -> None:
    """Five tracks, and each request followed from the gateway to the gateway on one clock."""
    assert trace.processes == RING
    assert {span.process for span in trace.spans} == set(RING)
    assert all(span.end >= span.begin >= 0 for span in trace.spans)
    assert len(trace.requests) == num_requests
    assert set(trace.ways) == set(trace.requests)
    slices = {(span.process, span.track, round(span.begin, 3)) for span in trace.spans}
    for rid, way in trace.ways.items():
        assert [event["ph"] for event in way] == ["s"] + ["t"] * (len(way) - 2) + ["f"]
        assert {trace.processes[event["pid"] - 1] for event in way} == set(RING)
        assert way[0]["pid"] == way[-1]["pid"] == 1
        # Every arrow begins and ends at a slice of its process.
        for event in way:
            assert (trace.processes[event["pid"] - 1], event["tid"], round(event["ts"], 3)) in slices
        request = trace.requests[rid]
        assert request.covered >= 0.95
        assert request.begin <= way[0]["ts"]
        assert way[-1]["ts"] <= request.end
        # Its steps ran between its first plan and its last token.
        stages = {name: (begin, end) for name, begin, end in request.stages}
        begins = [span.begin for span in trace.spans if span.name == "step"]
        assert any(abs(stages["first step"][0] - begin) < 1000 for begin in begins)


def test_a_mixed_run_on_one_timeline(tmp_path: Path) -> None:
    with Server(model="mock", mock_profile="gpu", profile_dir=tmp_path) as server:
        asyncio.run(mixed_load(server))  # connections and code paths are there
        assert httpx.post(f"{server.url}/start_profile").status_code == 200
        asyncio.run(mixed_load(server))
        answer = httpx.post(f"{server.url}/stop_profile", timeout=60).json()
        assert (answer["missing"], answer["dropped_spans"]) == ([], {})
        path = Path(answer["trace"])
        assert answer["bytes"] == path.stat().st_size
        trace = load(path)
        check(trace, num_requests=7)
        figures = report(trace)
        assert figures["coverage"] >= 0.95
        assert {row["process"] for row in figures["processes"]} == set(RING)
        assert all(row["count"] > 0 for row in figures["token"])
        assert main([str(path), "--json", str(tmp_path / "report.json")]) == 0
        assert json.loads((tmp_path / "report.json").read_text())["token"]
        # The server goes on as before, and records nothing.
        assert client(server).completions.create(model="mock", prompt="x", max_tokens=3).usage


def test_a_number_of_steps(tmp_path: Path) -> None:
    with Server(model="mock", mock_profile="seed", max_model_len=30000, profile_dir=tmp_path) as server:
        started = httpx.post(f"{server.url}/start_profile", json={"steps": 5, "processes": ["scheduler"]}).json()
        minutes = {"model": "mock", "prompt": "x", "max_tokens": 29_000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=minutes):
            wait_for(lambda: Path(started["trace"]).exists(), "the trace is written after some steps")
            wait_for(lambda: httpx.get(f"{server.url}/v1/loads").json()["running_queue_len"] == 1, "it goes on")
        trace = load(Path(started["trace"]))
        assert trace.processes == ["scheduler"]
        assert sum(span.name == "plan" for span in trace.spans) >= 5


def test_a_profile_of_the_whole_life_is_written_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "life.json"
    with Server(model="mock", profile=path) as server:
        client(server).completions.create(model="mock", prompt="x", max_tokens=50)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    check(load(path), num_requests=1)


def test_a_real_model_shows_what_torch_does(real_server: Server) -> None:
    """Its operators are on the same clock: they lie within the launches of steps."""
    assert httpx.post(f"{real_server.url}/start_profile", json={"profile_prefix": "test"}).status_code == 200
    client(real_server).completions.create(model="smol", prompt="Once", max_tokens=3)
    answer = httpx.post(f"{real_server.url}/stop_profile", timeout=120).json()
    path = Path(answer["trace"])
    try:
        trace = load(path)
    finally:
        path.unlink()
    launches = [(span.begin, span.end) for span in trace.spans if span.name == "launch"]
    operators = [span for span in trace.device if span.name.startswith("aten::")]
    assert len(operators) > 100
    slack = 500  # microseconds: between the two clocks
    assert all(any(begin - slack <= span.begin <= end + slack for begin, end in launches) for span in operators)
