"""Each of the five processes is killed and stopped under load: what its clients see, and that the ring heals itself."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from benchmark.server import Server
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import client, scheduler_stats, wait_for, wait_until_idle

RING = ("gateway", "tokenizer", "scheduler", "model", "detokenizer")
LONG: dict[str, Any] = {"model": "mock", "prompt": "x", "max_tokens": 20000, "ignore_eos": True}
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose steps take a few milliseconds, so that requests last."""
    with Server(model="mock", mock_profile="linear", restart_limit=100) as server:
        yield server


class Client(threading.Thread):
    """One long request, and how it ended: a status, the last events of a stream, or a broken connection."""

    def __init__(self, server: Server, stream: bool) -> None:
        super().__init__()
        self.began = threading.Event()
        self.status = 0
        self.lines: list[str] = []
        self.broken = False
        self._server = server
        self._stream = stream

    def run(self) -> None:
        url = f"{self._server.url}/v1/completions"
        try:
            if not self._stream:
                self.began.set()
            with httpx.stream("POST", url, json={**LONG, "stream": self._stream}, timeout=PATIENCE_S) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    self.began.set()
                    self.lines = [*self.lines[-2:], line] if line else self.lines
        except httpx.TransportError:
            self.broken = True

    def has_one_end(self) -> bool:
        """An error status, or a stream with an error event and [DONE] behind it."""
        if self._stream:
            return self.status == 200 and '"error"' in self.lines[-2] and self.lines[-1] == "data: [DONE]"
        return self.status == 503 and '"unavailable_error"' in self.lines[-1]


def readiness(server: Server) -> tuple[int, str]:
    """The status of `/ready` and what it says; 0 without an answer."""
    try:
        answer = httpx.get(f"{server.url}/ready")
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.text


def works(server: Server) -> bool:
    """Whether the next request gets its text."""
    answer = client(server).completions.create(model="mock", prompt="x", max_tokens=5)
    return answer.choices[0].text == "".join(WORDS[:5])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("name", RING)
def test_a_lost_process_is_named_and_restarted(server: Server, name: str, number: signal.Signals) -> None:
    wait_for(lambda: readiness(server)[0] == 200, "ready before")
    ring = server.processes()
    clients = [Client(server, stream) for stream in (True, False, True, False)]
    for each in clients:
        each.start()
        assert each.began.wait(PATIENCE_S)
    wait_for(lambda: running(server) == len(clients), "all of them run")
    ring[name].send_signal(number)
    if name == "gateway":
        wait_for(lambda: readiness(server)[0] != 200, "nobody answers")
    else:
        wait_for(lambda: re.search(f"{name} is (lost|starting)", readiness(server)[1]) is not None, "/ready names it")
        assert httpx.get(f"{server.url}/health").status_code == 200
    if name == "tokenizer":
        # It had done its part for all of them: they go on, and are given up by their clients.
        wait_for(lambda: readiness(server)[0] == 200, "ready again")
        assert all(each.is_alive() for each in clients)
        assert running(server) == len(clients)
        scheduler_restarts(server)
    for each in clients:
        each.join(PATIENCE_S)
        assert each.broken if name == "gateway" else each.has_one_end(), (each.status, each.lines)
    wait_for(lambda: readiness(server)[0] == 200, "ready again")
    assert works(server)
    wait_until_idle(server)
    after = server.processes()
    assert after[name].pid != ring[name].pid
    assert {other for other in RING if after[other].pid != ring[other].pid} <= {name, "scheduler"}


def running(server: Server) -> int:
    return int(scheduler_stats(server)["running"])


def scheduler_restarts(server: Server) -> None:
    """End what runs, by the loss of the scheduler."""
    server.processes()["scheduler"].kill()


def test_past_the_limit_the_server_ends_and_leaves_nothing() -> None:
    with Server(model="mock", restart_limit=2) as server:
        ring = server.processes()
        run_dir = folder_of_sockets(ring["scheduler"])
        seen = set(ring.values())
        for _ in range(3):
            wait_for(lambda: "scheduler" in server.processes(), "a scheduler")
            scheduler = server.processes()["scheduler"]
            seen.add(scheduler)
            scheduler.kill()
            scheduler.wait(PATIENCE_S)
        assert server.process.wait(PATIENCE_S) == 1
        server._reader.join(5)
        assert "the scheduler process was lost 3 times in a row: --restart-limit" in "".join(server.log)
        assert not any(process.is_running() for process in seen)
        assert not run_dir.exists()


def test_busy_is_not_stopped() -> None:
    """One step that takes longer than the silence after which a process is looked at, on a single beat's thread."""
    with Server(model="mock", mock_profile=str(Path(__file__).parent / "slow_step.toml")) as server:
        ring = {name: process.pid for name, process in server.processes().items()}
        started = time.monotonic()
        assert works(server)
        assert time.monotonic() - started > 2.0, "the steps were not slow"
        assert {name: process.pid for name, process in server.processes().items()} == ring


def folder_of_sockets(process: psutil.Process) -> Path:
    paths = [str(connection.laddr) for connection in process.net_connections("unix")]
    return Path(next(path for path in paths if "quintet-" in path)).parent
