"""KV events on sockets: published as they happen, and replayed to whoever has missed some.

Published batches have three frames: the topic, a number of 8 bytes in big-endian order that counts them from 0, and the
payload. To publish never blocks: what a reader is too slow for is dropped, it sees a gap in the numbers and asks for a
replay. It sends an empty frame and the number to begin with, and gets an empty frame and those three for every batch
from there on, at last the same with an empty topic, a number of 8 bytes ff and an empty payload.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import zmq

from ipc.config import SchedulerConfig
from ipc.process import FatalError
from scheduler_proc.kv_events import KvEvent, as_map, pack_batch
from scheduler_proc.kv_history import History

# How many batches wait for a slow reader before further ones are dropped.
QUEUED_BATCHES = 100_000
MAX_REQUEST_BYTES = 1024
END_OF_REPLAY = b"\xff" * 8

log = logging.getLogger(__name__)


class KvPublisher:
    """Publishes from the thread that made it; a thread of its own answers those who want a replay."""

    def __init__(self, config: SchedulerConfig) -> None:
        """Raises FatalError when an endpoint cannot be bound."""
        self._topic = config.kv_events_topic.encode()
        self.num_published = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoint, replay_endpoint = config.kv_events_endpoint, config.kv_events_replay_endpoint
        self._socket = _bind(self._context, zmq.PUB, QUEUED_BATCHES, "--kv-events-endpoint", endpoint)
        self._replay: Replay | None = None
        if replay_endpoint:
            queued = config.kv_events_buffer_steps + 2  # a whole replay, its summary and its end
            socket = _bind(self._context, zmq.ROUTER, queued, "--kv-events-replay-endpoint", replay_endpoint)
            self._replay = Replay(socket, self._topic, History(config.kv_events_buffer_steps))

    def publish(self, events: Sequence[KvEvent]) -> None:
        """Send the events of a step, as the next batch."""
        batch = pack_batch([as_map(event) for event in events], time.time())
        if self._replay is not None:
            self._replay.add(batch)
        self._socket.send_multipart([self._topic, self.num_published.to_bytes(8, "big"), batch], zmq.NOBLOCK)
        self.num_published += 1

    def close(self) -> None:
        self._socket.close()
        self._context.term()  # ends the wait of the replaying thread, and waits until that has closed its socket
        if self._replay is not None:
            self._replay.join()


class Replay(threading.Thread):
    """Answers from a copy of the history, so that a long answer holds nobody up."""

    def __init__(self, socket: zmq.Socket[bytes], topic: bytes, history: History) -> None:
        super().__init__(name="kv replay", daemon=True)
        self._socket = socket
        self._topic = topic
        self._history = history
        self._lock = threading.Lock()
        self.start()

    def add(self, batch: bytes) -> None:
        with self._lock:
            self._history.add(batch)

    def run(self) -> None:
        try:
            while True:
                self._answer(self._socket.recv_multipart())
        except zmq.ContextTerminated:
            self._socket.close()

    def _answer(self, request: list[bytes]) -> None:
        reader, *frames = request
        if len(frames) != 2 or frames[0] or len(frames[1]) != 8:
            log.debug("dropped a request for a replay that is not an empty frame and a number of 8 bytes")
            return
        first = int.from_bytes(frames[1], "big")
        with self._lock:
            history = self._history.copy(first)
        try:
            for number, batch in history.since(first):
                self._send(reader, self._topic, number.to_bytes(8, "big"), batch)
            self._send(reader, b"", END_OF_REPLAY, b"")
        except zmq.ZMQError as error:
            # It is gone, or takes nothing in; without the end of this replay it knows that it needs another one.
            log.debug("a replay was broken off: %s", error)

    def _send(self, reader: bytes, *frames: bytes) -> None:
        self._socket.send_multipart([reader, b"", *frames], zmq.NOBLOCK)


def _bind(context: zmq.Context[zmq.Socket[bytes]], kind: int, queued: int, flag: str, endpoint: str) -> Any:
    """A socket that listens at an endpoint, and keeps so many messages for each reader."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = queued
    socket.maxmsgsize = MAX_REQUEST_BYTES
    socket.ipv6 = "[" in endpoint
    if kind == zmq.ROUTER:
        socket.router_mandatory = True  # an error where a message would be dropped without a word
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        context.destroy(linger=0)
        raise FatalError(
            f"{flag} {endpoint}: {zmq.strerror(error.errno or 0)}; give it an address of this machine that is free"
        ) from None
    return socket
