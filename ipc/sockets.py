"""ZeroMQ sockets of the ring: every process binds one inbox; whoever speaks to it pushes into that inbox."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from ipc.codec import WireError, decode, encode

# One wake-up hands on at most this many messages, so that a flood cannot keep a process from its step.
RECEIVE_LIMIT = 1024
# How long a closed outbox may hold up its process with messages that nobody takes.
LINGER_MS = 1000

log = logging.getLogger(__name__)


def address(run_dir: str, name: str) -> str:
    """The socket address of the process called `name` ("scheduler", "gateway", "supervisor", ...)."""
    return f"ipc://{Path(run_dir) / name}"


class Inbox:
    """The one socket that a process receives from. Bad frames and frames of another epoch are counted and dropped."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: str, name: str, epoch: int) -> None:
        self.epoch = epoch
        self.bad_frames = 0
        self.stale_frames = 0
        self.received = 0
        self.depth = 0  # messages that were waiting at the last look
        self.peak = 0  # the most of those, until somebody sets it back
        self.socket = context.socket(zmq.PULL)
        # Unbounded queues, here and in Outbox: what may be in flight is bounded by admission, and a bound here
        # would let one process block another or lose a message.
        self.socket.set_hwm(0)
        self.socket.bind(address(run_dir, name))

    def receive(self, timeout_s: float | None = None) -> list[Any]:
        """All messages that have arrived. Waits for the first: for ever with None, not at all with 0."""
        self.depth = 0
        if not self.socket.poll(None if timeout_s is None else round(timeout_s * 1000)):
            return []
        return self.take()

    def take(self) -> list[Any]:
        """All messages that have arrived, up to RECEIVE_LIMIT, without waiting."""
        messages: list[Any] = []
        while len(messages) < RECEIVE_LIMIT:
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._decode_into(messages, frame)
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
        if epoch != self.epoch:
            self.stale_frames += 1
            log.debug("dropped a %s of epoch %d", type(message).__name__, epoch)
            return
        messages.append(message)

    def close(self) -> None:
        self.socket.close(linger=0)


class Outbox:
    """A way into another process's inbox. Not safe to share between threads."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: str, name: str, epoch: int) -> None:
        self.epoch = epoch
        self.sent = 0
        self.socket = context.socket(zmq.PUSH)
        self.socket.set_hwm(0)
        self.socket.linger = LINGER_MS
        self.socket.connect(address(run_dir, name))

    def send(self, message: Any) -> None:
        """Queue a message. Never blocks; the peer need not be there yet."""
        self.socket.send(encode(message, self.epoch), zmq.NOBLOCK)
        self.sent += 1

    def close(self) -> None:
        """Close; queued messages get LINGER_MS to leave."""
        self.socket.close()


class AsyncInbox:
    """An inbox that an asyncio loop watches: `handler` gets every message as it arrives, on the loop."""

    def __init__(self, inbox: Inbox, loop: Any, handler: Callable[[Any], None]) -> None:
        self._inbox = inbox
        self._loop = loop
        self._handler = handler
        self._fd = inbox.socket.getsockopt(zmq.FD)
        loop.add_reader(self._fd, self._on_readable)
        loop.call_soon(self._on_readable)

    def _on_readable(self) -> None:
        # ZeroMQ's descriptor signals edges, not levels: drain the socket, and come back if messages may be left.
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
        self._loop.remove_reader(self._fd)
        self._inbox.close()
