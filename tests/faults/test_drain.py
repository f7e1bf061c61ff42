"""The end of a server under load, and clients that leave: what they see, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from benchmark.chaos.harm import folder_of_sockets
from benchmark.server import Server
from tests.e2e.conftest import scheduler_stats, wait_for, wait_until_idle

STEADY = str(Path(__file__).parent / "steady.toml")
LONG: dict[str, Any] = {"model": "mock", "prompt": "x", "max_tokens": 20000, "ignore_eos": True}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(second: signal.Signals) -> None:
    with Server(model="mock", mock_profile=STEADY, shutdown_timeout=600.0) as server:
        run_dir = folder_of_sockets(server)
        ring = server.processes()
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, "drain has begun")
            refused = httpx.post(f"{server.url}/v1/completions", json=LONG)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "120"
            server.process.send_signal(second)
            rest = [line for line in lines if line]
        assert '"error"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(20) == 0
        assert not any(process.is_running() for process in ring.values())
        assert not run_dir.exists()


def test_a_process_that_dies_during_a_drain_is_not_started_again() -> None:
    with Server(model="mock", mock_profile=STEADY, shutdown_timeout=600.0) as server:
        ring = server.processes()
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, "drain has begun")
            ring["model"].kill()
            rest = [line for line in lines if line]
        assert '"error"' in rest[-2]
        assert server.process.wait(20) == 0


def test_a_gateway_on_a_unix_socket_is_restarted_on_it(tmp_path: Path) -> None:
    path = tmp_path / "quintet.sock"
    with Server(model="mock", uds=str(path)) as server:
        first = server.processes()["gateway"]
        first.kill()

        def answers() -> bool:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
                try:
                    return client.get("/ready").status_code == 200
                except httpx.TransportError:
                    return False

        wait_for(answers, "it answers again")
        assert server.processes()["gateway"].pid != first.pid


@pytest.fixture(scope="module")
def small_server() -> Iterator[Server]:
    """Two sequences run at a time, and a prefill of 1000 tokens takes more than a second."""
    with Server(model="mock", mock_profile=STEADY, max_num_seqs=2, max_num_batched_tokens=16) as server:
        yield server


def begin(server: Server, stop_at: int = 0, **fields: Any) -> socket.socket:
    """A request, sent as far as `stop_at` says; 0 is all of it."""
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    body = json.dumps({**LONG, **fields}).encode()
    data = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    client.sendall(data[:stop_at] if stop_at else data)
    return client


@pytest.mark.parametrize("stop_at", [20, len(HEAD) + 40])
def test_a_client_that_leaves_before_its_request_is_complete(small_server: Server, stop_at: int) -> None:
    begin(small_server, stop_at).close()
    wait_until_idle(small_server)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("count", "prompt_tokens", "figure"), [(1, 1000, "running_prefill"), (1, 1, "running_decode"), (4, 1, "waiting")]
)
def test_a_client_that_leaves_gives_back_what_it_held(
    small_server: Server, stream: bool, count: int, prompt_tokens: int, figure: str
) -> None:
    clients = [begin(small_server, stream=stream, prompt="x" * 4 * prompt_tokens) for _ in range(count)]
    wait_for(lambda: scheduler_stats(small_server)[figure] > 0, figure)
    for client in clients:
        client.close()
    wait_until_idle(small_server)
    stats = scheduler_stats(small_server)
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]


def test_no_other_user_can_reach_the_sockets() -> None:
    with Server(model="mock") as server:
        folder = folder_of_sockets(server)
        status = folder.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o700, os.getuid())
