"""The routing rule: what is cached is found, nobody drowns, and replicas come and go."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploy.prefix_routing
from deploy.prefix_routing import EventError, PrefixIndex, PrefixRouting, ring_order

BLOCK = 2
REPLICAS = ("a", "b", "c")
Tokens = tuple[int, ...]

prompts = st.lists(st.integers(0, 1), max_size=9).map(tuple)
salts = st.sampled_from(["", "s"])
# A replica's cache is cleared, gets the first blocks of a prompt, or loses one of those that it has.
steps = st.tuples(st.sampled_from(REPLICAS), st.sampled_from("ssssrrc"), prompts, salts, st.integers(0, 99))


class Cache:
    """What a replica holds, and the events that an engine with hashes of its own sends of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks: dict[tuple[str, Tokens], int] = {}  # salt and tokens from the first one on -> the engine's hash

    def store(self, tokens: Tokens, salt: str) -> dict[str, Any] | None:
        prefixes = [tokens[:end] for end in range(BLOCK, len(tokens) + 1, BLOCK)]
        new = [prefix for prefix in prefixes if (salt, prefix) not in self.blocks]
        if not new or prefixes[-len(new) :] != new:
            return None  # an engine stores what lies behind something that is there
        hashes = [hash((self.name, salt, prefix)) for prefix in prefixes]
        known = len(prefixes) - len(new)
        self.blocks.update({(salt, prefix): hashes[known + number] for number, prefix in enumerate(new)})
        extra_keys = [[salt] if salt and not known else None, *[None] * (len(new) - 1)]
        return {
            "type": "BlockStored", "block_hashes": hashes[known:], "block_size": BLOCK, "extra_keys": extra_keys,
            "parent_block_hash": hashes[known - 1] if known else None,
            "token_ids": list(tokens[known * BLOCK : len(prefixes) * BLOCK]), "lora_id": None, "medium": "GPU",
        }  # fmt: skip

    def remove(self, number: int) -> dict[str, Any]:
        """One of the blocks that no other block of this cache is built on goes, or none."""
        parents = {(salt, tokens[:-BLOCK]) for salt, tokens in self.blocks}
        leaves = sorted(block for block in self.blocks if block not in parents)
        gone = leaves[number % len(leaves) :][:1] if leaves else []
        return {"type": "BlockRemoved", "block_hashes": [self.blocks.pop(block) for block in gone], "medium": "GPU"}

    def clear(self) -> dict[str, Any]:
        self.blocks.clear()
        return {"type": "AllBlocksCleared"}

    def cached(self, tokens: Tokens, salt: str) -> int:
        lengths = range(BLOCK, len(tokens), BLOCK)
        return next((end - BLOCK for end in lengths if (salt, tokens[:end]) not in self.blocks), len(lengths) * BLOCK)


@given(st.lists(steps, max_size=40), prompts, salts)
def test_the_index_knows_what_each_replica_has(changes: list[Any], prompt: Tokens, salt: str) -> None:
    caches = {name: Cache(name) for name in REPLICAS}
    index = PrefixIndex()
    for name, kind, tokens, its_salt, number in changes:
        cache = caches[name]
        event = cache.store(tokens, its_salt) if kind == "s" else cache.remove(number) if kind == "r" else cache.clear()
        if event is not None:
            index.apply(name, event)
    cached = {name: cache.cached(prompt, salt) for name, cache in caches.items()}
    assert index.match(prompt, salt) == {name: count for name, count in cached.items() if count}
    assert {name: index.num_blocks(name) for name in REPLICAS} == {name: len(caches[name].blocks) for name in REPLICAS}
    for name, cache in caches.items():
        index.removed(name, list(cache.blocks.values()))
        assert not index._trees.get(name), "nothing is kept of a block that is gone"
        index.cleared(name)
    assert not index._trees, "nothing is kept of a replica that is gone"
    assert not index._blocks


def test_a_block_is_found_again_when_its_parent_was_away() -> None:
    index = PrefixIndex()
    index.stored("a", [1, 2], None, [10, 11, 20, 21], BLOCK)
    index.removed("a", [1])
    assert index.match([10, 11, 20, 21, 30]) == {}
    index.stored("a", [1], None, [10, 11], BLOCK)
    assert index.match([10, 11, 20, 21, 30]) == {"a": 4}


