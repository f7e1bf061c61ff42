"""A scenario's requests, sent to a live server: so many at a time (closed loop), or at given times (open loop)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from benchmark.client import Client, Measured
from benchmark.presets import CLIENT_GRACE_S, MAX_TOKENS, PLAIN, Chain, Scenario


@dataclass(frozen=True, slots=True)
class Run:
    """What a scenario's requests brought, in the order of their indexes, live or simulated."""

    measured: list[Measured]
    started: float  # seconds on the clock of Measured.sent
    wall_s: float  # first send -> last response
    client_cpu_s: float  # of the process that sent them


def request_body(scenario: Scenario, chain: Chain, index: int, prompt: str) -> dict[str, Any]:
    """What is POSTed for one request, less what the client adds for streaming."""
    body = {
        "prompt": prompt,
        "max_tokens": MAX_TOKENS,
        "request_id": f"bench-{scenario.name}-{index:06d}",
        "timeout_ms": scenario.timeout_ms,
    }
    return body if chain.cache_salt is None else {**body, "cache_salt": chain.cache_salt}


# What every server is asked once before anything counts: its processes do much for the first time with it.
PRIMER = Chain(0, (PLAIN,), "primer")


async def warm_up(url: str, scenario: Scenario, stream: bool) -> None:
    """Send the primer, and the requests that a scenario wants behind it before it counts."""
    async with _client(url, scenario, stream) as client:
        await _follow(client, scenario, PRIMER, {})
        for _ in range(scenario.warm_up):
            await _follow(client, scenario, scenario.chain(0), {})


async def send(url: str, scenario: Scenario, stream: bool, seed: int) -> Run:
    """Send all of a scenario's requests; `seed` is that of the arrivals in an open loop, and of pauses."""
    measured: dict[int, Measured] = {}
    chains = scenario.chains()
    async with _client(url, scenario, stream) as client:
        await client.open(scenario.concurrency)
        started, cpu_s = time.monotonic(), time.process_time()
        if scenario.rate:

            async def follow_at(chain: Chain, at_s: float) -> None:
                await asyncio.sleep(started + at_s - time.monotonic())
                await _follow(client, scenario, chain, measured, seed)

            arrivals = zip(chains, scenario.arrivals_s(seed), strict=True)
            await asyncio.gather(*(follow_at(chain, at_s) for chain, at_s in arrivals))
        else:
            waiting = iter(chains)

            async def worker() -> None:
                for chain in waiting:
                    await _follow(client, scenario, chain, measured, seed)

            await asyncio.gather(*(worker() for _ in range(scenario.concurrency)))
        wall_s = time.monotonic() - started
        client_cpu_s = time.process_time() - cpu_s
    return Run([measured[index] for index in range(len(measured))], started, wall_s, client_cpu_s)


def _client(url: str, scenario: Scenario, stream: bool) -> Client:
    return Client(url, stream, keep_text=scenario.num_turns > 1)


async def _follow(client: Client, scenario: Scenario, chain: Chain, into: dict[int, Measured], seed: int = 0) -> None:
    """The requests of one chain, into `into` by index. Behind one that failed, the others have nothing to go on."""
    timeout_s = scenario.timeout_ms / 1000 + CLIENT_GRACE_S
    prompt = ""
    for index, turn in enumerate(chain.turns, chain.first_index):
        prompt += turn
        if index > chain.first_index and scenario.think_s:
            await asyncio.sleep(scenario.pause_s(seed, index))
        into[index] = await client.complete(request_body(scenario, chain, index, prompt), timeout_s)
        if into[index].error:
            for later in range(index + 1, chain.first_index + len(chain.turns)):
                into[later] = Measured(sent=time.monotonic(), error="the turn before it failed")
            return
        prompt += into[index].text
