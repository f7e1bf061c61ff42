"""A step on its way through the runner, from its launch to its result."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ipc.messages import Plan, Sampling
from model_proc.batch import StepInputs
from model_proc.constraints import Constraint
from model_proc.prompt_reader import Read
from model_proc.sampler import Draws, Sampled


@dataclass(slots=True)
class Forward:
    """What sampling goes on from."""

    logits: Tensor  # [S, vocabulary]
    size: int | None  # of the graphs that it ran in
    draws: Draws | None  # there when all rows draw plainly


@dataclass(slots=True)
class Launched:
    """A step in flight: first its forward pass is launched, then its sampling."""

    plan: Plan
    inputs: StepInputs
    slots: list[int]  # of the sequences that sample
    sampling: list[Sampling]  # theirs
    constraints: list[tuple[int, Constraint]]  # those of them whose tokens are constrained, by row
    started_ns: int
    forward: Forward | None = None  # the forward pass whose logits are still to be sampled from
    sampled: Sampled | None = None  # on the host once `done` has happened; None when nobody samples, or another rank
    read: Read | None = None  # likewise: what was read of prompts
    done: torch.cuda.Event | None = None  # None on a CPU, where `launch` has done the work
    errors: dict[int, str] = field(default_factory=dict)  # why single slots failed
    error: str = ""  # why the whole step failed, "" when it did not
    ran_out: bool = False  # of memory
    is_known: bool = False  # its tokens were waited for, and have reached the constraints

    @property
    def needs_tokens(self) -> bool:
        """Whether its sampling depends on what the steps before it have sampled."""
        return any(constraint.needs_tokens for _, constraint in self.constraints)
