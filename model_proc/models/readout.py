"""What a model computed for every token of a step, for those who want to know more than the next token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Readout:
    """One step of T tokens."""

    hidden: Tensor  # [T, hidden size] what the output layer is given: behind the last norm
    logits: Callable[[Tensor], Tensor]  # of some rows: [R] -> [R, vocabulary]
