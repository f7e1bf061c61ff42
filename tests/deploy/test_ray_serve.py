"""The application on a Ray cluster of its own: what a user starts with `serve run deploy/ray/app.yaml`, with mocks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.e2e.conftest import wait_for

pytest.importorskip("ray.serve")

from benchmark.ray_cluster import RayCluster, application

REPLICAS = 3
REPLICA_HEADER = "x-quintet-replica"
# A step takes some 30 ms, so that what is going on can be interfered with.
FLAGS = ["--mock-profile=linear", "--shutdown-timeout=20"]
PATIENCE_S = 300.0  # for what has to happen on a busy machine, on which Ray starts a ring
SETTINGS: dict[str, Any] = {"graceful_shutdown_wait_loop_s": 0.2, "health_check_period_s": 1.0}
LONG = "a prompt that is longer than some blocks of the cache, so that most of it can be found again " * 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(application(FLAGS, REPLICAS, **SETTINGS)) as cluster:
        wait_for(lambda: len(replicas(cluster)) == REPLICAS, "all replicas are there", PATIENCE_S)
        yield cluster


def replicas(cluster: RayCluster) -> set[str]:
    """The names of those that answer."""
    return set(loads(cluster).get("replicas", ()))


def loads(cluster: RayCluster) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{cluster.url}/v1/loads", timeout=PATIENCE_S).json()
    return found


def client(cluster: RayCluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "mock", "messages": [{"role": "user", "content": text}], "max_tokens": 2, **fields}


def post(cluster: RayCluster, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(cluster.url + path, json=body, timeout=PATIENCE_S)


def test_the_front_door_answers_as_a_ring_does(cluster: RayCluster) -> None:
    ask = client(cluster).chat.completions
    answer = ask.create(**chat("hello", max_tokens=4))
    with ask.create(**chat("hello", max_tokens=4), stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) == 6  # role, four tokens, end
    assert "".join(pieces) == answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert [model.id for model in client(cluster).models.list()] == ["mock"]
    with pytest.raises(openai.NotFoundError, match="the model 'other' does not exist"):
        ask.create(**chat("hello", model="other"))
    wrong = post(cluster, "/v1/completions", {"prompt": "a", "max_tokens": -1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "max_tokens")
    assert httpx.get(f"{cluster.url}/nothing", timeout=PATIENCE_S).json()["error"]["code"] == 404
    assert "'a/b?'" in httpx.get(f"{cluster.url}/v1/models/a%2Fb%3F", timeout=PATIENCE_S).json()["error"]["message"]
    named = httpx.get(f"{cluster.url}/v1/models", headers={"X-Request-Id": "mine"}, timeout=PATIENCE_S)
    assert named.headers.get_list("x-request-id") == ["mine"]
    assert named.headers[REPLICA_HEADER] in replicas(cluster)


def test_what_concerns_all_rings_is_asked_of_all(cluster: RayCluster) -> None:
    names = replicas(cluster)
    page = httpx.get(f"{cluster.url}/metrics", timeout=PATIENCE_S).text
    sums = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running{")]
    assert {line.partition('replica="')[2].partition('"')[0] for line in sums} == names
    assert set(post(cluster, "/flush_cache", {}).json()["replicas"]) == names


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request_in_the_ring(cluster: RayCluster, stream: bool) -> None:
    endless = chat("hello", max_tokens=4000, ignore_eos=True, stream=stream)
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(read_for_two_seconds, f"{cluster.url}/v1/chat/completions", endless)
        wait_for(lambda: loads(cluster)["running_queue_len"] == 1, "it runs")
        assert leaving.result() is stream
    wait_for(lambda: loads(cluster)["running_queue_len"] == 0, "its ring has given it up")


def read_for_two_seconds(url: str, body: dict[str, Any]) -> bool:
    """Whether anything came in that time."""
    came = False
    deadline = time.monotonic() + 2
    with contextlib.suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=2) as response:
        for _ in response.iter_raw():
            came = True
            if time.monotonic() > deadline:
                break
    return came


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", lambda text: {"prompt": text, "max_tokens": 2}),
        ("/v1/chat/completions", lambda text: chat(text, prompt_cache_key="another")),
        ("/v1/responses", lambda text: {"input": text, "max_output_tokens": 2, "prompt_cache_key": "a third"}),
        ("/v1/messages", chat),
        ("/generate", lambda text: {"text": text, "sampling_params": {"max_new_tokens": 2}}),
    ],
)
def test_a_prompt_goes_where_its_prefix_is_cached(
    cluster: RayCluster, path: str, body: Callable[[str], dict[str, Any]]
) -> None:
    """Whatever the dialect: the hash ring alone would agree with the first request a third of the time."""
    met = 0
    for number in range(6):
        text = f"{path} {number} {LONG}"
        is_text = path in ("/v1/completions", "/generate")
        first = (
            post(cluster, "/v1/completions", {"prompt": text, "max_tokens": 2, "prompt_cache_key": f"{number}"})
            if is_text
            else post(cluster, "/v1/chat/completions", chat(text, prompt_cache_key=f"{number}"))
        )
        second = post(cluster, path, body(text))
        assert (first.status_code, second.status_code) == (200, 200), second.text
        met += first.headers[REPLICA_HEADER] == second.headers[REPLICA_HEADER]
    assert met >= 5


def test_a_killed_replica_takes_only_its_own_streams_with_it(cluster: RayCluster) -> None:
    before = replicas(cluster)
    begun = threading.Barrier(13)

    def stream(number: int) -> tuple[str, str]:
        """Which replica it was at, and what its last event was."""
        body = chat(f"{number} {LONG}", max_tokens=200, ignore_eos=True, stream=True)
        with httpx.stream("POST", f"{cluster.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as response:
            events = (line for line in response.iter_lines() if line)
            next(events)
            begun.wait()
            *_, error, last = events
            assert last == "data: [DONE]"
            return response.headers[REPLICA_HEADER], error

    with ThreadPoolExecutor(13) as pool:
        streams = [pool.submit(stream, number) for number in range(12)]
        begun.wait()
        victim = cluster.replicas()[0]
        ring = [process for process in victim.children(recursive=True) if process.cmdline()[0].startswith("quintet: ")]
        assert len(ring) == 5
        victim.kill()
        later = [pool.submit(post, cluster, "/v1/chat/completions", chat(f"later {number}")) for number in range(20)]
        assert {answer.result().status_code for answer in later} == {200}
        ends = [each.result() for each in streams]
    lost = {replica for replica, end in ends if '"error"' in end}
    assert len(lost) == 1
    assert {replica for replica, end in ends if '"error"' not in end}.isdisjoint(lost)
    wait_for(lambda: not any(process.is_running() for process in ring), "the ring has left with its actor", PATIENCE_S)
    wait_for(lambda: len(replicas(cluster) - lost) == REPLICAS, "a new replica has joined", PATIENCE_S)
    assert len(replicas(cluster) & before) == REPLICAS - 1


def test_an_update_under_load_loses_no_request(cluster: RayCluster) -> None:
    old, config = replicas(cluster), application([*FLAGS, "--served-model-name", "mock", "new"], REPLICAS, **SETTINGS)
    config["http_options"] = cluster.http_options
    done = threading.Event()

    def ask(worker: int) -> list[int]:
        statuses: list[int] = []
        http = httpx.Client(base_url=cluster.url, timeout=PATIENCE_S)
        while not done.is_set():
            body = chat(f"{worker} {len(statuses)} {LONG}", max_tokens=20, stream=bool(worker % 2))
            response = http.post("/v1/chat/completions", json=body)
            is_whole = '"error"' not in response.text and ("[DONE]" in response.text or not worker % 2)
            statuses.append(response.status_code if is_whole else 0)
        return statuses

    with ThreadPoolExecutor(6) as pool:
        workers = [pool.submit(ask, worker) for worker in range(6)]
        try:
            cluster.deploy(config)
            wait_for(lambda: len(replicas(cluster) - old) == REPLICAS, "all replicas are new", PATIENCE_S)
            wait_for(lambda: not replicas(cluster) & old, "the old ones are gone", PATIENCE_S)
        finally:
            done.set()
        statuses = [status for worker in workers for status in worker.result()]
    assert set(statuses) == {200}
    assert [model.id for model in client(cluster).models.list()] == ["mock", "new"]
