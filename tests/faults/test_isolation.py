"""A fault inside the work of one request ends that request alone."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx2 as httpx
import pytest

from benchmark.server import Server
from ipc.faults import VARIABLE
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import wait_for, wait_until_idle

TOKENS = 60
TEXT = "".join(WORDS[:TOKENS])


def env(fault: str) -> dict[str, str]:
    return {**os.environ, VARIABLE: fault}


async def answers(server: Server, count: int, **fields: Any) -> list[httpx.Response]:
    """The answers to so many requests at once."""
    body = {"model": "mock", "prompt": "x", "max_tokens": TOKENS, **fields}
    async with httpx.AsyncClient(timeout=30) as session:
        requests = [session.post(f"{server.url}/v1/completions", json=body) for _ in range(count)]
        return list(await asyncio.gather(*requests))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("model:logits:spoil:20", "not a number"),
        ("detokenizer:text:raise:50", "could not be turned into text"),
        ("tokenizer:prompt:raise:3", "could not be prepared"),
    ],
)
def test_the_others_go_on(fault: str, words: str) -> None:
    with Server(model="mock", mock_profile="linear", env=env(fault)) as server:
        pids = {name: process.pid for name, process in server.processes().items()}
        outcome = asyncio.run(answers(server, 8))
        failed = [answer for answer in outcome if answer.status_code != 200]
        assert [answer.status_code for answer in failed] == [500]
        assert words in failed[0].json()["error"]["message"]
        assert [answer.json()["choices"][0]["text"] for answer in outcome if answer.status_code == 200] == [TEXT] * 7
        wait_until_idle(server)
        assert {name: process.pid for name, process in server.processes().items()} == pids


def test_a_request_that_a_real_model_cannot_sample_ends_alone() -> None:
    with Server(max_num_seqs=8, max_model_len=256, env=env("model:sampling:spoil:20")) as server:
        outcome = asyncio.run(answers(server, 4, model="smollm2-135m", max_tokens=20, ignore_eos=True, temperature=0.7))
        assert sorted(answer.status_code for answer in outcome) == [200, 200, 200, 500]
        [failed] = [answer for answer in outcome if answer.status_code == 500]
        assert "the sampling of this request failed" in failed.json()["error"]["message"]
        wait_until_idle(server)


def test_a_stream_that_had_begun_ends_with_an_error_event() -> None:
    with Server(model="mock", env=env("detokenizer:text:raise:30")) as server:
        [answer] = asyncio.run(answers(server, 1, stream=True))
        lines = [line for line in answer.text.splitlines() if line]
        assert '"error"' in lines[-2]
        assert lines[-1] == "data: [DONE]"
        assert sum('"error"' in line for line in lines) == 1
        wait_until_idle(server)


@pytest.mark.parametrize(
    ("process", "batch"), [("tokenizer", 4), ("scheduler", 100), ("model", 100), ("detokenizer", 100)]
)
def test_a_process_that_crashes_at_work_is_back(process: str, batch: int) -> None:
    """A batch of messages in its second or third request kills it; whoever was served before then got its text."""
    with Server(model="mock", restart_limit=100, env=env(f"{process}:receive:crash:{batch}")) as server:
        statuses: list[int] = []

        def served() -> bool:
            [answer] = asyncio.run(answers(server, 1))
            statuses.append(answer.status_code)
            assert answer.status_code == 503 or answer.json()["choices"][0]["text"] == TEXT
            return 503 in statuses and statuses[-1] == 200

        wait_for(served, "lost, and served again")


def test_a_hung_process_is_replaced_after_the_execute_timeout() -> None:
    with Server(model="mock", execute_timeout=5.0, env=env("model:step:hang:30")) as server:
        [answer] = asyncio.run(answers(server, 1))
        assert answer.status_code == 503
        wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 200, "ready again")
        assert "without progress" in "".join(server.log)
        [answer] = asyncio.run(answers(server, 1, max_tokens=5))
        assert answer.status_code == 200


def test_a_frame_that_is_cut_short_costs_one_request_at_most() -> None:
    """Of the tokenizer's, every tenth: most are beats, some are requests, which end at their deadline."""
    with Server(model="mock", request_timeout=1.0, env=env("tokenizer:send:spoil:10")) as server:
        outcome = asyncio.run(answers(server, 20))
        statuses = [answer.status_code for answer in outcome]
        assert set(statuses) <= {200, 504}
        assert statuses.count(504) <= 1
        wait_for(lambda: "dropped a frame" in "".join(server.log), "the log says so")
        wait_until_idle(server)


@pytest.mark.parametrize(
    "fault", [f"{process}:send:spoil:{nth}" for process in ("scheduler", "model") for nth in (40, 41)]
)
def test_a_frame_of_a_step_that_is_missing_is_noticed(fault: str) -> None:
    """A plan, a result, or a step's tokens: who misses it gives up and starts anew, and no text lacks words."""
    with Server(model="mock", env=env(fault)) as server:
        outcome = asyncio.run(answers(server, 4))
        assert {answer.status_code for answer in outcome} <= {200, 503}
        assert {answer.json()["choices"][0]["text"] for answer in outcome if answer.status_code == 200} <= {TEXT}
        wait_for(lambda: "dropped a frame" in "".join(server.log), "the log says so")
        wait_until_idle(server)
