"""What a late reader of KV events gets: the last batches, and in one more what all before them came to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgpack

from scheduler_proc.kv_events import pack_batch, stored_map


@dataclass(frozen=True, slots=True)
class Block:
    """A block as its BlockStored told of it."""

    parent: int | None
    token_ids: list[int]
    extra_key: Any


class History:
    """Numbered batches. The last `limit` are kept as they were; older ones are added up to the blocks that they left.

    So a replay from any number leads to the exact set of blocks, however long ago that was.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._batches: deque[bytes] = deque()
        self._first = 0  # the number of the first of them
        self._blocks: dict[int, Block] = {}  # what the batches before that one left
        self._time_s = 0.0  # of the last one of those

    def add(self, batch: bytes) -> None:
        """Keep the next batch."""
        self._batches.append(batch)
        if len(self._batches) > self._limit:
            self._time_s, events, _ = msgpack.unpackb(self._batches.popleft())
            self._first += 1
            for event in events:
                _change(self._blocks, event)

    def copy(self, number: int) -> History:
        """One that stays as it is while this one grows, and has what a replay from a number on needs."""
        other = History(self._limit)
        other._first = min(max(number, self._first), self._first + len(self._batches))
        other._batches = deque(islice(self._batches, other._first - self._first, None))
        if number < self._first:
            other._blocks, other._time_s = self._blocks.copy(), self._time_s
        return other

    def since(self, number: int) -> list[tuple[int, bytes]]:
        """The batches from a number on, with their numbers.

        When some of them are no longer kept, a summary stands for all before those that are: it clears everything and
        stores what was there then.
        """
        kept = [(at, batch) for at, batch in enumerate(self._batches, self._first) if at >= number]
        if number >= self._first:
            return kept
        summary = [{"type": "AllBlocksCleared"}, *_stored(self._blocks)]
        return [(self._first - 1, pack_batch(summary, self._time_s)), *kept]


def _change(blocks: dict[int, Block], event: dict[str, Any]) -> None:
    match event["type"]:
        case "BlockStored":
            parent, size = event["parent_block_hash"], event["block_size"]
            extra_keys = event.get("extra_keys") or [None] * len(event["block_hashes"])
            for number, (name, extra_key) in enumerate(zip(event["block_hashes"], extra_keys, strict=True)):
                blocks[name] = Block(parent, event["token_ids"][number * size : (number + 1) * size], extra_key)
                parent = name
        case "BlockRemoved":
            for name in event["block_hashes"]:
                del blocks[name]
        case "AllBlocksCleared":
            blocks.clear()


def _stored(blocks: dict[int, Block]) -> list[dict[str, Any]]:
    """Events that store these blocks, parents before children; those in a row are in one event."""
    children: dict[int | None, list[int]] = {}
    for name, block in blocks.items():
        children.setdefault(block.parent if block.parent in blocks else None, []).append(name)
    rows: list[list[int]] = []
    coming = children.pop(None, [])
    while coming:
        name = coming.pop()
        if rows and rows[-1][-1] == blocks[name].parent:
            rows[-1].append(name)
        else:
            rows.append([name])
        coming += children.get(name, ())
    return [_row([blocks[name] for name in row], row) for row in rows]


def _row(blocks: list[Block], names: list[int]) -> dict[str, Any]:
    token_ids = [token for block in blocks for token in block.token_ids]
    extra_keys = [block.extra_key for block in blocks]
    return stored_map(
        names, blocks[0].parent, token_ids, len(blocks[0].token_ids), extra_keys if any(extra_keys) else None
    )