def test_the_last_token_is_never_cached() -> None:
    index = PrefixIndex()
    index.stored("a", [b"1", b"2"], None, [10, 11, 20, 21], BLOCK)
    assert index.match([10, 11, 20, 21]) == {"a": 2}
    assert index.match([10, 11, 20, 21, 9]) == {"a": 4}
    assert index.match([]) == {}


def test_a_name_that_means_something_else_now_no_longer_means_what_it_did() -> None:
    index = PrefixIndex()
    index.stored("a", [1], None, [10, 11], BLOCK)
    index.stored("a", [1], None, [20, 21], BLOCK)
    assert index.match([10, 11, 12]) == {}
    assert index.match([20, 21, 22]) == {"a": 2}
    assert index.num_blocks("a") == 1


def test_the_younger_of_two_names_for_one_content_outlives_the_older() -> None:
    index = PrefixIndex()
    index.stored("a", [1], None, [10, 11], BLOCK)
    index.stored("a", [2], None, [10, 11], BLOCK)
    index.removed("a", [1])
    assert index.match([10, 11, 12]) == {"a": 2}
    index.removed("a", [2])
    assert index.match([10, 11, 12]) == {}


def test_what_stands_behind_an_unknown_block_is_found_as_soon_as_that_is_known() -> None:
    index = PrefixIndex()
    index.stored("a", [2], 1, [20, 21], BLOCK)
    assert index.match([20, 21, 22]) == {}
    index.stored("a", [1], None, [10, 11], BLOCK)
    assert index.match([10, 11, 20, 21, 22]) == {"a": 4}


def test_all_replicas_have_blocks_of_one_size_until_none_has_any() -> None:
    index = PrefixIndex()
    index.stored("a", [1], None, [10, 11], 2)
    with pytest.raises(EventError, match=r"b has blocks of 1 tokens, other replicas of 2.*same --block-size"):
        index.stored("b", [1], None, [10], 1)
    index.cleared("a")
    index.stored("b", [1], None, [10], 1)
    assert index.match([10, 11]) == {"b": 1}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "BlockMoved"}, "a: an event of the unknown type 'BlockMoved'"),
        ({"type": "BlockStored", "block_hashes": [5]}, "a: an event that cannot be read: KeyError"),
        (["BlockStored", [5], None, [1, 2], 2], "a: an event that cannot be read"),
        ({"block_hashes": [5], "token_ids": [1, 2, 3]}, "a: 3 tokens in 1 blocks of 2"),
        ({"block_hashes": [5], "token_ids": [1, 2, 3, 4], "block_size": 4}, "a has blocks of 4 tokens.*--block-size"),
        ({"block_hashes": [5], "token_ids": [1, "2"]}, "a: an event that cannot be read"),
        ({"block_hashes": [5], "token_ids": [1, 1 << 40]}, "a: an event that cannot be read"),
        ({"block_hashes": [[5]], "token_ids": [1, 2]}, "a: an event that cannot be read"),
        ({"block_hashes": [5], "token_ids": [1, 2], "extra_keys": []}, "a: 0 extra keys for 1 blocks"),
        ({"block_hashes": [5], "token_ids": [1, 2], "extra_keys": [7]}, "a: an event that cannot be read"),
        ({"type": "BlockRemoved", "block_hashes": [1, [5]]}, "a: an event that cannot be read"),
        ({"type": "BlockRemoved", "block_hashes": None}, "a: an event that cannot be read"),
    ],
)
def test_an_event_that_makes_no_sense_changes_nothing(event: Any, message: str) -> None:
    index = PrefixIndex()
    index.stored("a", [1], None, [10, 11], BLOCK)
    if isinstance(event, dict):
        event = {"type": "BlockStored", "parent_block_hash": None, "block_size": BLOCK} | event
        if event["type"] == "BlockStored" and "token_ids" not in event:
            del event["block_size"]
    with pytest.raises(EventError, match=message):
        index.apply("a", event)
    assert index.match([10, 11, 12]) == {"a": 2}
    assert index.num_blocks("a") == 1


# -- the rule ----------------------------------------------------------------------------------------------------------

loads = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 60), min_size=1)


