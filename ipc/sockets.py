"""ZeroMQ sockets of the ring: every process binds one inbox; whoever speaks to it pushes into that inbox.

Every run of a process has an epoch, a number that no other run in the ring has. It is part of the inbox's address, so
what was sent to a run that died never reaches its successor; and it is in every frame, so what a dead run has sent is
recognised and dropped.
"""

from __future__ import annotations

import logging
import math
import select
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from ipc import faults
from ipc.codec import WireError, decode, encode
from ipc.control_messages import Lost

# One wake-up hands on at most this many messages, so that a flood cannot keep a process from its step.
RECEIVE_LIMIT = 1024
# How long a closed outbox may hold up its process with messages that nobody takes.
LINGER_MS = 1000
# How many messages of runs that nobody has announced yet are kept until somebody does.
EARLY_LIMIT = 4096
# select(2) takes descriptors below this number. Only a program that uses the offline API could have opened so many.
SELECT_LIMIT = 1024

log = logging.getLogger(__name__)


def address(run_dir: str, name: str, epoch: int) -> str:
    """The socket address of one run of the process called `name` ("scheduler", "gateway", "supervisor", ...)."""
    return f"ipc://{Path(run_dir) / name}-{epoch}"


def _wait_for(fd: int, timeout_s: float | None) -> bool:
    """Whether a descriptor became readable within the time; None is for ever."""
    if fd < SELECT_LIMIT:
        return bool(select.select([fd], [], [], timeout_s)[0])
    poll = select.poll()  # knows whole milliseconds only
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)))


class Inbox:
    """The one socket that a process receives from. Bad frames and frames of runs that are over are counted and dropped.

    A Lost message, which says that a run is over and which is the next, always comes first in what `take` gives: all
    before it was given by an earlier call, and nothing of the next run is given before it. `on_lost` is called with it.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: str,
        name: str,
        epoch: int,
        runs: Mapping[str, int] | None = None,
        on_lost: Callable[[Lost], None] = lambda lost: None,
    ) -> None:
        """`runs` are the epochs of the other processes, by name."""
        self.runs = {**(runs or {}), name: epoch}
        self.bad_frames = 0
        self.stale_frames = 0
        self.received = 0
        self.depth = 0  # messages that were waiting at the last look
        self.peak = 0  # the most of those, until somebody sets it back
        self._on_lost = on_lost
        self._current = set(self.runs.values())
        self._newest = max(self._current)
        self._early: list[tuple[int, Any]] = []  # messages of runs that are still to be announced, and their epochs
        self._lost: deque[Lost] = deque()  # to be given
        self.socket = context.socket(zmq.PULL)
        # Unbounded queues, here and in Outbox: what may be in flight is bounded by admission, and a bound here
        # would let one process block another or lose a message.
        self.socket.set_hwm(0)
        self.socket.bind(address(run_dir, name, epoch))
        self.fd = int(self.socket.getsockopt(zmq.FD))  # signals edges, not levels: it counts only behind a `take`

    def receive(self, timeout_s: float | None = None) -> list[Any]:
        """All messages that have arrived. Waits for the first: for ever with None, not at all with 0.

        It wakes some 50 microseconds after a time limit; ZeroMQ's own poll would round that to milliseconds.
        """
        messages = self.take()
        left = timeout_s
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        while not messages and _wait_for(self.fd, left):
            messages = self.take()  # there may be none: ZeroMQ signals its own housekeeping as well
            left = None if ends is None else max(0.0, ends - time.monotonic())
        return messages

    def take(self) -> list[Any]:
        """All messages that have arrived, up to RECEIVE_LIMIT, without waiting."""
        messages: list[Any] = self._follow(self._lost.popleft()) if self._lost else []
        # To ask first is cheaper than the exception of an empty inbox.
        while len(messages) < RECEIVE_LIMIT and not self._lost and int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._decode_into(messages, self.socket.recv(zmq.NOBLOCK))
        self.received += len(messages)
        self.depth = len(messages)
        if self.depth > self.peak:
            self.peak = self.depth
        return messages

    def _decode_into(self, messages: list[Any], frame: bytes) -> None:
        try:
            epoch, message = decode(frame)
        except WireError as error:
            self.bad_frames += 1
            log.warning("dropped a frame of %d bytes: %s", len(frame), error)
            return
        if epoch not in self._current:
            if epoch > self._newest and len(self._early) < EARLY_LIMIT:
                self._early.append((epoch, message))
                return
            self.stale_frames += 1
            log.debug("dropped a %s of epoch %d", type(message).__name__, epoch)
        elif type(message) is not Lost:
            messages.append(message)
        elif messages:
            self._lost.append(message)
        else:
            messages += self._follow(message)

    def replace(self, process: str, epoch: int) -> None:
        """Believe nothing any more of the run of a process that is over, and its successor from now on."""
        self.runs[process] = epoch
        self._current = set(self.runs.values())
        self._newest = max(self._newest, epoch)

    def _follow(self, lost: Lost) -> list[Any]:
        """A loss takes effect. Gives it, and what has come of the next run already."""
        self.replace(lost.process, lost.successor)
        self._on_lost(lost)
        early, self._early = self._early, []
        known = [message for epoch, message in early if epoch in self._current]
        self._early = [(epoch, message) for epoch, message in early if epoch > self._newest]
        return [lost, *known]

    def close(self) -> None:
        self.socket.close(linger=0)


class Outbox:
    """A way into another process's inbox. Not safe to share between threads."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], run_dir: str, name: str, epoch: int, to: int | None = None
    ) -> None:
        """`epoch` is that of the sender's run, `to` that of the receiver's; the same when left out."""
        self.epoch = epoch
        self.sent = 0
        self._context = context
        self._run_dir = run_dir
        self._name = name
        self.socket = self._connect(epoch if to is None else to)

    def redirect(self, to: int) -> None:
        """Send to another run of the peer from now on. What the one before has not taken is dropped."""
        self.socket.close(linger=0)
        self.socket = self._connect(to)

    def send(self, message: Any) -> None:
        """Queue a message. Never blocks; the peer need not be there yet."""
        frame = encode(message, self.epoch)
        if faults.armed and faults.at("send"):
            frame = frame[: len(frame) // 2]
        self.socket.send(frame, zmq.NOBLOCK)
        self.sent += 1

    def close(self) -> None:
        """Close; queued messages get LINGER_MS to leave."""
        self.socket.close()

    def _connect(self, to: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.linger = LINGER_MS
        socket.connect(address(self._run_dir, self._name, to))
        return socket


class AsyncInbox:
    """An inbox that an asyncio loop watches: `handler` gets every message as it arrives, on the loop."""

    def __init__(self, inbox: Inbox, loop: Any, handler: Callable[[Any], None]) -> None:
        self._inbox = inbox
        self._loop = loop
        self._handler = handler
        loop.add_reader(inbox.fd, self._on_readable)
        loop.call_soon(self._on_readable)

    def _on_readable(self) -> None:
        # The descriptor signals edges, not levels: drain the socket, and come back if messages may be left.
        messages = self._inbox.take()
        if messages:
            self._loop.call_soon(self._on_readable)
        for message in messages:
            try:
                self._handler(message)
            except Exception:
                # One message that cannot be handled must not take the others of its batch along.
                log.exception("a %s could not be handled", type(message).__name__)

    def close(self) -> None:
        self._loop.remove_reader(self._inbox.fd)
        self._inbox.close()
