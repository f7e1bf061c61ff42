"""Metadata of the paged KV cache: who holds which block, and which blocks can be found again by their content.

The KV memory is `num_blocks` blocks of `block_size` tokens each. A block is in exactly one of three states:

    free     nobody holds it, nothing is known about its content
    cached   nobody holds it, but it still holds a known prefix and can be found by hash, until it is taken (LRU)
    in use   held by one or more sequences

A full block is known by a hash chain: the hash of its parent block's hash and its own token ids, so equal hashes mean
equal prefixes from the very first token on. Every operation costs O(1) a block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from ipc.codec import Ids
from scheduler_proc.kv_events import AllBlocksCleared, BlockRemoved, KvEvent

HASH_BYTES = 16


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free or cached."""


def root_hash(salt: str) -> bytes:
    """The parent of a sequence's first block. Sequences with different salts share no blocks.

    `person` makes it another function than the one of blocks: a salt that is written like a block and its parent's hash
    must not get that block's name.
    """
    return blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"cache salt").digest()


def extend_hashes(hashes: list[bytes], root: bytes, token_ids: Ids, block_size: int) -> None:
    """Append to `hashes` the chain hashes of the full blocks of `token_ids` that it does not cover yet."""
    parent = hashes[-1] if hashes else root
    for start in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        block = token_ids[start : start + block_size].tobytes()
        parent = blake2b(parent + block, digest_size=HASH_BYTES).digest()
        hashes.append(parent)


class BlockPool:
    """All blocks of the KV cache. With `caching` off no block is ever found again."""

    def __init__(self, num_blocks: int, block_size: int, caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self.evictions = 0
        self.num_shared = 0  # blocks that several sequences hold
        self.events: list[KvEvent] | None = None  # what happened to known blocks, while somebody wants to know
        self._holders = [0] * num_blocks
        self._hash: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the lowest ids are handed out first
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._cached)

    @property
    def num_in_use(self) -> int:
        return self.num_blocks - self.num_available

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of a hash chain. Nothing is taken."""
        blocks = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_cached_of(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: sharing those takes them out of what is available."""
        return sum(1 for block in blocks if self._holders[block] == 0)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that `match` found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._cached[block]
            elif self._holders[block] == 1:
                self.num_shared += 1
            self._holders[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks: free ones first, then the longest unused cached ones. Raises OutOfBlocksError."""
        if count > self.num_available:
            raise OutOfBlocksError(f"{count} blocks wanted, {self.num_available} available")
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self._forget(block)
                self.evictions += 1
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give back a sequence's blocks. The tail goes first, so that a prefix outlives what was built on it."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._hash[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None
            elif self._holders[block] == 1:
                self.num_shared -= 1

    def states(self, stride: int) -> list[int]:
        """The state of every `stride`-th block: 0 free, 1 cached, 2 held by one sequence, 3 held by several."""
        hashes = self._hash[::stride]
        return [
            2 + (holders > 1) if holders else int(block_hash is not None)
            for holders, block_hash in zip(self._holders[::stride], hashes, strict=True)
        ]

    def register(self, block: int, block_hash: bytes) -> bool:
        """From now on a held, full block can be found by its hash. Of equal blocks the first stays the one found.

        Returns whether this is the one.
        """
        if not self.caching or self._hash[block] is not None or block_hash in self._by_hash:
            return False
        self._hash[block] = block_hash
        self._by_hash[block_hash] = block
        return True

    def forget(self, blocks: Iterable[int]) -> None:
        """The content of these blocks is not to be trusted: they can no longer be found."""
        for block in blocks:
            self._forget(block)
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def flush(self) -> int:
        """Forget every cached block, and the names of held ones. Returns how many blocks became free."""
        freed = len(self._cached)
        self._free.extend(reversed(self._cached))
        self._cached.clear()
        self._by_hash.clear()
        self._hash = [None] * self.num_blocks
        if self.events is not None:
            self.events.append(AllBlocksCleared())
        return freed

    def _forget(self, block: int) -> None:
        block_hash = self._hash[block]
        if block_hash is not None:
            del self._by_hash[block_hash]
            self._hash[block] = None
            if self.events is not None:
                self._note_removal(self.events, block_hash)

    @staticmethod
    def _note_removal(events: list[KvEvent], block_hash: bytes) -> None:
        """Blocks that go one after the other go in one event."""
        if events and isinstance(events[-1], BlockRemoved):
            events[-1].block_hashes.append(block_hash)
        else:
            events.append(BlockRemoved([block_hash]))

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one state and every name leads to its block."""
        held = sum(1 for holders in self._holders if holders > 0)
        states = (len(self._free), len(self._cached), held)
        if sum(states) != self.num_blocks or min(self._holders, default=0) < 0:
            raise AssertionError(f"free, cached, in use = {states}, of {self.num_blocks} blocks")
        if self.num_shared != sum(1 for holders in self._holders if holders > 1):
            raise AssertionError(f"{self.num_shared} blocks count as shared, which is wrong")
        if any(self._holders[block] or self._hash[block] is not None for block in self._free):
            raise AssertionError("a free block is held or known")
        if any(self._holders[block] or self._hash[block] is None for block in self._cached):
            raise AssertionError("a cached block is held or unknown")
        if any(self._hash[block] != block_hash for block_hash, block in self._by_hash.items()):
            raise AssertionError("a hash leads to a block of another content")