@given(loads, prompts, st.lists(st.tuples(st.sampled_from("abcdef"), prompts), max_size=8), st.floats(1, 3))
def test_who_has_most_of_a_prompt_gets_it_unless_that_is_too_much(
    loads: dict[str, int], prompt: Tokens, held: list[tuple[str, Tokens]], load_factor: float
) -> None:
    index = PrefixIndex()
    for name, tokens in held:
        if len(tokens) >= BLOCK:
            full = len(tokens) // BLOCK
            index.stored(
                name, [hash(tokens[: BLOCK * end]) for end in range(1, full + 1)], None, tokens[: BLOCK * full], BLOCK
            )
    routing = PrefixRouting(index, load_factor)
    choice = routing.choose(prompt, loads)
    limit = max(routing.free_load, load_factor * (sum(loads.values()) + 1) / len(loads))
    assert loads[choice.replica] <= limit
    cached = index.match(prompt)
    assert choice.cached_tokens == cached.get(choice.replica, 0)
    better = [name for name in loads if cached.get(name, 0) > choice.cached_tokens]
    assert all(loads[name] > limit for name in better)
    assert len(better) <= choice.passed_over < len(loads)
    if choice.cached_tokens:
        alike = [name for name in loads if cached.get(name, 0) == choice.cached_tokens]
        assert loads[choice.replica] == min(loads[name] for name in alike)
    else:
        ring = ring_order(loads, routing_key(prompt))
        assert all(loads[name] > limit for name in ring[: ring.index(choice.replica)] if name not in better)


def routing_key(prompt: Tokens) -> bytes:
    return b"".join(token.to_bytes(4, sys.byteorder) for token in prompt)


def test_a_hot_prefix_spreads_and_does_not_drown_one_replica() -> None:
    routing = PrefixRouting(PrefixIndex())
    loads = dict.fromkeys(REPLICAS, 0)
    prompt = list(range(40))
    for _ in range(300):  # that all stay
        choice = routing.choose([*prompt, 99], loads)
        loads[choice.replica] += 1
        routing.index.stored(choice.replica, list(range(20)), None, prompt, BLOCK)
        if sum(loads.values()) == routing.free_load:
            assert max(loads.values()) == routing.free_load, "a few requests stay together"
    assert max(loads.values()) <= 1.25 * 300 / 3 + 1


@given(st.sets(st.text(min_size=1), min_size=2, max_size=8), st.binary())
def test_a_replica_that_leaves_the_ring_moves_only_its_own(names: set[str], key: bytes) -> None:
    order = ring_order(names, key)
    for gone in names:
        assert ring_order(names - {gone}, key) == [name for name in order if name != gone]


def test_the_ring_gives_everybody_a_share() -> None:
    routing = PrefixRouting(PrefixIndex())
    idle = dict.fromkeys("abcde", 0)
    shares = Counter(routing.choose([number, number + 1], idle).replica for number in range(2000))
    assert sorted(shares) == list("abcde")
    assert min(shares.values()) > 300


def test_what_belongs_together_meets_on_the_ring() -> None:
    routing = PrefixRouting(PrefixIndex(), ring_tokens=8)
    idle = dict.fromkeys("abcdefgh", 0)
    beginning = list(range(8))
    assert len({routing.choose([*beginning, rest], idle).replica for rest in range(50)}) == 1
    assert len({routing.choose([first, *beginning], idle).replica for first in range(50)}) > 1
    assert len({routing.choose([first, *beginning], idle, conversation="c").replica for first in range(50)}) == 1
    assert len({routing.choose(beginning, idle, salt=str(salt)).replica for salt in range(50)}) > 1


def test_one_cannot_choose_from_nothing_or_by_a_factor_that_nobody_meets() -> None:
    with pytest.raises(ValueError, match="no replica"):
        PrefixRouting(PrefixIndex()).choose([1], {})
    with pytest.raises(ValueError, match="load_factor must be at least 1"):
        PrefixRouting(PrefixIndex(), load_factor=0.9)
    with pytest.raises(ValueError, match="ring_tokens must be at least 1"):
        PrefixRouting(PrefixIndex(), ring_tokens=0)


def test_the_rule_depends_on_nothing_of_ours_nor_on_a_clock() -> None:
    source = Path(deploy.prefix_routing.__file__).read_text()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
    assert names == {"__future__", "array", "collections.abc", "dataclasses", "hashlib", "typing"}
