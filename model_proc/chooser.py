"""From a step's logits to its tokens, along the shortest way that its rows allow; and row by row when that fails."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ipc import faults
from model_proc.batch import Batch
from model_proc.constraints import Constraints
from model_proc.device import is_out_of_memory
from model_proc.launched import Forward, Launched
from model_proc.masks import Mask, make_mask
from model_proc.sampler import Sampled, Sampler
from model_proc.staging import upload

if TYPE_CHECKING:
    # Not at run time: it needs Triton.
    from model_proc.graphs import DecodeGraphs

log = logging.getLogger(__name__)


class Chooser:
    """Chooses the tokens of steps, and notes them in the batch, where the next step finds them."""

    def __init__(
        self, batch: Batch, sampler: Sampler, graphs: DecodeGraphs | None, constraints: Constraints | None,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._batch = batch
        self._sampler = sampler
        self._graphs = graphs
        self._constraints = constraints
        self._device = device

    def choose(self, step: Launched, forward: Forward) -> Sampled:
        """The tokens of a step whose constraints know all tokens before it.

        A row that cannot be sampled gets -1 and its reason in `step.errors`; the others are not touched by it. Raises
        only what running out of memory raises.
        """
        if faults.armed and faults.at("sampling"):
            step.sampling[0] = replace(step.sampling[0], temperature=cast(Any, "spoiled"))
        try:
            return self._choose_together(step, forward)
        except Exception as failure:
            if is_out_of_memory(failure):
                raise
            log.warning("the sampling of step %d failed; now row by row", step.plan.step, exc_info=True)
        return self._choose_one_by_one(step, forward.logits)

    def _choose_together(self, step: Launched, forward: Forward) -> Sampled:
        mask = self._mask(step, 0, len(step.slots)) if step.constraints else None
        if forward.draws is None:
            return self._sample(step, forward.logits, 0, len(step.slots), mask)
        if mask is not None:
            mask.apply(forward.logits)
        if self._graphs and forward.size is not None:
            return Sampled(self._graphs.sample(forward.size, len(step.slots)), None, None)
        from model_proc.kernels.sampling_kernels import sample_plain

        device_slots = upload((step.inputs.sample_slots,), self._device)[0]
        columns = (forward.draws.temperatures.view(np.int32), forward.draws.numbers.view(np.int32))
        heat, number = (bits.view(torch.float32) for bits in upload(columns, self._device, torch.int32))
        token_ids = sample_plain(forward.logits, heat, number, device_slots, self._batch.last_token)
        return Sampled(token_ids, None, None)

    def _choose_one_by_one(self, step: Launched, logits: Tensor) -> Sampled:
        rows: list[Sampled] = []
        for row, slot in enumerate(step.slots):
            try:
                mask = self._mask(step, row, row + 1)
                rows.append(self._sample(step, logits[row : row + 1], row, row + 1, mask))
            except Exception as failure:
                if is_out_of_memory(failure):
                    raise
                log.warning("slot %d cannot be sampled", slot, exc_info=True)
                step.errors[slot] = f"the sampling of this request failed: {type(failure).__name__}"
                rows.append(Sampled(torch.full((1,), -1, dtype=torch.int64, device=self._device), None, None))
        return _stack(rows)

    def _sample(self, step: Launched, logits: Tensor, start: int, end: int, mask: Mask | None) -> Sampled:
        """Sample the rows from `start` to `end` of a step; the logits [S, vocabulary] and the mask are theirs alone."""
        slots, positions = step.inputs.sample_slots[start:end], step.inputs.sample_positions[start:end]
        num_output = positions - self._batch.output_start[slots]
        sampled = self._sampler.sample(logits, step.sampling[start:end], slots, positions, num_output, mask)
        self._batch.last_token[upload((slots,), self._device)[0]] = sampled.token_ids.clamp(min=0)
        return sampled

    def _mask(self, step: Launched, start: int, end: int) -> Mask | None:
        """What the constrained ones of these rows may sample; None when there are none."""
        constraints = [(row - start, constraint) for row, constraint in step.constraints if start <= row < end]
        if not constraints or self._constraints is None:
            return None
        slots = step.inputs.sample_slots[start:end]
        num_output = step.inputs.sample_positions[start:end] - self._batch.output_start[slots]
        return make_mask(self._constraints.executor, constraints, num_output, self._device)


def _stack(rows: list[Sampled]) -> Sampled:
    """Rows that were sampled one by one, some of them with log-probabilities, as if together."""
    token_ids = torch.cat([row.token_ids for row in rows])
    width = max(0 if row.logprob_ids is None else row.logprob_ids.shape[1] for row in rows)
    if not width:
        return Sampled(token_ids, None, None)
    ids = token_ids.new_zeros(len(rows), width)
    values = torch.zeros(len(rows), width, device=token_ids.device)
    for place, row in enumerate(rows):
        if row.logprob_ids is not None and row.logprob_values is not None:
            ids[place, : row.logprob_ids.shape[1]] = row.logprob_ids[0]
            values[place, : row.logprob_values.shape[1]] = row.logprob_values[0]
    return Sampled(token_ids, ids, values)
