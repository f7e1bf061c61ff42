"""Servers for the end-to-end tests: real processes, real sockets, real HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from benchmark.server import Server


@pytest.fixture(scope="session")
def mock_server() -> Iterator[Server]:
    with Server(model="mock") as server:
        yield server


@pytest.fixture(scope="session")
def real_server() -> Iterator[Server]:
    with Server(dtype="float32", num_threads=1, kv_cache_memory_bytes=1 << 30, served_model_name="smol") as server:
        yield server


def client(server: Server, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **options)


def async_client(server: Server, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **options)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Look until it is so. The time limit only turns a hang into a failure."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)


def scheduler_stats(server: Server) -> dict[str, Any]:
    """The scheduler's last figures. A run that has just begun is known by its first beat, soon after it is ready."""
    found: dict[str, Any] = {}

    def is_known() -> bool:
        found.update(httpx.get(f"{server.url}/v1/loads").json()["processes"].get("scheduler", {}))
        return "sequences" in found

    wait_for(is_known, "the scheduler has reported its figures")
    return found


def wait_until_idle(server: Server) -> None:
    """Until no block is in use and no sequence is left, as the scheduler itself reports."""

    def idle() -> bool:
        stats = scheduler_stats(server)
        return stats["blocks_in_use"] == 0 and stats["sequences"] == 0

    wait_for(idle, "no block in use and no sequence left")
