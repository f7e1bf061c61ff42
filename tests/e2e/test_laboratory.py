"""The scheduler as people see it from outside: deadlines, one request's whereabouts, policies, lanes, the step log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from benchmark.server import Server, ServerError
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import client, wait_for, wait_until_idle

TEXT = "".join(WORDS)


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The seed's mock, which takes its time, with three places, the priority policy and all logs on."""
    step_log = tmp_path_factory.mktemp("logs") / "steps.jsonl"
    options: dict[str, Any] = {
        "mock_profile": "seed", "max_num_seqs": 3, "scheduling_policy": "priority", "enable_log_requests": True,
        "step_log": str(step_log),
    }  # fmt: skip
    with Server(model="mock", **options) as server:
        yield server


def post(server: Server, **body: Any) -> httpx.Response:
    body = {"prompt": "hello", "max_tokens": 128} | body
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def whereabouts(server: Server, name: str) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/v1/requests/{name}").json())


def test_a_deadline_ends_a_request_with_504_in_every_shape(slow_server: Server) -> None:
    answer = post(slow_server, timeout_ms=150)
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    stream = client(slow_server).completions.create(
        model="mock", prompt="hello", max_tokens=128, stream=True, extra_body={"timeout_ms": 300}
    )
    pieces: list[str] = []
    with pytest.raises(openai.APIError, match="300 ms"):
        pieces.extend(chunk.choices[0].text for chunk in stream)
    assert pieces
    assert TEXT.startswith("".join(pieces))
    wait_until_idle(slow_server)


def test_a_deadline_passes_in_the_queue_as_well(slow_server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(post, slow_server, prompt=f"busy {i}", ignore_eos=True) for i in range(3)]
        wait_for(lambda: running(slow_server) == 3, "all places taken")
        late = post(slow_server, timeout_ms=100)
        assert late.status_code == 504
        assert "waiting" in late.json()["error"]["message"]
        assert [answer.result().status_code for answer in busy] == [200] * 3
    wait_until_idle(slow_server)


def running(server: Server) -> int:
    return int(httpx.get(f"{server.url}/v1/loads").json()["running_queue_len"])


def test_one_request_can_be_followed_through_its_life(slow_server: Server) -> None:
    metadata = {"team": "blue"}
    with ThreadPoolExecutor(5) as pool:
        busy = [pool.submit(post, slow_server, prompt=f"busy {i}", ignore_eos=True) for i in range(3)]
        wait_for(lambda: running(slow_server) == 3, "all places taken")
        later = pool.submit(post, slow_server, request_id="later", priority=1)
        wait_for(lambda: state(slow_server, "later") == "waiting", "the late one queued")
        first = pool.submit(post, slow_server, request_id="first", priority=-1, metadata=metadata)
        wait_for(lambda: state(slow_server, "first") == "waiting", "the important one queued")
        report = whereabouts(slow_server, "cmpl-first")
        assert report["metadata"] == metadata
        assert report["sequences"][0]["queue_position"] == 0, "it is more important than the one before it"
        assert whereabouts(slow_server, "later")["sequences"][0]["queue_position"] == 1
        wait_for(lambda: state(slow_server, "first") == "decode", "the important one running")
        decoding = whereabouts(slow_server, "first")["sequences"][0]
        assert decoding["blocks"] > 0
        assert decoding["output_tokens"] > 0
        for answer in [*busy, later, first]:
            assert answer.result().status_code == 200
    over = whereabouts(slow_server, "first")["sequences"][0]
    assert (over["state"], over["finish_reason"]) == ("finished", "stop")
    assert httpx.get(f"{slow_server.url}/v1/requests/nobody").status_code == 404


def state(server: Server, name: str) -> str:
    report = whereabouts(server, name)
    return str(report["sequences"][0]["state"]) if "sequences" in report else "unknown"


def test_timings_tell_where_the_time_went(slow_server: Server) -> None:
    timings = post(slow_server).json()["timings"]
    assert timings["completion_tokens"] == 72, "a token without text from the prefill, and 71 words"
    assert timings["batch_size"] == 1.0
    assert timings["prefill_ms"] >= 10
    assert timings["decode_ms"] >= 71 * 5
    parts = timings["tokenize_ms"] + timings["queue_ms"] + timings["prefill_ms"] + timings["decode_ms"]
    assert parts == pytest.approx(timings["total_ms"], rel=0.2)


def test_every_step_and_every_transition_is_written_down(slow_server: Server) -> None:
    post(slow_server, request_id="noted")
    wait_for(lambda: "noted[0]: decode --finished--> finished" in "".join(slow_server.log), "its last line")
    lines = [line for line in slow_server.log if "noted[0]" in line]
    events = [line.split("--")[1] for line in lines]
    assert events == ["queued", "admitted", "prefill_finished", "finished"]
    path = next(argument for argument in slow_server.arguments if argument.startswith("--step-log="))
    slow_server.stop()
    steps = [json.loads(line) for line in Path(path.removeprefix("--step-log=")).read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert all(step["planned_ns"] <= step["started_ns"] <= step["finished_ns"] for step in steps)


def test_flushing_the_cache_makes_the_next_prompt_a_miss(mock_server: Server) -> None:
    def cached() -> int:
        usage = post(mock_server, prompt="flush me " * 40, max_tokens=1).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    httpx.post(f"{mock_server.url}/flush_cache")
    assert [cached(), cached() > 0] == [0, True]
    wait_until_idle(mock_server)
    assert httpx.post(f"{mock_server.url}/flush_cache").json()["blocks"] > 0
    assert cached() == 0


def test_many_lanes_give_the_same_texts() -> None:
    options: dict[str, Any] = {"mock_profile": "seed", "mock_lanes": 4, "max_num_step_seqs": 4}
    with Server(model="mock", **options) as server, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda i: post(server, prompt=f"lane {i}").json(), range(24)))
        assert [answer["choices"][0]["text"] for answer in answers] == [TEXT] * 24
        wait_until_idle(server)
        assert httpx.get(f"{server.url}/v1/loads").json()["idle_lanes"] == 4


def test_a_policy_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lifo.py").write_text(
        "from scheduler_proc.policies import KeyPolicy\n\n\n"
        "class Lifo(KeyPolicy):\n"
        "    def key(self, sequence):\n"
        "        return -sequence.order\n"
    )
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"mock_profile": "seed", "max_num_seqs": 1, "scheduling_policy": "lifo:Lifo"}
    with Server(model="mock", **options) as server, ThreadPoolExecutor(4) as pool:
        ended: list[str] = []
        lock = threading.Lock()

        def send(name: str, max_tokens: int) -> None:
            body = {"request_id": name, "max_tokens": max_tokens, "ignore_eos": True}
            assert post(server, **body).status_code == 200
            with lock:
                ended.append(name)

        jobs = [pool.submit(send, "running", 200)]
        wait_for(lambda: state(server, "running") == "decode", "the only place taken")
        for name in ("first", "second", "third"):
            jobs.append(pool.submit(send, name, 2))
            wait_for(lambda name=name: state(server, name) == "waiting", f"{name} queued")  # type: ignore[misc]
        for job in jobs:
            job.result()
    assert ended == ["running", "third", "second", "first"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scheduling_policy": "nowhere:Policy"}, "nowhere"),
        ({"mock_profile": "lightning"}, "lightning"),
        ({"step_log": "/no/such/folder/steps.jsonl"}, "--step-log"),
    ],
)
def test_what_cannot_be_set_up_is_said_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ServerError, match=complaint) as caught, Server(model="mock", **options):
        pass
    assert "Traceback" not in str(caught.value)
