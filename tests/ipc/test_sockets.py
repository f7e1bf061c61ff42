"""Inboxes take what belongs to them, in order, and outlive everything else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from ipc import sockets
from ipc.codec import encode
from ipc.control_messages import Lost, Shutdown
from ipc.messages import Abort
from ipc.sockets import EARLY_LIMIT, RECEIVE_LIMIT, Inbox, Outbox, address


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
    foreign.connect(address(run_dir, "model", 2))
    for frame in (b"", b"noise", encode(Abort([1]), 1), encode(Abort([2]), 2)[:-1], encode(Abort([3]), 2)):
        foreign.send(frame)
    assert inbox.receive(5.0) == [Abort([3])]
    assert (inbox.bad_frames, inbox.stale_frames) == (3, 1)
    assert "dropped a frame of 5 bytes: not msgpack" in caplog.text


def test_receive_does_not_wait_when_told_so(context: zmq.Context[zmq.Socket[bytes]], run_dir: str) -> None:
    inbox = Inbox(context, run_dir, "model", epoch=1)
    assert inbox.receive(0) == []
    Outbox(context, run_dir, "model", epoch=1).send(Shutdown())
    assert inbox.receive(5.0) == [Shutdown()]


@pytest.mark.parametrize("select_limit", [1024, 0], ids=["select", "poll"])
def test_receive_waits_for_a_message_or_its_time(
    context: zmq.Context[zmq.Socket[bytes]], run_dir: str, monkeypatch: pytest.MonkeyPatch, select_limit: int
) -> None:
    monkeypatch.setattr(sockets, "SELECT_LIMIT", select_limit)
    inbox = Inbox(context, run_dir, "model", epoch=1)
    started = time.monotonic()
    assert inbox.receive(0.0021) == []
    assert time.monotonic() - started >= 0.002
    sender = threading.Timer(0.01, Outbox(context, run_dir, "model", epoch=1).send, [Abort([1])])
    sender.start()
    assert inbox.receive() == [Abort([1])]
    sender.join()


def test_a_bad_frame_does_not_end_the_wait(context: zmq.Context[zmq.Socket[bytes]], run_dir: str) -> None:
    inbox = Inbox(context, run_dir, "model", epoch=1)
    foreign = context.socket(zmq.PUSH)
    foreign.connect(address(run_dir, "model", 1))
    foreign.send(b"noise")
    assert inbox.receive(0.2) == []
    assert inbox.bad_frames == 1
    foreign.send(encode(Abort([2]), 1))
    assert inbox.receive() == [Abort([2])]


def test_a_send_never_blocks_without_a_peer(context: zmq.Context[zmq.Socket[bytes]], run_dir: str) -> None:
    outbox = Outbox(context, run_dir, "nobody", epoch=1)
    for _ in range(5000):
        outbox.send(Shutdown())
    assert not any(Path(run_dir).iterdir())


def test_what_was_sent_to_a_dead_run_never_reaches_its_successor(
    context: zmq.Context[zmq.Socket[bytes]], run_dir: str
) -> None:
    outbox = Outbox(context, run_dir, "model", epoch=1, to=2)
    for number in range(100):
        outbox.send(Abort([number]))  # nobody is there to take them
    outbox.redirect(to=7)
    outbox.send(Abort([100]))
    successor = Inbox(context, run_dir, "model", epoch=7, runs={"scheduler": 1})
    assert successor.receive(5.0) == [Abort([100])]
    assert successor.receive(0.05) == []


def test_a_loss_comes_between_what_was_before_and_what_is_after_it(
    context: zmq.Context[zmq.Socket[bytes]], run_dir: str
) -> None:
    """Frames of the successor may overtake the news of the loss; they wait for it. Those of the dead are dropped."""
    followed: list[Lost] = []
    inbox = Inbox(context, run_dir, "gateway", 5, {"supervisor": 1, "scheduler": 2, "model": 3}, followed.append)
    ways = {epoch: Outbox(context, run_dir, "gateway", epoch, to=5) for epoch in (1, 2, 3, 9)}
    ways[9].send(Abort([90]))
    wait_until_taken(inbox, early=1)
    assert inbox.stale_frames == 0
    ways[2].send(Abort([20]))
    assert inbox.receive(5.0) == [Abort([20])]
    ways[3].send(Abort([30]))
    assert inbox.receive(5.0) == [Abort([30])]
    ways[1].send(Lost("scheduler", 2, 9))
    assert inbox.receive(5.0) == [Lost("scheduler", 2, 9), Abort([90])]
    assert followed == [Lost("scheduler", 2, 9)]
    ways[2].send(Abort([21]))
    ways[3].send(Abort([31]))
    messages: list[object] = []
    while len(messages) < 1 or inbox.stale_frames < 1:
        messages += inbox.receive(5.0)
    assert messages == [Abort([31])]


def test_a_loss_that_comes_behind_other_messages_is_given_alone_and_first(
    context: zmq.Context[zmq.Socket[bytes]], run_dir: str
) -> None:
    inbox = Inbox(context, run_dir, "gateway", 5, {"supervisor": 1})
    supervisor = Outbox(context, run_dir, "gateway", 1, to=5)
    sent = [Abort([1]), Lost("model", 3, 9), Abort([2]), Lost("model", 9, 10), Lost("model", 10, 11), Abort([3])]
    for message in sent:
        supervisor.send(message)
    batches: list[list[object]] = []
    while sum(map(len, batches)) < len(sent):
        batches.append(inbox.receive(5.0))
    assert [message for batch in batches for message in batch] == sent
    for batch in batches:
        assert not any(type(message) is Lost for message in batch[1:])


def test_frames_of_runs_that_nobody_announces_are_kept_in_bounds(
    context: zmq.Context[zmq.Socket[bytes]], run_dir: str
) -> None:
    inbox = Inbox(context, run_dir, "gateway", 5, {"supervisor": 1})
    stranger = Outbox(context, run_dir, "gateway", 1 << 40, to=5)
    for _ in range(EARLY_LIMIT + 10):
        stranger.send(Shutdown())
    wait_until_taken(inbox, early=EARLY_LIMIT, stale=10)


def wait_until_taken(inbox: Inbox, early: int, stale: int = 0) -> None:
    """Until so many frames were put aside, and so many dropped."""
    while len(inbox._early) < early or inbox.stale_frames < stale:
        assert inbox.receive(0.05) == []
    assert (len(inbox._early), inbox.stale_frames) == (early, stale)
