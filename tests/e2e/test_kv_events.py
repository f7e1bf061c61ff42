"""KV events of a real ring: a reader that knows nothing but their format predicts what the cache will find."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from benchmark.server import Server, ServerError
from deploy.kv_events_consumer import Blocks, KvEvents
from deploy.prefix_routing import PrefixIndex
from ipc import mock_vocabulary
from tests.e2e.conftest import scheduler_stats, wait_for

BLOCKS = 64  # so few that prompts push each other out


class Reader:
    """What one reader makes of the events: the set of blocks, and the index of a router."""

    def __init__(self, folder: Path) -> None:
        self.events = KvEvents(f"ipc://{folder}/events", f"ipc://{folder}/replay")
        self.blocks = Blocks()
        self.index = PrefixIndex()

    def read(self) -> None:
        while events := self.events.receive(0.05):
            for event in events:
                self.blocks.apply(event)
                self.index.apply("it", event)

    def read_until(self, condition: Callable[[], bool], what: str) -> None:
        def is_so() -> bool:
            self.read()
            return condition()

        wait_for(is_so, what)

    def wait_until_complete(self, asked: Asked) -> None:
        """Until it has read all that the scheduler has published when it was through with what was asked."""

        def is_complete() -> bool:
            stats = scheduler_stats(asked.server)
            done = (stats["sequences"], stats["prefix_queries"]) == (0, asked.num_tokens)
            return done and self.events.next_number == stats["kv_event_batches"]

        self.read_until(is_complete, "all events are read")
        cached = scheduler_stats(asked.server)["blocks_cached"]
        assert len(self.blocks.by_name) == self.index.num_blocks("it") == cached


class Asked:
    """What a server was asked since its scheduler began."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.num_tokens = 0

    def ask(self, prompt: str, salt: str) -> int:
        """Complete a prompt. Returns how many of its tokens the cache had."""
        body = {"prompt": prompt, "max_tokens": 20, **({"cache_salt": salt} if salt else {})}
        answer = httpx.post(f"{self.server.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    def one(self, prompt: str, salt: str) -> int:
        self.num_tokens += len(mock_vocabulary.encode(prompt))
        return self.ask(prompt, salt)

    def many(self, seed: int) -> list[tuple[str, str]]:
        """Prompts that share beginnings, four at a time. Returns them, with their salts."""
        rng = random.Random(seed)
        prompts = [
            (rng.choice("abc") * 256 + rng.choice("de") * 128 + rng.randbytes(40).hex(), rng.choice(["", "", "s"]))
            for _ in range(60)
        ]
        self.num_tokens += sum(len(mock_vocabulary.encode(prompt)) for prompt, _ in prompts)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda one: self.ask(*one), prompts))
        return prompts


def test_readers_know_what_is_cached_and_what_a_prompt_will_find(tmp_path: Path) -> None:
    with Server(
        model="mock", num_gpu_blocks_override=BLOCKS, max_model_len=512, kv_events_endpoint=f"ipc://{tmp_path}/events",
        kv_events_replay_endpoint=f"ipc://{tmp_path}/replay", kv_events_buffer_steps=20,
    ) as server:  # fmt: skip
        asked = Asked(server)
        early = Reader(tmp_path)
        early.read()
        prompts = asked.many(seed=1)
        early.wait_until_complete(asked)
        late = Reader(tmp_path)
        late.wait_until_complete(asked)
        assert early.blocks.by_name == late.blocks.by_name
        assert scheduler_stats(server)["evictions"] > 100

        hits = 0
        for prompt, salt in prompts[:8]:
            late.wait_until_complete(asked)
            found = late.index.match(mock_vocabulary.encode(prompt), salt).get("it", 0)
            assert asked.one(prompt, salt) == found, prompt
            hits += found > 0
        assert hits
        assert httpx.post(f"{server.url}/flush_cache").status_code == 200
        late.read_until(lambda: not late.blocks.by_name, "the cache is known to be empty")

        asked.many(seed=2)
        late.wait_until_complete(asked)
        for process in ("model", "scheduler"):  # a lost model takes the cache along, a lost scheduler its numbers
            assert late.blocks.by_name
            server.processes()[process].kill()
            wait_for(lambda: httpx.get(f"{server.url}/ready").status_code != 200, "the loss is known")
            wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 200, "the ring is whole again")
            asked.num_tokens = 0
            asked.many(seed=3)
            late.wait_until_complete(asked)
        early.wait_until_complete(asked)
        assert early.blocks.by_name == late.blocks.by_name
        early.events.close()
        late.events.close()


def test_an_address_that_is_not_of_this_machine_ends_the_start() -> None:
    endpoint = "tcp://192.0.2.1:5557"
    with pytest.raises(ServerError, match=f"--kv-events-endpoint {endpoint}: Cannot assign requested address"):
        Server(model="mock", kv_events_endpoint=endpoint).__enter__()
