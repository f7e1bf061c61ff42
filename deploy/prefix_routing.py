"""Which replica a prompt goes to: where most of it is cached, or by a hash ring, and never to one that drowns.

An index learns from the KV events of every replica which blocks it holds. An event names blocks by the engine's own
hashes, which nobody outside of it can compute, but it also tells their tokens and their parent. So the index gives
each block a key of its own, a chain hash over tokens, and finds a prompt's longest cached prefix by walking its blocks.

The rule, in this order:

1. Of the replicas that hold some of the prompt, the one that holds most of it; of equal ones the least loaded.
2. When nobody does, the first on a hash ring, by the beginning of the prompt: equal beginnings meet at the same
   replica even before the first event is there, and a replica that comes or goes moves only its own share of them.
3. A replica whose load is over `load_factor` times the mean is passed over in both, so that a hot prefix spreads
   (consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018).

Nothing here does I/O or reads a clock: the same code routes live requests and those of the simulator. Whoever uses it
from several threads holds a lock of his own.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

KEY_BYTES = 16
ROOT = b""  # the parent of a prompt's first block

Hash = int | bytes  # an engine's own name of a block
ExtraKeys = Sequence[Any] | None  # what beside its tokens makes a block what it is: the salt of a cache, an adapter


class EventError(ValueError):
    """An event that makes no sense. Nothing of it was taken in."""


class PrefixIndex:
    """Which replica holds which blocks. All replicas have blocks of the same number of tokens."""

    def __init__(self) -> None:
        self.block_size = 0  # in tokens; unknown before the first event
        self._holders: dict[bytes, set[str]] = {}  # key of a block -> replicas that have it
        self._keys: dict[str, dict[Hash, bytes]] = {}  # replica -> its name of a block -> key of that block

    def __len__(self) -> int:
        """How many different blocks are held."""
        return len(self._holders)

    def num_blocks(self, replica: str) -> int:
        """How many blocks of a replica are known."""
        return len(self._keys.get(replica, ()))

    def apply(self, replica: str, event: Mapping[str, Any]) -> None:
        """Take in one decoded event of a replica, in the order in which the replica sent them. Raises EventError."""
        try:
            match event["type"]:
                case "BlockStored":
                    self.stored(
                        replica, event["block_hashes"], event["parent_block_hash"], event["token_ids"],
                        event["block_size"], event.get("extra_keys"),
                    )  # fmt: skip
                case "BlockRemoved":
                    self.removed(replica, event["block_hashes"])
                case "AllBlocksCleared":
                    self.cleared(replica)
                case other:
                    raise EventError(f"{replica}: an event of the unknown type {other!r}")
        except (KeyError, TypeError, OverflowError) as error:
            raise EventError(f"{replica}: an event that cannot be read: {error!r}") from error

    def stored(
        self, replica: str, block_hashes: Sequence[Hash], parent_block_hash: Hash | None, token_ids: Sequence[int],
        block_size: int, extra_keys: Sequence[ExtraKeys] | None = None,
    ) -> None:  # fmt: skip
        """A replica has these blocks, each the parent of the next, the first one behind `parent_block_hash`.

        `token_ids` are those of all of them, `block_size` a block. Blocks whose parent is unknown are left out: without
        what comes before it nobody can find a block. Raises EventError when the sizes do not fit.
        """
        if self._holders and block_size != self.block_size:
            raise EventError(
                f"{replica} has blocks of {block_size} tokens, other replicas of {self.block_size}: "
                "give all of them the same --block-size"
            )
        if block_size < 1 or len(token_ids) != block_size * len(block_hashes):
            raise EventError(f"{replica}: {len(token_ids)} tokens in {len(block_hashes)} blocks of {block_size}")
        extras = [None] * len(block_hashes) if extra_keys is None else extra_keys
        if len(extras) != len(block_hashes):
            raise EventError(f"{replica}: {len(extras)} extra keys for {len(block_hashes)} blocks")
        names = self._keys.get(replica, {})
        key = ROOT if parent_block_hash is None else names.get(parent_block_hash)
        if key is None:
            return
        tokens = array("i", token_ids)
        found: dict[Hash, bytes] = {}
        for number, (block_hash, extra) in enumerate(zip(block_hashes, extras, strict=True)):
            key = block_key(key, tokens[number * block_size : (number + 1) * block_size], extra)
            found[block_hash] = key
        # A name that meant something else until now: its removal was never heard of.
        self.removed(replica, [name for name in found if names.get(name, found[name]) != found[name]])
        self.block_size = block_size
        self._keys.setdefault(replica, {}).update(found)
        for key in found.values():
            self._holders.setdefault(key, set()).add(replica)

    def removed(self, replica: str, block_hashes: Iterable[Hash]) -> None:
        """A replica no longer has these blocks. Unknown ones are none of its."""
        keys = self._keys.get(replica, {})
        for block_hash in set(block_hashes):
            key = keys.pop(block_hash, None)
            if key is not None:
                self._drop(replica, key)

    def cleared(self, replica: str) -> None:
        """A replica has no blocks any more, or is gone."""
        for key in self._keys.pop(replica, {}).values():
            self._drop(replica, key)

    def _drop(self, replica: str, key: bytes) -> None:
        holders = self._holders.get(key)
        if holders is not None:
            holders.discard(replica)
            if not holders:
                del self._holders[key]

    def match(self, token_ids: Sequence[int], salt: str = "") -> dict[str, int]:
        """How many of a prompt's leading tokens each replica has; those with none are left out.

        `salt` is the request's `cache_salt`. The last token is never among them: it is computed in any case.
        """
        if not self.block_size or not self._holders:
            return {}
        found: dict[str, int] = {}
        tokens = array("i", token_ids)
        parent, extra = ROOT, (salt,) if salt else None
        holding: set[str] | None = None  # those that have all blocks so far
        for start in range(0, (len(tokens) - 1) // self.block_size * self.block_size, self.block_size):
            end = start + self.block_size
            parent = block_key(parent, tokens[start:end], extra)
            extra = None
            holders = self._holders.get(parent, set())
            holding = holders if holding is None else holding & holders
            if not holding:
                break
            found.update(dict.fromkeys(holding, end))
        return found


def block_key(parent: bytes, tokens: array[int], extra: ExtraKeys) -> bytes:
    """The key of a block behind `parent`: equal keys mean equal tokens from the first one on."""
    beside = repr(tuple(extra)).encode() if extra else b""
    return blake2b(parent + tokens.tobytes() + beside, digest_size=KEY_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a prompt goes, and why."""

    replica: str
    cached_tokens: int  # how many of the prompt's leading tokens it has
    passed_over: int  # replicas that would have been better, and have too much to do


