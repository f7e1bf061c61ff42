"""Which replica a prompt goes to: where most of it is cached, or by a hash ring, and never to one that drowns.

An index learns from the KV events of every replica which blocks it holds. An event names blocks by the engine's own
hashes, which nobody outside of it can compute, but it also tells their tokens and their parent. So the index keeps a
tree for each replica, in which a step down is a block's tokens, and finds a prompt's longest cached prefix by walking.

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

Hash = int | bytes  # an engine's own name of a block
# A step down the tree: from the parent (None is the root) by what is in the block, its tokens and what else makes it
# what it is (`extra_keys`: the salt of a cache, an adapter).
Step = tuple[Hash | None, bytes]


class EventError(ValueError):
    """An event that makes no sense. Nothing of it was taken in."""


class PrefixIndex:
    """Which replica holds which blocks. All replicas have blocks of the same number of tokens."""

    def __init__(self) -> None:
        self.block_size = 0  # in tokens; unknown before the first event
        self._blocks: dict[str, dict[Hash, Step]] = {}  # replica -> block -> the step that leads to it
        self._trees: dict[str, dict[Step, Hash]] = {}  # replica -> step -> the block that it leads to

    def num_blocks(self, replica: str) -> int:
        """How many blocks of a replica are known."""
        return len(self._blocks.get(replica, ()))

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
        block_size: int, extra_keys: Sequence[Any] | None = None,
    ) -> None:  # fmt: skip
        """A replica has these blocks, each the parent of the next, the first one behind `parent_block_hash`.

        `token_ids` are those of all of them, `block_size` a block. Raises EventError when the sizes do not fit.
        """
        if block_size != self.block_size and any(self._blocks.values()):
            raise EventError(
                f"{replica} has blocks of {block_size} tokens, other replicas of {self.block_size}: "
                "give all of them the same --block-size"
            )
        if block_size < 1 or len(token_ids) != block_size * len(block_hashes):
            raise EventError(f"{replica}: {len(token_ids)} tokens in {len(block_hashes)} blocks of {block_size}")
        extras = [None] * len(block_hashes) if extra_keys is None else extra_keys
        if len(extras) != len(block_hashes):
            raise EventError(f"{replica}: {len(extras)} extra keys for {len(block_hashes)} blocks")
        steps: dict[Hash, Step] = {}
        parent = parent_block_hash
        for block_hash, content, extra in zip(block_hashes, contents(token_ids, block_size), extras, strict=True):
            steps[block_hash] = parent, content + beside(extra)
            parent = block_hash
        self.removed(replica, steps)  # a name that meant something else: its removal was never heard of
        self.block_size = block_size
        self._blocks.setdefault(replica, {}).update(steps)
        self._trees.setdefault(replica, {}).update({step: block_hash for block_hash, step in steps.items()})

    def removed(self, replica: str, block_hashes: Iterable[Hash]) -> None:
        """A replica no longer has these blocks. Unknown ones are none of its."""
        blocks, tree = self._blocks.get(replica, {}), self._trees.get(replica, {})
        for block_hash in set(block_hashes):
            step = blocks.pop(block_hash, None)
            if step is not None and tree.get(step) == block_hash:
                del tree[step]

    def cleared(self, replica: str) -> None:
        """A replica has no blocks any more, or is gone."""
        self._blocks.pop(replica, None)
        self._trees.pop(replica, None)

    def match(self, token_ids: Sequence[int], salt: str = "") -> dict[str, int]:
        """How many of a prompt's leading tokens each replica has; those with none are left out.

        `salt` is the request's `cache_salt`. The last token is never among them: it is computed in any case.
        """
        if not any(self._trees.values()):
            return {}
        prompt = contents(token_ids[:-1], self.block_size)
        if prompt and salt:
            prompt[0] += beside([salt])
        found = {}
        for replica, tree in self._trees.items():
            block: Hash | None = None
            depth = 0
            while depth < len(prompt) and (block := tree.get((block, prompt[depth]))) is not None:
                depth += 1
            if depth:
                found[replica] = depth * self.block_size
        return found


def contents(token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """What is in the full blocks of these tokens."""
    tokens = array("i", token_ids)
    return [tokens[end - block_size : end].tobytes() for end in range(block_size, len(tokens) + 1, block_size)]


def beside(extra: Iterable[Any] | None) -> bytes:
    """What a block's extra key adds to its content."""
    return repr(tuple(extra)).encode() if extra else b""


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
    digest = blake2b(key, digest_size=16).digest()
    return sorted(replicas, key=lambda replica: blake2b(digest + replica.encode(), digest_size=8).digest())
