"""What happens to the blocks that can be found again, told to whoever wants to know what is cached here.

The wire format is the one that vLLM and SGLang share, so that one reader understands all three: a batch is the msgpack
array `[seconds since 1970, events, rank]`, an event a map whose `type` is the name of its class here. A block's name is
64 bits of its chain hash; equal names mean equal prefixes on every Quintet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from ipc.codec import Ids

MEDIUM = "GPU"  # what readers call the memory that the model computes in, whatever the device
RANK = 0  # of data parallelism: one ring is one rank


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Blocks one behind the other can be found from now on, the first one behind `parent`."""

    block_hashes: list[bytes]
    parent: bytes | None  # None at the beginning of a prompt
    token_ids: Ids  # of all these blocks
    block_size: int  # tokens
    cache_salt: str


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """These blocks can no longer be found."""

    block_hashes: list[bytes]


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """No block can be found."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


def public_name(block_hash: bytes) -> int:
    """A block's name on the wire, an unsigned integer of 64 bits."""
    return int.from_bytes(block_hash[:8], "big")


def as_map(event: KvEvent) -> dict[str, Any]:
    """An event as it is on the wire."""
    match event:
        case BlockStored(block_hashes, parent, token_ids, block_size, cache_salt):
            names = [public_name(block_hash) for block_hash in block_hashes]
            salts = [[cache_salt], *[None] * (len(names) - 1)] if cache_salt and parent is None else None
            behind = None if parent is None else public_name(parent)
            return stored_map(names, behind, token_ids.tolist(), block_size, salts)
        case BlockRemoved(block_hashes):
            names = [public_name(block_hash) for block_hash in block_hashes]
            return {"type": "BlockRemoved", "block_hashes": names, "medium": MEDIUM}
        case AllBlocksCleared():
            return {"type": "AllBlocksCleared"}


def stored_map(
    names: list[int], parent: int | None, token_ids: list[int], block_size: int, extra_keys: list[Any] | None
) -> dict[str, Any]:
    """A BlockStored on the wire. `extra_keys` has what beside its tokens makes each block what it is: here the salt."""
    stored = {
        "type": "BlockStored", "block_hashes": names, "parent_block_hash": parent, "token_ids": token_ids,
        "block_size": block_size, "lora_id": None, "medium": MEDIUM, "lora_name": None,
    }  # fmt: skip
    return stored if extra_keys is None else stored | {"extra_keys": extra_keys}


def pack_batch(events: Sequence[dict[str, Any]], time_s: float) -> bytes:
    """The payload of a batch; `time_s` is in seconds since 1970."""
    packed: bytes = msgpack.packb([time_s, events, RANK])
    return packed
