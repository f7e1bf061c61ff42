"""Two gateways, two tokenizers, two detokenizers share the requests; the loss of one ends what it held, and no more."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from benchmark.chaos.harm import folder_of_sockets
from benchmark.server import Server, ServerError
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import async_client, scheduler_stats, wait_for, wait_until_idle

STEADY = str(Path(__file__).parent / "steady.toml")
LONG = {"ignore_eos": True}
BODY: dict[str, Any] = {"model": "mock", "prompt": "x", **LONG}
TWO_OF_EACH = ["--gateway-workers=2", "--tokenizer-workers=2", "--detokenizer-workers=2"]
WORKERS = [name + number for name in ("gateway", "tokenizer", "detokenizer") for number in ("", " 1")]
CLIENTS = 16
MANY = 200


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(TWO_OF_EACH, model="mock", mock_profile=STEADY, restart_limit=100) as server:
        yield server


def length(number: int) -> int:
    """How many tokens one of many requests is answered with."""
    return 1 + number % 50


def text_of(num_tokens: int) -> str:
    return "".join(WORDS[position % len(WORDS)] for position in range(num_tokens))


def complete(server: Server, **fields: Any) -> httpx.Response | None:
    """The answer; None when the connection was cut. Each call is a connection of its own, so either gateway gets it."""
    try:
        return httpx.post(f"{server.url}/v1/completions", json=BODY | fields, timeout=30.0)
    except httpx.TransportError:
        return None


def is_ready(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def answered(server: Server) -> int:
    """How many completions have been answered with 200, as a scraper is told."""
    page = httpx.get(f"{server.url}/metrics").text
    sample = 'quintet_http_responses_total{route="/v1/completions",status="2xx"} '
    [line] = [line for line in page.splitlines() if line.startswith(sample)]
    return int(float(line.removeprefix(sample)))


async def test_texts_are_right_for_all_of_many_at_once(server: Server) -> None:
    async with async_client(server) as client:

        async def ask(number: int) -> tuple[int, str]:
            stream = await client.completions.create(
                model="mock", prompt="x" * (1 + number), max_tokens=length(number), stream=True, extra_body=LONG
            )
            return number, "".join([event.choices[0].text async for event in stream if event.choices])

        answers = await asyncio.gather(*(ask(number) for number in range(MANY)))
    assert all(text == text_of(length(number)) for number, text in answers)
    wait_until_idle(server)


def test_both_of_a_kind_have_a_part_and_the_counts_are_those_of_all(server: Server) -> None:
    seen, shares = [answered(server)], shares_of_tokenizers(server)
    for _ in range(CLIENTS):
        answer = complete(server, n=4, max_tokens=5)
        assert answer is not None
        assert [choice["text"] for choice in answer.json()["choices"]] == [text_of(5)] * 4

    def all_are_counted() -> bool:
        seen.append(answered(server))
        return seen[-1] >= seen[0] + CLIENTS

    wait_for(all_are_counted, "the gateways have told each other")
    seen += [answered(server) for _ in range(2 * CLIENTS)]
    assert seen == sorted(seen)  # whichever gateway was asked
    wait_for(lambda: sum(shares_of_tokenizers(server)) == sum(shares) + CLIENTS, "both have counted")
    assert all(now > then for now, then in zip(shares_of_tokenizers(server), shares, strict=True))


def shares_of_tokenizers(server: Server) -> list[int]:
    processes = httpx.get(f"{server.url}/v1/loads").json()["processes"]
    return [processes[name].get("requests", 0) for name in ("tokenizer", "tokenizer.1")]


def test_any_gateway_knows_of_any_request(server: Server) -> None:
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(complete, server, max_tokens=150, request_id="mine")
        wait_for(lambda: int(scheduler_stats(server)["running"]) == 1, "it runs")
        found = [httpx.get(f"{server.url}/v1/requests/mine").json() for _ in range(CLIENTS)]
        answer = asked.result()
    assert answer is not None
    assert answer.status_code == 200
    assert all(each["stream"] is False for each in found)  # only the gateway that has it knows
    wait_until_idle(server)


@pytest.mark.parametrize("name", WORKERS)
def test_the_loss_of_one_ends_only_what_it_held(server: Server, name: str) -> None:
    wait_for(lambda: is_ready(server), "ready before")
    before, counted = server.processes(), answered(server)
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(complete, server, max_tokens=200) for _ in range(CLIENTS)]
        wait_for(lambda: int(scheduler_stats(server)["running"]) == CLIENTS, "all of them run")
        before[name].kill()
        answers = [each.result() for each in asked]
    cut = sum(answer is None for answer in answers)
    ended = sum(answer is not None and answer.status_code == 503 for answer in answers)
    whole = [answer for answer in answers if answer is not None and answer.status_code == 200]
    assert cut + ended + len(whole) == CLIENTS
    assert all(answer.json()["choices"][0]["text"] == text_of(200) for answer in whole)
    kind = name.partition(" ")[0]
    assert (0 < cut < CLIENTS) if kind == "gateway" else not cut
    assert (0 < ended < CLIENTS) if kind == "detokenizer" else not ended
    wait_for(lambda: is_ready(server), "ready again")
    wait_until_idle(server)
    after = server.processes()
    assert {other for other in before if after[other].pid != before[other].pid} == {name}
    answers = [complete(server, max_tokens=5) for _ in range(8)]
    assert all(answer is not None and answer.status_code == 200 for answer in answers)
    assert answered(server) >= counted


def test_a_drain_waits_for_all_gateways() -> None:
    with Server(TWO_OF_EACH, model="mock") as server, ExitStack() as stack:
        run_dir, ring = folder_of_sockets(server), server.processes()
        body = BODY | {"max_tokens": 2000, "stream": True}
        streams = []
        for _ in range(CLIENTS):
            answer = httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60)
            streams.append(stack.enter_context(answer).iter_lines())
        for lines in streams:
            next(lines)
        server.process.send_signal(signal.SIGTERM)
        for lines in streams:
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(20) == 0
        assert not any(process.is_running() for process in ring.values())
        assert not run_dir.exists()


def test_a_second_server_does_not_share_the_port(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1 is in use"):
        Server([*TWO_OF_EACH, f"--port={port}"], model="mock").__enter__()
