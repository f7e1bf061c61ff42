"""Clients whose answers are known beforehand, so that each of them can say whether the server kept its word."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from ipc.mock_vocabulary import WORDS

PATIENCE_S = 60.0  # a request without its end after so long counts as hanging
SLOW_READS = 20


@dataclass
class Outcomes:
    """What became of all requests. `broken` holds those that the server did wrong, in words."""

    ends: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def wrong(self, what: str) -> None:
        self.ends["wrong"] += 1
        self.broken.append(what)


class Load:
    """`count` clients that ask one thing after the other until told to stop.

    A client wants a stream or a whole answer, reads fast or slowly, and sometimes leaves half-way. The mock's answer is
    fixed: what comes must be the beginning of it, and with the end, all of it.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.outcomes = Outcomes()
        self.gateway_lost: list[float] = []  # when the gateway was hit: connections may break then
        self._url = url
        self._seed = seed
        self._random = random.Random(seed)
        self._stopped = False

    async def run(self, count: int) -> None:
        """Returns when all clients have ended after `stop`."""
        async with self._session() as session, asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._client(session))

    async def flood(self, count: int) -> None:
        """So many requests at once, on connections of their own; the same in every flood, whose memory is compared."""
        choice = random.Random(self._seed)
        async with self._session() as session:
            bodies = [make_body(choice, stream=False) for _ in range(count)]
            await asyncio.gather(*(self._ask(session, body, leave=False) for body in bodies))

    async def leave_at_once(self, count: int) -> None:
        """So many clients that ask for much and leave as soon as it begins."""
        async with self._session() as session:
            bodies = [make_body(self._random, stream=True) for _ in range(count)]
            await asyncio.gather(*(self._ask(session, body, leave=True) for body in bodies))

    def stop(self) -> None:
        self._stopped = True

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        return aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._stopped:
            body = make_body(self._random, stream=self._random.random() < 0.6)
            leave = body["stream"] and self._random.random() < 0.1
            refused = await self._ask(session, body, leave)
            await asyncio.sleep(self._random.uniform(0.2, 0.5) if refused else 0.0)

    async def _ask(self, session: aiohttp.ClientSession, body: dict[str, Any], leave: bool) -> bool:
        """One request, seen to its end and counted. Whether it was refused, so that asking again should wait."""
        began = time.monotonic()
        try:
            async with session.post("/v1/completions", json=body) as response:
                if response.status != 200:
                    return self._refused(response.status, await response.read())
                if body["stream"]:
                    await self._read_stream(response, body, leave)
                else:
                    self._check_whole(orjson.loads(await response.read()), body)
        except TimeoutError:
            self.outcomes.wrong(f"no end after {PATIENCE_S:g} s: {body['max_tokens']} tokens, stream {body['stream']}")
        except (aiohttp.ClientError, ConnectionError) as error:
            return self._connection_lost(began, error)
        return False

    def _refused(self, status: int, data: bytes) -> bool:
        error = orjson.loads(data)["error"]
        if status not in (429, 503) or error["code"] != status or not error["message"]:
            self.outcomes.wrong(f"status {status}: {error['message']}")
        self.outcomes.ends[f"error {status}"] += 1
        return True

    def _connection_lost(self, began: float, error: Exception) -> bool:
        """Nobody answers, or no longer. That is right only when the gateway was hit meanwhile, or is not back yet."""
        now = time.monotonic()
        if not any(began - 10.0 < hit <= now for hit in self.gateway_lost):
            self.outcomes.wrong(f"the connection broke: {error!r}")
        self.outcomes.ends["connection lost with the gateway"] += 1
        return True

    def _check_whole(self, answer: dict[str, Any], body: dict[str, Any]) -> None:
        expected = "".join(WORDS[: body["max_tokens"]])
        if [choice["text"] for choice in answer["choices"]] != [expected] * body["n"]:
            self.outcomes.wrong(f"a wrong text: {[choice['text'] for choice in answer['choices']]!r}")
        self.outcomes.ends["answered"] += 1

    async def _read_stream(self, response: aiohttp.ClientResponse, body: dict[str, Any], leave: bool) -> None:
        texts = [""] * body["n"]
        ended = [False] * body["n"]
        errors = 0
        slow = SLOW_READS if self._random.random() < 0.05 else 0
        async for line in response.content:
            data = line.removeprefix(b"data: ").strip()
            if not data:
                continue
            if leave:
                response.close()
                self.outcomes.ends["left"] += 1
                return
            if slow:
                slow -= 1
                await asyncio.sleep(0.05)
            if data == b"[DONE]":
                self._check_stream(texts, ended, errors, body)
                return
            event = orjson.loads(data)
            if "error" in event:
                errors += 1
                continue
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
                if choice["finish_reason"] is not None:
                    if ended[choice["index"]]:
                        self.outcomes.wrong("a choice ended twice")
                    ended[choice["index"]] = True
        self.outcomes.wrong("a stream ended without [DONE]")

    def _check_stream(self, texts: list[str], ended: list[bool], errors: int, body: dict[str, Any]) -> None:
        expected = "".join(WORDS[: body["max_tokens"]])
        for text, over in zip(texts, ended, strict=True):
            if text != expected if over else not expected.startswith(text):
                self.outcomes.wrong(f"a wrong text: {text!r} for {body['max_tokens']} tokens")
        if errors > 1 or (errors == 1) == all(ended):
            self.outcomes.wrong(f"{errors} error events, and the choices ended: {ended}")
        self.outcomes.ends["error event" if errors else "answered"] += 1


def make_body(choice: random.Random, stream: bool) -> dict[str, Any]:
    """A request of some size."""
    words = choice.randint(1, len(WORDS))
    prompt = "x" * choice.choice((1, 40, 400, 4000, 20000))
    return {"prompt": prompt, "max_tokens": words, "stream": stream, "n": choice.choice((1, 1, 1, 2))}
