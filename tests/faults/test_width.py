"""Two tokenizers and two detokenizers: they share the requests, and the loss of one ends only what it held."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest

from benchmark.server import Server
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import scheduler_stats, wait_for, wait_until_idle

BODY: dict[str, Any] = {"model": "mock", "prompt": "x", "ignore_eos": True}
CLIENTS = 16


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(
        model="mock", mock_profile="linear", tokenizer_workers=2, detokenizer_workers=2, restart_limit=100
    ) as server:
        yield server


def complete(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=BODY | fields, timeout=30.0)


def is_ready(server: Server) -> bool:
    return httpx.get(f"{server.url}/ready").status_code == 200


def test_both_of_a_kind_have_a_part_and_the_texts_are_whole(server: Server) -> None:
    for _ in range(CLIENTS):
        choices = complete(server, n=4, max_tokens=5).json()["choices"]
        assert [choice["text"] for choice in choices] == ["".join(WORDS[:5])] * 4
    wait_until_idle(server)

    def requests() -> list[int]:
        processes = httpx.get(f"{server.url}/v1/loads").json()["processes"]
        return [processes[name]["requests"] for name in ("tokenizer", "tokenizer.1")]

    wait_for(lambda: sum(requests()) == CLIENTS, "both have counted")
    assert min(requests()) > 0


@pytest.mark.parametrize("name", ["detokenizer", "detokenizer 1", "tokenizer", "tokenizer 1"])
def test_the_loss_of_one_ends_only_what_it_held(server: Server, name: str) -> None:
    wait_for(lambda: is_ready(server), "ready before")
    before = server.processes()
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(complete, server, max_tokens=120) for _ in range(CLIENTS)]
        wait_for(lambda: int(scheduler_stats(server)["running"]) == CLIENTS, "all of them run")
        before[name].kill()
        answers = [each.result() for each in asked]
    ended = [answer for answer in answers if answer.status_code == 503]
    whole = [answer for answer in answers if answer.status_code == 200]
    assert len(ended) + len(whole) == CLIENTS
    assert all(answer.json()["usage"]["completion_tokens"] == 120 for answer in whole)
    assert len({answer.json()["choices"][0]["text"] for answer in whole}) == 1
    assert (0 < len(ended) < CLIENTS) if name.startswith("detokenizer") else not ended
    wait_for(lambda: is_ready(server), "ready again")
    wait_until_idle(server)
    after = server.processes()
    assert {other for other in before if after[other].pid != before[other].pid} == {name}
    assert all(complete(server, max_tokens=5).status_code == 200 for _ in range(8))
