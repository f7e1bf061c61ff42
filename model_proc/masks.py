"""The tokens that a step's constrained rows may sample, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_proc.constraints import Constraint
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


def fill_mask(
    constraints: Sequence[tuple[int, Constraint]], num_output: NDArray[np.int64], device: torch.device
) -> Mask:
    """The mask of a step: `constraints` by row, num_output [S] tokens sampled before this one."""
    rows = np.array([row for row, _ in constraints], dtype=np.int64)
    # As in `staging`: PyTorch hands pinned memory out again only when the copies that read it have run.
    bits = torch.empty((len(rows), constraints[0][1].width), dtype=torch.int32, pin_memory=device.type == "cuda")
    filled = bits.numpy()
    for place, (row, constraint) in enumerate(constraints):
        constraint.fill(filled[place], int(num_output[row]))
    return Mask(upload((rows,), device)[0], bits.to(device, non_blocking=True))
