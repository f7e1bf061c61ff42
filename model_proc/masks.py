"""The tokens that a step's constrained rows may sample, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLExecutor
from numpy.typing import NDArray
from torch import Tensor

from model_proc.constraints import Constraint, fill
from model_proc.staging import upload


@dataclass(slots=True)
class Mask:
    """R rows of a step's logits, and which tokens they may sample."""

    rows: Tensor  # [R] int64
    bits: Tensor  # [R, ceil(vocabulary / 32)] int32: bit i of word w is token 32 * w + i

    def apply(self, logits: Tensor) -> None:
        """Make all other tokens of these rows impossible, in place. logits [S, vocabulary]"""
        places = torch.arange(32, dtype=torch.int32, device=logits.device)
        allowed = (self.bits[:, :, None] >> places) & 1
        forbidden = allowed.flatten(1)[:, : logits.shape[1]] == 0
        logits[self.rows] = logits[self.rows].masked_fill(forbidden, float("-inf"))


def make_mask(
    executor: LLExecutor,
    constraints: Sequence[tuple[int, Constraint]],
    num_output: NDArray[np.int64],
    device: torch.device,
) -> Mask:
    """The mask of a step; the arguments are those of `model_proc.constraints.fill`."""
    rows = np.array([row for row, _ in constraints], dtype=np.int64)
    # As in `staging`: PyTorch hands pinned memory out again only when the copies that read it have run.
    bits = torch.empty((len(rows), constraints[0][1].width), dtype=torch.int32, pin_memory=device.type == "cuda")
    fill(executor, constraints, num_output, bits.numpy())
    return Mask(upload((rows,), device)[0], bits.to(device, non_blocking=True))
