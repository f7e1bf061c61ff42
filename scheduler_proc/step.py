"""A step: first what is being put into it, then what is in flight."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipc.messages import Admit, Plan
from scheduler_proc.sequence import Sequence


@dataclass(slots=True)
class Step:
    """One step of the runner, and whose rows it has.

    Almost every row is a decode into a block that is there already. Those are kept as bare sequences in `decodes` and
    become columns all at once; the other rows - prefill chunks, and decodes that need a block - have columns of their
    own from the start.
    """

    number: int
    max_tokens: int
    max_seqs: int
    decodes: list[Sequence] = field(default_factory=list)
    others: list[Sequence] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)  # of `others`
    num_blocks: list[int] = field(default_factory=list)  # likewise: how many of `blocks` are theirs
    blocks: list[int] = field(default_factory=list)
    admits: list[Admit] = field(default_factory=list)
    sampling: list[Sequence] = field(default_factory=list)  # those of `others` that sample a token
    prompts: list[Sequence] = field(default_factory=list)  # those of `others` that end here, being only a prompt
    prefills: list[Sequence] = field(default_factory=list)  # those of `others` that compute known tokens
    num_prefill_tokens: int = 0
    other_tokens: int = 0  # the sum of `num_tokens`
    partials: int = 0  # prefills that do not end with this step
    long_partials: int = 0  # those of them that are long
    filling: set[bytes] = field(default_factory=set)  # hashes of the blocks that its prefills fill
    filled: dict[Sequence, list[int]] = field(default_factory=dict)  # the blocks that its prefills fill
    slots: list[int] = field(default_factory=list)  # of `members`; whoever has left since has no slot any more
    stale: bool = False  # somebody among its members may be over, or was rewound, since it was planned
    planned_ns: int = 0
    kv_tokens: int = 0  # the lengths that its rows attend to, summed up; for the step log alone

    @property
    def size(self) -> int:
        """Tokens that it has."""
        return len(self.decodes) + self.other_tokens

    @property
    def budget(self) -> int:
        """Tokens that there is room for."""
        return self.max_tokens - self.size

    @property
    def room(self) -> int:
        """How many decodes it could take on: each needs a token of the budget and a row."""
        return min(self.budget, self.max_seqs - len(self.decodes) - len(self.others))

    @property
    def members(self) -> list[Sequence]:
        """Whose rows it has, in the order of the plan's slots."""
        return self.decodes + self.others

    @property
    def decoding(self) -> list[Sequence]:
        """Those of the members that decode."""
        return self.decodes + [sequence for sequence in self.others if sequence not in self.prefills]

    @property
    def samplers(self) -> list[Sequence]:
        """Those of the members that sample a token, in the same order."""
        return self.decodes + self.sampling

    def plan(self, drops: list[int]) -> Plan:
        """The message to the runner."""
        ones = len(self.decodes)
        self.slots = [sequence.slot for sequence in self.decodes] + [sequence.slot for sequence in self.others]
        return Plan(
            step=self.number,
            drop=drops,
            admit=self.admits,
            slots=self.slots,
            num_tokens=[1] * ones + self.num_tokens,
            num_blocks=[0] * ones + self.num_blocks,
            blocks=self.blocks,
        )
