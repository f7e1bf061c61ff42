"""Workloads that tell the scheduling policies apart: who asks, when, how much, how urgently.

Everything arrives at given times, whatever is in flight (open loop), from a seed. Lengths are in tokens of the mock:
four bytes of prompt are one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at_s: float
    group: str  # what it is counted with
    prompt: str
    max_tokens: int
    priority: int = 0
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """One of them, and the options of launch.py that it wants."""

    name: str
    about: str
    arrivals: Callable[[random.Random], list[Arrival]]
    launch: tuple[str, ...] = ()


def text(rng: random.Random, tokens: int) -> str:
    """A prompt of so many tokens that shares its beginning with no other."""
    digits = BYTES_PER_TOKEN * tokens
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def poisson(rng: random.Random, rate: float, count: int, start_s: float = 0.0) -> list[float]:
    """Arrival times, in seconds."""
    times = [start_s]
    while len(times) <= count:
        times.append(times[-1] + rng.expovariate(rate))
    return times[1:]


def uniform(rng: random.Random) -> list[Arrival]:
    return [Arrival(at_s, "all", text(rng, 500), 100) for at_s in poisson(rng, 19, 900)]


def heavy_tail(rng: random.Random) -> list[Arrival]:
    arrivals = []
    for at_s in poisson(rng, 11, 900):
        if rng.random() < 0.12:
            arrivals.append(Arrival(at_s, "long", text(rng, rng.randint(6000, 12000)), 100))
        else:
            arrivals.append(Arrival(at_s, "short", text(rng, rng.randint(50, 300)), 100))
    return arrivals


def urgent(rng: random.Random) -> list[Arrival]:
    arrivals = []
    for at_s in poisson(rng, 19, 900):
        is_urgent = rng.random() < 0.1
        group, priority = ("urgent", -1) if is_urgent else ("batch", 0)
        arrivals.append(Arrival(at_s, group, text(rng, 600), 100, priority))
    return arrivals


def documents(rng: random.Random) -> list[Arrival]:
    library = [text(rng, 3000) for _ in range(40)]
    return [Arrival(at_s, "all", rng.choice(library) + text(rng, 60), 60) for at_s in poisson(rng, 10, 900)]


def one_document(rng: random.Random) -> list[Arrival]:
    """Half of the requests ask about one document all the time; the others about one each."""
    popular = text(rng, 2000)
    arrivals = []
    for at_s in poisson(rng, 13, 900):
        if rng.random() < 0.5:
            arrivals.append(Arrival(at_s, "popular", popular + text(rng, 60), 100))
        else:
            arrivals.append(Arrival(at_s, "other", text(rng, 2060), 100))
    return arrivals


def greedy_tenant(rng: random.Random) -> list[Arrival]:
    greedy = [Arrival(at_s, "greedy", text(rng, 800), 100, tenant="greedy") for at_s in poisson(rng, 30, 600)]
    modest = [
        Arrival(at_s, "modest", text(rng, 800), 100, tenant=f"modest {tenant}")
        for tenant in range(10)
        for at_s in poisson(rng, 1, 24)
    ]
    return sorted(greedy + modest, key=lambda arrival: arrival.at_s)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("uniform", "prompts of 500 tokens, all alike", uniform),
        Workload("heavy_tail", "one prompt in eight is forty times as long as the others", heavy_tail),
        Workload("urgent", "one request in ten is urgent (priority -1)", urgent),
        Workload(
            "documents",
            "questions about 40 documents of 3000 tokens, of which the cache holds some 12",
            documents,
            ("--num-gpu-blocks-override=2400", "--max-model-len=8192"),
        ),
        Workload("one_document", "every second request is about the same document", one_document),
        Workload("greedy_tenant", "one tenant sends six times as much as ten others together", greedy_tenant),
    )
}
