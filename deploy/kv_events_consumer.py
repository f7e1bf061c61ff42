"""Follow the KV events of an engine, and know which blocks it has cached.

    python deploy/kv_events_consumer.py tcp://127.0.0.1:5557 [--replay-endpoint tcp://127.0.0.1:5558] [--topic TOPIC]

Written from the format alone, which vLLM and SGLang share: it needs no module of Quintet, and works beside any router.
A published batch has three frames: topic, number (8 bytes, big-endian, from 0 on), and a msgpack array `[seconds since
1970, events, rank]`. An event is a map:

    {"type": "BlockStored", "block_hashes": [...], "parent_block_hash": ... or None, "token_ids": [...],
     "block_size": ..., "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [...] or left out}
    {"type": "BlockRemoved", "block_hashes": [...], "medium": "GPU"}
    {"type": "AllBlocksCleared"}

Batches can get lost: whoever subscribes late has missed some, and a publisher drops what a reader is too slow for. A
gap in the numbers tells. For a replay one sends an empty frame and the number to begin with, and gets an empty frame
and the three of each batch, at last an empty topic, a number of eight bytes ff and an empty payload.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import msgpack
import zmq

CLEARED = {"type": "AllBlocksCleared"}
END_OF_REPLAY = b"\xff" * 8
Event = dict[str, Any]
Batch = tuple[int, bytes]  # number and payload


class KvEvents:
    """The events of one engine, complete and in order, across losses and restarts.

    Without a replay endpoint, or when it does not answer, everything is cleared where something is missing: what one
    believes is then less than what is cached, never more. Not safe to share between threads.
    """

    def __init__(
        self, endpoint: str, replay_endpoint: str = "", topic: str = "", replay_timeout_s: float = 5.0
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._published = self._context.socket(zmq.SUB)
        self._published.rcvhwm = 0  # a reader that falls behind for a moment should not need a replay
        self._published.subscribe(topic)
        self._published.connect(endpoint)
        self._replay_endpoint = replay_endpoint
        self._replay_timeout_ms = round(1000 * replay_timeout_s)
        self._begun = False
        self.next_number = 0  # of the batch that comes next
        self._last = b""  # the payload of the one before it
        self._last_time_s = 0.0

    def receive(self, timeout_s: float) -> list[Event]:
        """The events that come next; none when there are none.

        The first call asks for all that were before it. When nothing comes in time it asks whether that is so: the last
        batch may have got lost, or the publisher may have started again. An answer takes `replay_timeout_s` at most.
        """
        if not self._begun or not self._published.poll(round(1000 * timeout_s)):
            self._begun = True
            return self._catch_up()
        _, number, payload = self._published.recv_multipart()
        return self._take(int.from_bytes(number, "big"), payload)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> KvEvents:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, number: int, payload: bytes) -> list[Event]:
        """The events of a published batch, and of those that should have come before it."""
        if number == self.next_number:
            return self._read(number, payload)
        if number < self.next_number and msgpack.unpackb(payload)[0] <= self._last_time_s:
            return []  # a replay has brought it already
        # Some are missing. Or all of them: a number that comes again, later, is that of a publisher started anew.
        if events := self._catch_up():
            return events + self._read(number, payload) if number == self.next_number else events
        return [CLEARED, *self._read(number, payload)]

    def _catch_up(self) -> list[Event]:
        """The events behind the last known batch. When nobody knows that any more: a clearance, and all events."""
        if self.next_number:
            batches = self._replay(self.next_number - 1)
            if batches is None:
                return []
            if batches and batches[0] == (self.next_number - 1, self._last):
                return self._read_all(batches[1:])
        batches = self._replay(0)
        if batches is None or (not batches and not self.next_number):
            return []
        self.next_number = 0
        return [CLEARED, *self._read_all(batches)]

    def _read_all(self, batches: list[Batch]) -> list[Event]:
        return [event for number, payload in batches for event in self._read(number, payload)]

    def _read(self, number: int, payload: bytes) -> list[Event]:
        self._last_time_s, events, *_ = msgpack.unpackb(payload)
        self.next_number, self._last = number + 1, payload
        return list(events)

    def _replay(self, first: int) -> list[Batch] | None:
        """The batches from a number on; None when there is no answer that comes to its end in time."""
        if not self._replay_endpoint:
            return None
        batches: list[Batch] = []
        with self._context.socket(zmq.DEALER) as socket:  # a new one: it gets no rest of an earlier answer
            socket.linger = 0
            socket.rcvhwm = 0
            socket.connect(self._replay_endpoint)
            socket.send_multipart([b"", first.to_bytes(8, "big")])
            while socket.poll(self._replay_timeout_ms):
                _, _, number, payload = socket.recv_multipart()
                if number == END_OF_REPLAY:
                    return batches
                batches.append((int.from_bytes(number, "big"), payload))
        return None


class Blocks:
    """The blocks that an engine has cached: by name, their parents and their tokens."""

    def __init__(self) -> None:
        self.by_name: dict[int | bytes, tuple[int | bytes | None, tuple[int, ...]]] = {}

    def apply(self, event: Event) -> None:
        match event["type"]:
            case "BlockStored":
                parent, size = event["parent_block_hash"], event["block_size"]
                for number, name in enumerate(event["block_hashes"]):
                    self.by_name[name] = parent, tuple(event["token_ids"][number * size : (number + 1) * size])
                    parent = name
            case "BlockRemoved":
                for name in event["block_hashes"]:
                    self.by_name.pop(name, None)
            case "AllBlocksCleared":
                self.by_name.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description="Follow the KV events of an engine.")
    parser.add_argument("endpoint", help="where they are published: --kv-events-endpoint of the engine")
    parser.add_argument("--replay-endpoint", default="", help="--kv-events-replay-endpoint of the engine")
    parser.add_argument("--topic", default="", help="--kv-events-topic of the engine")
    args = parser.parse_args()
    blocks = Blocks()
    with contextlib.suppress(KeyboardInterrupt), KvEvents(args.endpoint, args.replay_endpoint, args.topic) as events:
        while True:
            for event in events.receive(timeout_s=1.0):
                blocks.apply(event)
                print(event["type"], *event.get("block_hashes", ()), f"- {len(blocks.by_name)} blocks are cached")


if __name__ == "__main__":
    main()
