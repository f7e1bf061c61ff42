"""Frames that are almost messages: the codec refuses them in words, and no process dies of one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.chaos.harm import folder_of_sockets
from benchmark.server import Server
from ipc.codec import MAX_FRAME_BYTES, WireError, decode, encode
from tests.e2e.conftest import client, wait_for, wait_until_idle
from tests.ipc.test_codec import MESSAGE_CLASSES, records

MESSAGE = st.sampled_from(MESSAGE_CLASSES).flatmap(records)


def truncated(frame: bytes, rng: random.Random) -> bytes:
    return frame[: rng.randrange(len(frame))]


def flipped(frame: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(frame))
    return frame[:place] + bytes([frame[place] ^ (1 << rng.randrange(8))]) + frame[place + 1 :]


def with_other_types(frame: bytes, rng: random.Random) -> bytes:
    parts = msgpack.unpackb(frame, strict_map_key=False)
    values: list[Any] = [None, -1, 2**64 - 1, 1.5, "x", b"x" * 7, [[]], {"a": {}}, True]
    parts[rng.randrange(len(parts))] = rng.choice(values)
    return msgpack.packb(parts)


def with_other_length(frame: bytes, rng: random.Random) -> bytes:
    parts = msgpack.unpackb(frame, strict_map_key=False)
    return msgpack.packb(parts[: rng.randrange(len(parts))] if rng.random() < 0.5 else [*parts, None])


def with_unknown_tag(frame: bytes, rng: random.Random) -> bytes:
    parts = msgpack.unpackb(frame, strict_map_key=False)
    return msgpack.packb([rng.choice([-1, 0, 250, 2**63]), *parts[1:]])


def with_a_bomb(frame: bytes, rng: random.Random) -> bytes:
    """Headers that promise four thousand million elements, and nesting without end."""
    bombs = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 50_000]
    return frame[: rng.randrange(len(frame))] + rng.choice(bombs)


HARMS: list[Callable[[bytes, random.Random], bytes]] = [
    truncated, flipped, with_other_types, with_other_length, with_unknown_tag, with_a_bomb,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@settings(max_examples=150)
@given(message=MESSAGE, seed=st.integers(0, 2**32))
def test_a_spoilt_frame_is_refused_in_words_or_is_still_a_message(
    harm: Callable[[bytes, random.Random], bytes], message: Any, seed: int
) -> None:
    frame = harm(encode(message, 7), random.Random(seed))
    try:
        _, decoded = decode(frame)
        words = ""
    except WireError as error:
        decoded, words = None, str(error)
    assert type(decoded) in MESSAGE_CLASSES or 0 < len(words) < 1000


@given(st.binary(max_size=200))
def test_noise_is_refused(frame: bytes) -> None:
    with pytest.raises(WireError):
        decode(frame)


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="over the limit"):
        decode(b"\xc1" * (MAX_FRAME_BYTES + 1))


def frames(count: int, seed: int) -> list[bytes]:
    """Spoilt frames of all messages. Their epoch is that of no run, so that those that are still messages are stale."""
    rng = random.Random(seed)
    examples: list[bytes] = []

    @settings(max_examples=count, database=None, derandomize=True)
    @given(MESSAGE)
    def collect(message: Any) -> None:
        examples.append(encode(message, 0))

    collect()
    return [rng.choice(HARMS)(rng.choice(examples), rng) for _ in range(count)]


def pour(folder: Path, spoilt: list[bytes]) -> None:
    """All of it into every inbox."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for path in sorted(folder.iterdir()):
        socket = context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.linger = 10_000
        socket.connect(f"ipc://{path}")
        for frame in spoilt:
            if not is_command(frame):
                socket.send(frame)
        socket.close()
    context.term()


def is_command(frame: bytes) -> bool:
    """Whether a spoilt frame has, by chance, become one that is obeyed: a message of a run that there is."""
    try:
        epoch, _ = decode(frame)
    except WireError:
        return False
    return 0 < epoch < 1000


def test_no_process_dies_of_any_frame_and_none_grows() -> None:
    spoilt = frames(400, seed=1)
    with Server(model="mock") as server:
        api = client(server)
        api.completions.create(model="mock", prompt="x", max_tokens=3)
        folder = folder_of_sockets(server)
        before = server.processes()
        pour(folder, spoilt)
        memory = {name: process.memory_info().rss for name, process in before.items()}
        for _ in range(5):
            pour(folder, spoilt)
        pour(folder, [b"\xc1" * (MAX_FRAME_BYTES + 1)])
        answers = [api.completions.create(model="mock", prompt="x", max_tokens=9) for _ in range(5)]
        assert {answer.choices[0].finish_reason for answer in answers} == {"length"}
        wait_until_idle(server)
        after = server.processes()
        assert {name: process.pid for name, process in after.items()} == {
            name: process.pid for name, process in before.items()
        }
        wait_for(
            lambda: all(process.memory_info().rss < memory[name] + (96 << 20) for name, process in after.items()),
            "memory is back",
        )
