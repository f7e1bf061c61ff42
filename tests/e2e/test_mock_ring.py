"""The five processes with the mock model: what must hold of the ring, whatever the model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmark.server import LAUNCH, Server, ServerError
from ipc.mock_vocabulary import WORDS
from quintet import LLM, LLMError, SamplingParams
from tests.e2e.conftest import async_client, client, wait_for, wait_until_idle

TEXT = "".join(WORDS)
HELLO: Any = [{"role": "user", "content": "hello"}]


def test_the_five_processes_have_their_names_and_only_the_model_may_have_torch(mock_server: Server) -> None:
    ring = mock_server.processes()
    assert set(ring) == {"supervisor", "gateway", "tokenizer", "scheduler", "model", "detokenizer"}
    for name, process in ring.items():
        mapped = {Path(region.path).name for region in process.memory_maps()}
        assert not any(library.startswith("libtorch") for library in mapped), name


def test_chat_and_completion_streamed_and_whole_are_the_same(mock_server: Server) -> None:
    api = client(mock_server)
    whole = api.chat.completions.create(model="mock", messages=HELLO)
    assert whole.choices[0].message.content == TEXT
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 71
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in api.chat.completions.create(model="mock", messages=HELLO, stream=True)
    ]
    assert "".join(pieces) == TEXT
    completion = api.completions.create(model="mock", prompt=["one", "two"], n=2, max_tokens=5)
    assert [choice.text for choice in completion.choices] == ["".join(WORDS[:5])] * 4
    assert [choice.finish_reason for choice in completion.choices] == ["length"] * 4


def test_the_metrics_of_all_processes_add_up() -> None:
    with Server(model="mock") as server:

        def read(name: str, *labels: str) -> float:
            text = httpx.get(f"{server.url}/metrics").text
            found = {
                (sample.name, *sample.labels.values()): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            return found.get((name, *labels), 0.0)

        client(server).completions.create(model="mock", prompt=["one", "two"], n=2, max_tokens=5)
        wait_for(lambda: read("quintet_generation_tokens_total") == 20, "the scheduler has reported 20 tokens")
        wait_for(lambda: read("quintet_detokenizer_tokens_total") == 20, "so has the detokenizer")
        wait_for(lambda: read("quintet_tokenizer_requests_total") == 2, "and the tokenizer two requests")
        steps = read("quintet_steps_total")
        wait_for(lambda: read("quintet_model_step_seconds_count") == steps, "the runner has reported all steps")
        assert read("quintet_sequences_ended_total", "length") == 4
        assert read("vllm:generation_tokens_total", "0", "mock") == 20
        assert read("quintet_request_seconds_count") == 4
        for name in ("gateway", "tokenizer", "scheduler", "model", "detokenizer"):
            assert read("quintet_process_ready", name) == 1
            assert read("quintet_process_cpu_seconds_total", name) > 0
            assert read("quintet_process_messages_received_total", name) > 0


def test_quintet_top_shows_a_server(mock_server: Server) -> None:
    command = [sys.executable, str(LAUNCH), "top", "--once", "--url", mock_server.url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    for name in ("gateway", "tokenizer", "scheduler", "model", "detokenizer"):
        assert any(line.split()[:2] == [name, "ready"] for line in shown.splitlines())


def test_the_log_level_of_a_running_server(mock_server: Server) -> None:
    answer = httpx.post(f"{mock_server.url}/log_level", json={"level": "debug"}).json()
    assert set(answer["processes"]) == {"supervisor", "gateway", "tokenizer", "scheduler", "model", "detokenizer"}
    assert httpx.post(f"{mock_server.url}/log_level", json={"level": "info"}).status_code == 200


def test_stop_strings_never_leak_and_free_their_blocks(mock_server: Server) -> None:
    api = client(mock_server)
    stop = TEXT[200:203]
    expected = TEXT[: TEXT.index(stop)]
    stream = api.completions.create(model="mock", prompt="x", max_tokens=71, stop=[stop], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected
    wait_until_idle(mock_server)


def test_a_thousand_requests_at_once_and_none_lost(mock_server: Server) -> None:
    async def run() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=120) as session:
            api = async_client(mock_server, http_client=session)
            requests = (
                api.completions.create(model="mock", prompt=f"request {i}", max_tokens=1 + i % 71) for i in range(1000)
            )
            return [answer.choices[0].text for answer in await asyncio.gather(*requests)]

    texts = asyncio.run(run())
    assert texts == ["".join(WORDS[: 1 + i % 71]) for i in range(1000)]
    wait_until_idle(mock_server)


def test_a_client_that_leaves_frees_its_blocks(mock_server: Server) -> None:
    body = {"model": "mock", "prompt": "x" * 4000, "max_tokens": 20000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{mock_server.url}/v1/completions", json=body) as response:
        next(response.iter_lines())
    wait_until_idle(mock_server)
    unary = {**body, "stream": False}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{mock_server.url}/v1/completions", json=unary, timeout=0.3)
    wait_until_idle(mock_server)


def test_a_prompt_over_the_context_is_refused_with_both_numbers(mock_server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match=r"(?s)32768") as caught:
        client(mock_server).completions.create(model="mock", prompt="x" * 4 * 33000, max_tokens=5)
    assert "33000" in str(caught.value)


def test_a_request_larger_than_the_kv_memory_is_refused() -> None:
    with pytest.raises(ServerError, match="--max-model-len"), Server(model="mock", num_gpu_blocks_override=8):
        pass


def test_more_than_the_queue_holds_is_refused_at_once() -> None:
    async def flood(server: Server) -> list[int]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=60) as session:
            body = {"model": "mock", "prompt": "x", "max_tokens": 3000, "ignore_eos": True}
            requests = [session.post(f"{server.url}/v1/completions", json=body) for _ in range(20)]
            return sorted(response.status_code for response in await asyncio.gather(*requests))

    with Server(model="mock", max_num_seqs=1, max_num_queued_reqs=4) as server:
        statuses = asyncio.run(flood(server))
        assert set(statuses) == {200, 429}
        wait_until_idle(server)


def test_sigterm_while_streaming_finishes_the_stream_and_leaves_nothing() -> None:
    with Server(model="mock") as server:
        ring = server.processes()
        body = {"model": "mock", "prompt": "x", "max_tokens": 20000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            run_dir = _run_dir(ring["scheduler"])
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, "drain has begun")
            refused = httpx.post(f"{server.url}/v1/completions", json=body)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(20) == 0
        assert not any(process.is_running() for process in ring.values())
        assert not run_dir.exists()


def test_a_drain_that_runs_out_of_time_ends_streams_with_an_error() -> None:
    with Server(model="mock", shutdown_timeout=0.2, max_model_len=30000) as server:
        body = {"model": "mock", "prompt": "x", "max_tokens": 29000, "ignore_eos": True, "stream": True, "n": 16}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"error"' in rest[-2]
        assert server.process.wait(20) == 0


def test_the_death_of_the_supervisor_ends_every_child() -> None:
    with Server(model="mock") as server:
        ring = server.processes()
        run_dir = _run_dir(ring["scheduler"])
        server.kill()
        _, alive = psutil.wait_procs([process for name, process in ring.items() if name != "supervisor"], timeout=10)
        assert alive == []
        assert not run_dir.exists()


def test_an_idle_server_uses_almost_no_cpu(mock_server: Server) -> None:
    wait_until_idle(mock_server)
    ring = mock_server.processes()
    before = {name: sum(process.cpu_times()[:2]) for name, process in ring.items()}
    threading.Event().wait(5.0)
    used = sum(sum(process.cpu_times()[:2]) - before[name] for name, process in ring.items())
    assert used < 0.02 * 5.0 + 0.02, f"{used:.3f} s of CPU in 5 s"  # the clock ticks in 10 ms


def test_a_foreign_process_that_sends_noise_harms_nothing() -> None:
    with Server(model="mock") as server:
        ring = server.processes()
        run_dir = _run_dir(ring["scheduler"])
        assert (run_dir.stat().st_mode & 0o777) == 0o700
        noise = subprocess.run(
            [sys.executable, "-c", _NOISE.format(run_dir=run_dir)], check=True, capture_output=True, timeout=30
        )
        assert noise.returncode == 0
        answer = client(server).completions.create(model="mock", prompt="x", max_tokens=3)
        assert answer.choices[0].text == "".join(WORDS[:3])
        assert {name: process.pid for name, process in server.processes().items()} == {
            name: process.pid for name, process in ring.items()
        }


_NOISE = """
import os, zmq
context = zmq.Context()
for path in os.listdir("{run_dir}"):
    socket = context.socket(zmq.PUSH)
    socket.connect("ipc://{run_dir}/" + path)
    for frame in (b"", b"noise", os.urandom(100000), b"\\x93\\x01\\x01\\xc0", b"\\x91" * 100000):
        socket.send(frame)
    socket.close(linger=5000)
