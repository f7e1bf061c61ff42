"""What a sequence may sample next, where that is not everything: a grammar, a list of allowed tokens, words to avoid.

A constraint becomes one bit a token, filled in on the host before a step samples. What follows a grammar depends on the
tokens before it, so those must have reached the host by then; see `TorchRunner`.

Where the rules together leave nothing, the later ones give way: first is the grammar or the list, then `bad_words`,
then `min_tokens` and `ignore_eos`, which hold for as long as the grammar lets the output go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from ipc.codec import Ids
from ipc.messages import Admit, Plan, Sampling
from model_proc.grammars import Grammars

Bits = NDArray[np.int32]  # [..., ceil(vocabulary / 32)]: bit i of word w is token 32 * w + i


class Constraint:
    """What one sequence may sample, from its admission to a slot on."""

    def __init__(
        self, sampling: Sampling, matcher: LLMatcher | None, output: Ids, everything: Bits, eos_token_ids: list[int]
    ) -> None:
        """`output` is what it has sampled before this admission, `everything` are the bits of all tokens."""
        self.error = ""  # why nothing can be sampled any more, "" when that is not so
        self.width = width = len(everything)  # words of a row
        self._matcher = matcher
        self._possible = bits_of(sampling.allowed_ids, width) if sampling.allowed_ids else everything
        self._min_tokens = sampling.min_tokens
        self._ends = bits_of([*sampling.stop_token_ids, *eos_token_ids], width)
        self._keeps_on = sampling.ignore_eos and matcher is not None
        self._eos = bits_of(eos_token_ids, width)
        words = _rows(sampling.bad_ids, sampling.bad_counts)
        self._bad = bits_of([word[0] for word in words if len(word) == 1], width)
        self._has_bad = bool(self._bad.any())
        self._bad_words = [word for word in words if len(word) > 1]
        self._output = output.tolist()
        if matcher is not None and output and not matcher.consume_tokens(self._output):
            self._fail()

    @property
    def needs_tokens(self) -> bool:
        """Whether what is allowed depends on the tokens sampled before."""
        return self._matcher is not None or bool(self._bad_words)

    def accept(self, token: int) -> None:
        """It has sampled a token; a negative one is none."""
        if token < 0 or not self.needs_tokens or self.error:
            return
        self._output.append(token)
        if self._matcher is not None and not self._matcher.consume_token(token):
            self._fail()

    @property
    def matcher(self) -> LLMatcher | None:
        """What knows the tokens that may come next, as long as somebody does."""
        return None if self.error else self._matcher

    def narrow(self, row: Bits, num_output: int) -> None:
        """Clear the bits of the tokens that must not come behind `num_output` others.

        `row` is what the matcher left, where there is one. When nobody knows any more (`error`), all bits are set.
        """
        if self._matcher is None or self.error:
            row[:] = self._possible
        elif self._matcher.is_error():
            self._fail()
            row[:] = self._possible
        if self._bad_words:
            _forbid(row, self._bad | bits_of(self._completions(), self.width))
        elif self._has_bad:
            _forbid(row, self._bad)
        if num_output < self._min_tokens:
            _forbid(row, self._ends)
        if self._keeps_on:
            _forbid(row, self._eos)

    def _completions(self) -> list[int]:
        """The tokens that would complete one of the bad words."""
        output = self._output
        return [word[-1] for word in self._bad_words if output[1 - len(word) :] == word[:-1]]

    def _fail(self) -> None:
        reason = self._matcher.get_error() if self._matcher is not None else ""
        self.error = f"the grammar cannot be followed any further: {reason.partition('<')[0].strip()[:200]}"


def fill(
    executor: LLExecutor, constraints: Sequence[tuple[int, Constraint]], num_output: NDArray[np.int64], bits: Bits
) -> None:
    """Set the bits [R, words] of what the R constrained rows of a step may sample.

    `constraints` has them by their row, num_output [S] is how many tokens every row of the step has sampled before. The
    executor's threads share the matchers: together they may take longer than a step of the model.
    """
    matchers = [(each.matcher, place) for place, (_, each) in enumerate(constraints) if each.matcher is not None]
    if len(matchers) == 1:
        fill_next_token_bitmask(matchers[0][0], bits, matchers[0][1])
    elif matchers:
        fill_next_token_bitmask_par(executor, matchers, bits)
    for place, (row, each) in enumerate(constraints):
        each.narrow(bits[place], int(num_output[row]))


class Constraints:
    """The constraints of all slots."""

    def __init__(self, grammars: Grammars, eos_token_ids: list[int], vocab_size: int) -> None:
        self._of_slot: dict[int, Constraint] = {}
        self.grammars = grammars
        self.executor = LLExecutor()
        self._eos_token_ids = eos_token_ids
        self._everything = bits_of(np.arange(vocab_size), -(-vocab_size // 32))

    def reset(self) -> None:
        """Forget all sequences and grammars."""
        self._of_slot.clear()
        self.grammars.reset()

    def advance(self, plan: Plan) -> None:
        """Let a plan's drops and admissions take effect."""
        for slot in plan.drop:
            self.drop(slot)
        for admit in plan.admit:
            self.admit(admit)

    def of_rows(self, slots: list[int]) -> list[tuple[int, Constraint]]:
        """Those of a step's sampling rows, which belong to these slots."""
        of_slot = self._of_slot
        return [(row, of_slot[slot]) for row, slot in enumerate(slots) if slot in of_slot] if of_slot else []

    def drop(self, slot: int) -> None:
        self._of_slot.pop(slot, None)

    def admit(self, admit: Admit) -> None:
        """Note what a sequence may sample. When that is not everything, `min_tokens` is kept to here."""
        self.drop(admit.slot)
        sampling = admit.sampling
        if admit.grammar < 0 and not sampling.allowed_ids and not sampling.bad_ids:
            return
        matcher = self.grammars.matcher(admit.grammar) if admit.grammar >= 0 else None
        if admit.grammar >= 0 and matcher is None:
            return  # nobody waits for it any more
        output = admit.token_ids[admit.output_start :]
        self._of_slot[admit.slot] = Constraint(sampling, matcher, output, self._everything, self._eos_token_ids)
        admit.sampling = replace(sampling, min_tokens=0)


def bits_of(token_ids: Sequence[int] | NDArray[np.int64], width: int) -> Bits:
    """The bits of these tokens, in `width` words."""
    flags = np.zeros(width * 32, dtype=np.bool_)
    flags[np.asarray(token_ids, dtype=np.int64)] = True
    return np.packbits(flags, bitorder="little").view("<i4")


def _rows(ids: Ids, counts: list[int]) -> list[list[int]]:
    """The rows that lie in `ids` one behind the other."""
    left = iter(ids)
    return [[next(left) for _ in range(count)] for count in counts]


def _forbid(row: Bits, tokens: Bits) -> None:
    """Clear the bits of some tokens, unless they are all that there is."""
    left = row & ~tokens
    if left.any():
        row[:] = left
