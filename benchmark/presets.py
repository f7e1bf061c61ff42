"""The scenarios: what is asked of the server, how often, and how many at a time.

The first six are the presets of mini-llm-serve's benchmark, to the byte: prompts, counts, warm-up, timeouts. Its
`cache_key` is played by `cache_salt`: requests with different salts share no prefix, as requests with different keys
did there. (Here the content counts as well: a key alone never hits.) The last three are our own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

MAX_TOKENS = 128
# How much longer than the server's deadline the client waits.
CLIENT_GRACE_S = 2.0

PLAIN = "this is the prompt text...."
SHORT = "short prompt"
MEDIUM = "medium prompt with enough content to create a different prefill cost profile for the scheduler"
LONG = " ".join(
    [
        "Currently, vLLM utilizes its own implementation of a multi-head query attention kernel. This benchmark prompt "
        "is intentionally longer so prefill work is visible in the scheduler and cache metrics."
    ]
    * 3
)


@dataclass(frozen=True, slots=True)
class Chain:
    """Requests of one client, one behind the other's answer: a single one, or a conversation.

    A turn's prompt is all that was said before, prompts and answers, and the turn's own text behind it.
    """

    first_index: int  # of its first request in the whole run
    turns: tuple[str, ...]
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One preset. `chain(i)` is the i-th chain, `num_turns` requests long."""

    name: str
    about: str
    num_requests: int
    concurrency: int  # chains in flight in a closed loop
    timeout_ms: int
    chain: Callable[[int], Chain]
    num_turns: int = 1
    warm_up: int = 0  # requests before the figures begin
    rate: float = 0.0  # chains that arrive a second, whatever is in flight; 0 is a closed loop
    burst: int = 1  # chains that arrive at once
    think_s: float = 0.0  # mean time between an answer and the next turn of its conversation
    launch: tuple[str, ...] = ()  # options that its server needs

    def chains(self) -> list[Chain]:
        """All of them; the last one is cut short when the number of requests demands it."""
        count = -(-self.num_requests // self.num_turns)
        chains = [self.chain(index) for index in range(count)]
        surplus = count * self.num_turns - self.num_requests
        chains[-1] = replace(chains[-1], turns=chains[-1].turns[: self.num_turns - surplus])
        return chains

    def pause_s(self, seed: int, index: int) -> float:
        """How long a client thinks before it sends request `index`, a later turn of a conversation; exponential."""
        return random.Random(f"{seed} {index}").expovariate(1 / self.think_s) if self.think_s else 0.0

    def arrivals_s(self, seed: int) -> list[float]:
        """When each chain arrives in an open loop: a Poisson process of bursts, in seconds from the start."""
        rng = random.Random(seed)
        count = -(-self.num_requests // self.num_turns)
        times: list[float] = []
        now = 0.0
        while len(times) < count:
            now += rng.expovariate(self.rate / self.burst)
            times += [now] * min(self.burst, count - len(times))
        return times


def _same(index: int) -> Chain:
    return Chain(index, (PLAIN,))


def _cold(index: int) -> Chain:
    return Chain(index, (LONG,), f"request {index}")


def _shared(index: int) -> Chain:
    return Chain(index, (LONG,), "shared")


def _mixed(index: int) -> Chain:
    return Chain(index, ((SHORT, MEDIUM, LONG)[index % 3],), f"request {index}")


def _conversation(index: int) -> Chain:
    opening = f"Conversation {index}. {LONG}"
    return Chain(index * TURNS, (opening, *(f" Turn {turn}: {MEDIUM} " for turn in range(1, TURNS))))


TURNS = 6
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("smoke", "a few small requests", 100, 10, 3_000, _same),
        Scenario("baseline_no_batching", "one request at a time", 300, 10, 30_000, _same, launch=("--max-num-seqs=1",)),
        Scenario("dynamic_default", "small prompts, everything at its default", 1000, 100, 10_000, _same),
        Scenario("cache_miss", "prompts that share nothing", 1000, 100, 60_000, _cold),
        Scenario("cache_hit", "one prompt again and again", 1000, 100, 60_000, _shared, warm_up=1),
        Scenario("mixed_prompt", "short, medium and long prompts by turns", 1000, 100, 60_000, _mixed),
        Scenario(
            "block_pressure",
            "more sequences than KV blocks: 25 prompts fit, 18 whole sequences do",
            320,
            32,
            60_000,
            _cold,
            launch=("--num-gpu-blocks-override=256", "--max-model-len=1024"),
        ),
        Scenario("bursty", "bursts of 50 at random times", 1000, 100, 60_000, _mixed, rate=30.0, burst=50),
        Scenario(
            "multi_turn",
            f"conversations of {TURNS} turns that grow",
            600,
            50,
            60_000,
            _conversation,
            num_turns=TURNS,
        ),
    )
}