context.term()
"""


def test_a_port_in_use_is_one_clear_line_and_exit_code_2(mock_server: Server) -> None:
    port = mock_server.url.rpartition(":")[2]
    outcome = subprocess.run(
        [sys.executable, str(LAUNCH), "--model", "mock", "--port", port], capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 2
    assert f"port {port}" in outcome.stderr
    assert "--port" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/folder/here"], "no/such/folder/here"),
        (["--model", "missing.gguf"], "missing.gguf"),
        (["--max-num-sequences", "5"], "did you mean '--max-num-seqs'"),
        (["--model", "mock", "--block-size", "7"], "power of two"),
    ],
)
def test_bad_arguments_are_one_clear_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    outcome = subprocess.run(
        [sys.executable, str(LAUNCH), "--port", "0", *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert outcome.returncode == 2
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_offline_api_notices_a_missing_text() -> None:
    with LLM("mock") as llm:
        assert llm.generate("x", SamplingParams(max_tokens=3))[0].text == "".join(WORDS[:3])
        llm._next_text += 1  # as if one had been sent, and had not come
        with pytest.raises(LLMError, match="a part of the answers was lost"):
            llm.generate("x", SamplingParams(max_tokens=3))
        assert llm.generate("x", SamplingParams(max_tokens=3))[0].text == "".join(WORDS[:3])


def test_health_answers_before_the_ring_is_ready() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, str(LAUNCH), "--port", str(port)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _status(f"http://127.0.0.1:{port}/health") == 200, "/health answers")
        ready = f"http://127.0.0.1:{port}/ready"
        assert httpx.get(ready).status_code == 503
        wait_for(lambda: httpx.get(ready).json()["states"].get("model") == "starting", "/ready names who is missing")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


def _run_dir(process: psutil.Process) -> Path:
    """The folder of the ring's sockets, from one of its processes."""
    paths = [str(connection.laddr) for connection in process.net_connections("unix")]
    return Path(next(path for path in paths if "quintet-" in path)).parent
