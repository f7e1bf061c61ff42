"""What a failed step spoils beyond the sequences that failed in it."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler_proc.sequence import Sequence
from scheduler_proc.step import Step


def filled_by(sequences: set[Sequence], steps: Iterable[Step]) -> set[int]:
    """The blocks that the prefills of some sequences fill in the given steps.

    A failed chunk need not fill a block for the next chunks, planned already, to go on from garbage and to fill some.
    """
    pairs = (pair for step in steps for pair in step.filled.items())
    return {block for sequence, blocks in pairs if sequence in sequences for block in blocks}


def built_on(bad: set[int], sequences: Iterable[Sequence]) -> list[Sequence]:
    """The sequences that share a block of `bad`, directly or through another one that does.

    A prefill's blocks can be found from the next plan on, before it is known that they were filled. When they were
    not, whoever took them has computed on garbage, and so have those who took that one's blocks. `bad` grows by the
    blocks that turn out to be spoiled.
    """
    spoiled: list[Sequence] = []
    remaining = list(sequences)
    found = True
    while found:
        found = False
        for sequence in remaining[:]:
            first = next((i for i, block in enumerate(sequence.blocks) if block in bad), None)
            if first is not None:
                bad.update(sequence.blocks[first:])
                spoiled.append(sequence)
                remaining.remove(sequence)
                found = True
    return spoiled
