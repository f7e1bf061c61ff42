"""Inboxes take what belongs to them, in order, and outlive everything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from ipc.codec import encode
from ipc.messages import Abort, Shutdown
from ipc.sockets import RECEIVE_LIMIT, Inbox, Outbox, address


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("r"))


def test_messages_arrive_in_order_even_when_sent_before_the_inbox_exists(
    context: zmq.Context[zmq.Socket[bytes]], run_dir: str
) -> None:
    outbox = Outbox(context, run_dir, "scheduler", epoch=1)
    for number in range(3000):
        outbox.send(Abort([number]))
    inbox = Inbox(context, run_dir, "scheduler", epoch=1)
    received: list[int] = []
    while len(received) < 3000:
        batch = inbox.receive(5.0)
        assert 0 < len(batch) <= RECEIVE_LIMIT
        received += [message.rids[0] for message in batch]
    assert received == list(range(3000))


def test_bad_and_stale_frames_are_counted_and_dropped(
    context: zmq.Context[zmq.Socket[bytes]], run_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(context, run_dir, "model", epoch=2)
    foreign = context.socket(zmq.PUSH)
    foreign.connect(address(run_dir, "model"))
    for frame in (b"", b"noise", encode(Abort([1]), 1), encode(Abort([2]), 2)[:-1], encode(Abort([3]), 2)):
        foreign.send(frame)
    messages: list[Abort] = []
    while not messages:
        messages = inbox.receive(5.0)
    assert messages == [Abort([3])]
    assert (inbox.bad_frames, inbox.stale_frames) == (3, 1)
    assert "dropped a frame of 5 bytes: not msgpack" in caplog.text


def test_receive_does_not_wait_when_told_so(context: zmq.Context[zmq.Socket[bytes]], run_dir: str) -> None:
    inbox = Inbox(context, run_dir, "model", epoch=1)
    assert inbox.receive(0) == []
    Outbox(context, run_dir, "model", epoch=1).send(Shutdown())
    assert inbox.receive(5.0) == [Shutdown()]


def test_a_send_never_blocks_without_a_peer(context: zmq.Context[zmq.Socket[bytes]], run_dir: str) -> None:
    outbox = Outbox(context, run_dir, "nobody", epoch=1)
    for _ in range(5000):
        outbox.send(Shutdown())
    assert not (Path(run_dir) / "nobody").exists()
