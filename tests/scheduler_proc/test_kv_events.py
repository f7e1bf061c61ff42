"""KV events: the format, to the byte, and what readers who come late or miss some make of them."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from deploy.kv_events_consumer import CLEARED, Blocks, KvEvents
from deploy.prefix_routing import PrefixIndex
from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.options import complete
from ipc.process import FatalError
from scheduler_proc.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    as_map,
    pack_batch,
    public_name,
)
from scheduler_proc.kv_history import History
from scheduler_proc.kv_publisher import KvPublisher
from scheduler_proc.scheduler import Scheduler
from tests.scheduler_proc.fake_runner import EOS, FakeRunner, submit

BLOCK = 4
READY = RunnerReady(num_blocks=24, block_size=BLOCK, max_model_len=64, max_num_seqs=4, eos_token_ids=Ids("i", [EOS]))


class Load:
    """A scheduler under random load, with memory so short that blocks come and go; the events of one step at a time."""

    def __init__(self, seed: int) -> None:
        self.scheduler = Scheduler(READY, section(SchedulerConfig, complete({"max_num_batched_tokens": 24})))
        self.events = self.scheduler.record_kv_events()
        self._runner = FakeRunner(READY)
        self._rng = random.Random(seed)
        self._next_rid = 0

    def step(self) -> list[KvEvent]:
        rng, scheduler = self._rng, self.scheduler
        if rng.random() < 0.5:
            prompt = [5] * rng.choice([0, 4, 8]) + [rng.randint(1, 2) for _ in range(rng.randint(1, 20))]
            scheduler.submit(submit(self._next_rid, prompt, rng.randint(1, 9), salt=rng.choice(["", "s"])), 0)
            self._next_rid += 1
        if rng.random() < 0.01:
            scheduler.flush_cache()
        if (plan := scheduler.plan(0)) is not None:
            self._runner.plans.append(plan)
        if self._runner.plans:
            scheduler.result(self._runner.execute(), 0)
        scheduler.outgoing.clear()
        taken = self.events[:]
        self.events.clear()
        return taken

    def names(self) -> set[int]:
        """What the scheduler can find, as it is called outside."""
        return {public_name(block_hash) for block_hash in self.scheduler.residents.pool._by_hash}


def batches_of(seed: int, steps: int) -> tuple[list[bytes], Load]:
    load = Load(seed)
    taken = [load.step() for _ in range(steps)]
    return [
        pack_batch([as_map(event) for event in events], number) for number, events in enumerate(taken) if events
    ], load


# -- the format --------------------------------------------------------------------------------------------------------


def test_the_format_is_that_of_the_others() -> None:
    one, two = bytes.fromhex("ff00000000000001") + b"rest", bytes.fromhex("0000000000000002") + b"rest"
    tokens = Ids("i", [1, 2, 3, 4])
    events: list[KvEvent] = [
        AllBlocksCleared(),
        BlockStored([one, two], None, tokens, 2, ""),
        BlockStored([two], one, tokens[:2], 2, "salt"),
        BlockStored([one, two], None, tokens, 2, "salt"),
        BlockRemoved([two]),
    ]
    whole = {"type": "BlockStored", "block_size": 2, "lora_id": None, "medium": "GPU", "lora_name": None}
    both = {"block_hashes": [0xFF00000000000001, 2], "parent_block_hash": None, "token_ids": [1, 2, 3, 4]}
    assert msgpack.unpackb(pack_batch([as_map(event) for event in events], 1.5)) == [
        1.5,
        [
            {"type": "AllBlocksCleared"},
            whole | both,
            whole | {"block_hashes": [2], "parent_block_hash": 0xFF00000000000001, "token_ids": [1, 2]},
            whole | both | {"extra_keys": [["salt"], None]},
            {"type": "BlockRemoved", "block_hashes": [2], "medium": "GPU"},
        ],
        0,
    ]


def test_nothing_is_noted_unless_somebody_wants_to_know() -> None:
    scheduler = Scheduler(READY, section(SchedulerConfig, complete({})))
    scheduler.submit(submit(0, list(range(1, 20)), 5), 0)
    scheduler.plan(0)
    assert scheduler.residents.pool.num_in_use > 0
    assert scheduler.residents.pool.events is None


# -- the history -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1 << 30), steps=st.integers(1, 120), limit=st.integers(1, 40), part=st.floats(0, 1))
def test_a_replay_from_anywhere_leads_to_the_exact_set(seed: int, steps: int, limit: int, part: float) -> None:
    batches, load = batches_of(seed, steps)
    history = History(limit)
    for batch in batches:
        history.add(batch)
    begin = round(part * len(batches))
    blocks, index = Blocks(), PrefixIndex()
    for batch in batches[:begin]:
        for event in msgpack.unpackb(batch)[1]:
            blocks.apply(event)
            index.apply("here", event)
    replayed = history.since(begin)
    numbers = [number for number, _ in replayed]
    assert numbers == list(range(max(begin, len(batches) - limit - (begin < len(batches) - limit)), len(batches)))
    for _, batch in replayed:
        for event in msgpack.unpackb(batch)[1]:
            blocks.apply(event)
            index.apply("here", event)
    assert set(blocks.by_name) == load.names()
    # Every block that the scheduler would find is found by its tokens as well, whoever tells of it.
    for prompt in ([5] * 8 + [1] * 9, [5] * 4 + [1, 2] * 6, [1, 1, 2, 2, 1, 1, 2, 2, 1], [2] * 9):
        for salt in ("", "s"):
            submit_message = submit(1 << 20, prompt, 1, salt=salt)
            load.scheduler.submit(submit_message, 0)
            found = load.scheduler.residents.match(load.scheduler.held()[1 << 20])
            load.scheduler.abort([1 << 20], 0)
            assert index.match(prompt, salt).get("here", 0) == len(found) * BLOCK


@given(seed=st.integers(0, 1 << 30), limit=st.integers(1, 20), first=st.integers(0, 70))
def test_a_copy_of_a_history_stays_as_it_is(seed: int, limit: int, first: int) -> None:
    batches, _ = batches_of(seed, 60)
    history = History(limit)
    for batch in batches[:20]:
        history.add(batch)
    before = history.since(first)
    copy = history.copy(first)
    for batch in batches[20:]:
        history.add(batch)
    assert copy.since(first) == before


# -- over sockets ------------------------------------------------------------------------------------------------------


class Wire:
    """A publisher at two Unix sockets, under the load of a scheduler."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.endpoint, self.replay_endpoint = f"ipc://{folder}/events", f"ipc://{folder}/replay"
        given = {"kv_events_endpoint": self.endpoint, "kv_events_replay_endpoint": self.replay_endpoint} | options
        self._config = section(SchedulerConfig, complete(given))
        self.start(seed=0)

    def start(self, seed: int) -> None:
        self.load = Load(seed)
        self.publisher = KvPublisher(self._config)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if events := self.load.step():
                self.publisher.publish(events)

    def reader(self, **options: Any) -> KvEvents:
        return KvEvents(self.endpoint, **({"replay_endpoint": self.replay_endpoint} | options))


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    yield wire
    wire.publisher.close()