@dataclass(frozen=True, slots=True)
class PrefixRouting:
    """The rule. `index` is fed by the caller, who also knows the loads."""

    index: PrefixIndex
    load_factor: float = 1.25  # times the mean load: more than that is too much
    free_load: float = 8.0  # a load that is never too much: a batch does not feel so few requests
    ring_tokens: int = 64  # of a prompt's beginning, which decide its place on the ring

    def __post_init__(self) -> None:
        if self.load_factor < 1:
            raise ValueError(f"load_factor must be at least 1, or everybody may have too much, got {self.load_factor}")
        if self.ring_tokens < 1:
            raise ValueError(f"ring_tokens must be at least 1, got {self.ring_tokens}")

    def choose(
        self, token_ids: Sequence[int], loads: Mapping[str, float], salt: str = "", conversation: str = ""
    ) -> Choice:
        """The replica for a prompt.

        `loads` are the replicas that may be chosen, each with the requests it is at, or any other measure in which this
        request counts as one. `conversation` says what belongs together better than the prompt's beginning does, when
        the client says so (`prompt_cache_key`, a session). Raises ValueError when there are no replicas.
        """
        if not loads:
            raise ValueError("there is no replica to choose from")
        cached = self.index.match(token_ids, salt)
        beginning = conversation.encode() or salt.encode() + array("i", token_ids[: self.ring_tokens]).tobytes()
        place = {replica: number for number, replica in enumerate(ring_order(loads, beginning))}

        def rank(replica: str) -> tuple[int, float, int]:
            tokens = cached.get(replica, 0)
            return -tokens, loads[replica] if tokens else 0.0, place[replica]

        # The least loaded one is never over it, for it is not over the mean.
        limit = max(self.free_load, self.load_factor * (sum(loads.values()) + 1) / len(loads))
        ranked = sorted(loads, key=rank)
        number = next(number for number, replica in enumerate(ranked) if loads[replica] <= limit)
        return Choice(ranked[number], cached.get(ranked[number], 0), passed_over=number)


def ring_order(replicas: Collection[str], key: bytes) -> list[str]:
    """The replicas in the order in which a key meets them on a hash ring.

    Every key has a ring of its own (rendezvous hashing: Thaler and Ravishankar, 1998), so shares are even without
    virtual nodes, and what a replica leaves behind is spread over all others.
    """
    digest = blake2b(key, digest_size=KEY_BYTES).digest()
    return sorted(replicas, key=lambda replica: blake2b(digest + replica.encode(), digest_size=8).digest())