def follow(wire: Wire, events: KvEvents, blocks: Blocks, steps: int) -> None:
    """Read while the scheduler works, until what is known is what is there."""
    deadline = time.monotonic() + 20
    wire.run(steps)
    while set(blocks.by_name) != wire.load.names():
        assert time.monotonic() < deadline, "the reader never knows what is cached"
        for event in events.receive(0.1):
            blocks.apply(event)


def test_a_reader_from_the_start_and_one_that_comes_late_know_the_same(wire: Wire) -> None:
    with wire.reader() as early, wire.reader() as late:
        of_early, of_late = Blocks(), Blocks()
        follow(wire, early, of_early, 1)
        for _ in range(5):
            follow(wire, early, of_early, 30)
        follow(wire, late, of_late, 30)
        follow(wire, early, of_early, 0)
        assert of_early.by_name == of_late.by_name
        assert of_late.by_name


def test_a_gap_is_closed_by_a_replay(wire: Wire) -> None:
    with wire.reader() as events:
        blocks = Blocks()
        follow(wire, events, blocks, 20)
        lost = events._published  # what was published is gone, as when a reader was too slow for it
        events._published = events._context.socket(zmq.SUB)
        events._published.subscribe("")
        events._published.connect(wire.endpoint)
        lost.close()
        follow(wire, events, blocks, 100)
        follow(wire, events, blocks, 100)


def test_a_gap_that_is_longer_than_the_history_is_closed_by_its_summary(tmp_path: Path) -> None:
    wire = Wire(tmp_path, kv_events_buffer_steps=3)
    with wire.reader() as events:
        blocks = Blocks()
        wire.run(200)
        taken = events.receive(20)
        assert taken[:2] == [CLEARED, CLEARED]
        for event in taken:
            blocks.apply(event)
        assert set(blocks.by_name) == wire.load.names()
        assert set(blocks.by_name)
    wire.publisher.close()


def test_a_publisher_that_starts_again_is_followed(wire: Wire) -> None:
    with wire.reader() as events:
        blocks = Blocks()
        follow(wire, events, blocks, 60)
        for seed, steps in ((1, 30), (2, 90), (3, 0)):  # it has published less than the one before it, more, nothing
            wire.publisher.close()
            wire.start(seed)
            follow(wire, events, blocks, steps)
            follow(wire, events, blocks, 5)


def test_without_replays_a_late_reader_begins_with_nothing(tmp_path: Path) -> None:
    wire = Wire(tmp_path, kv_events_replay_endpoint="", kv_events_topic="kv")
    wire.run(50)
    with wire.reader(replay_endpoint="", topic="kv") as events, wire.reader(replay_endpoint="", topic="else") as other:
        deadline = time.monotonic() + 20
        while not (first := events.receive(0.02)):  # until it has subscribed
            assert time.monotonic() < deadline
            wire.run(1)
        assert first[0] == CLEARED
        blocks = Blocks()
        for event in first:
            blocks.apply(event)
        wire.load.scheduler.flush_cache()  # what it could not know of is gone
        follow(wire, events, blocks, 50)
        assert blocks.by_name
        assert other.receive(0) == []
    wire.publisher.close()


def test_a_replay_is_asked_for_and_answered_in_the_frames_of_the_others(wire: Wire) -> None:
    wire.publisher.close()
    wire._config = section(
        SchedulerConfig,
        complete(
            {
                "kv_events_endpoint": wire.endpoint,
                "kv_events_replay_endpoint": wire.replay_endpoint,
                "kv_events_topic": "t",
            }
        ),
    )
    wire.start(seed=0)
    wire.run(10)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.DEALER) as dealer:
        dealer.connect(wire.replay_endpoint)
        for wrong in ([b"x"], [b"", b"1"], [b"", b"", struct.pack(">Q", 0)], [b"no", struct.pack(">Q", 0)]):
            dealer.send_multipart(wrong)
        dealer.send_multipart([b"", struct.pack(">Q", 1)])
        frames: list[list[bytes]] = []
        while not frames or frames[-1] != [b"", b"", b"\xff" * 8, b""]:
            assert dealer.poll(20_000)
            frames.append(dealer.recv_multipart())
        assert len(frames) > 3
        for number, (empty, topic, counted, payload) in enumerate(frames[:-1], start=1):
            assert (empty, topic, counted) == (b"", b"t", struct.pack(">Q", number))
            time_s, events, rank = msgpack.unpackb(payload)
            assert (type(time_s), rank) == (float, 0)
            assert all(event["type"].startswith("Block") for event in events)
    context.destroy(linger=0)


def test_publishing_never_waits_for_a_reader_that_reads_nothing(wire: Wire) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.SUB) as idle, context.socket(zmq.DEALER) as asking:
        idle.rcvhwm = asking.rcvhwm = 1
        idle.subscribe("")
        idle.connect(wire.endpoint)
        asking.connect(wire.replay_endpoint)
        wire.run(200)
        for _ in range(50):
            asking.send_multipart([b"", struct.pack(">Q", 0)])
        worker = threading.Thread(target=wire.run, args=(500,), daemon=True)
        worker.start()
        worker.join(30)
        assert not worker.is_alive()
    context.destroy(linger=0)


def test_an_address_that_is_taken_ends_the_start_with_a_line_that_names_the_option() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        endpoint = f"tcp://127.0.0.1:{port}"
        options = complete({"kv_events_endpoint": endpoint})
        with pytest.raises(FatalError, match=f"--kv-events-endpoint {endpoint}: Address already in use"):
            KvPublisher(section(SchedulerConfig, options))
    context.destroy(linger=0)
