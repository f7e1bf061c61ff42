"""From logits to tokens, for a whole batch at once.

The order is: penalties, logit_bias, forbidden tokens and constraints on the logits; then temperature; then top_k, top_p
and min_p on the probabilities; then one draw. What a row draws depends on its own parameters alone, never on its
neighbours.

A draw is the inverse of the cumulative distribution in the order of the vocabulary. Truncation only sets a threshold
below which probabilities count as zero, so ties survive it, and truncated and plain rows take the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipc.messages import Admit, Sampling
from model_proc.masks import Mask
from model_proc.random_numbers import seed_states, uniform
from model_proc.staging import download, upload

# Truncation first looks at this many most likely tokens; only a flatter distribution is sorted whole.
NUM_CANDIDATES = 256

# What is above 0 must stay so in 32 bits: a temperature or top_p that became 0 would leave no token to draw.
SMALLEST = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)

NOT_A_NUMBER = "the model's output is not a number"
"""What a client hears when there is nothing to sample from."""


@dataclass(slots=True)
class Sampled:
    """What one step sampled; S rows, on the device."""

    token_ids: Tensor  # [S] int64; -1 where the model's logits were not numbers
    logprob_ids: Tensor | None  # [S, 1 + K] the chosen token, then the K most likely ones
    logprob_values: Tensor | None  # [S, 1 + K] natural logarithms

    def to_host(self) -> Sampled:
        """The same on the host, once an event recorded after this call has happened."""
        columns = (self.token_ids, self.logprob_ids, self.logprob_values)
        return Sampled(*(None if column is None else download(column) for column in columns))  # type: ignore[arg-type]


@dataclass(slots=True)
class Draws:
    """What rows without penalties or truncation draw with, [S] each; a temperature of 0 is greedy."""

    temperatures: NDArray[np.float32]
    numbers: NDArray[np.float32]  # uniform in [0, 1)


class Sampler:
    """Samples tokens; keeps the token counts that penalties need, one row a slot.

    Rows that draw plainly (greedy, or by temperature alone) need none of this file's work on the logits; `is_plain`,
    `temperatures` and `uniform_numbers` are what a kernel needs for them.
    """

    def __init__(
        self, max_num_seqs: int, vocab_size: int, eos_token_ids: list[int], device: torch.device,
        has_kernels: bool = False,
    ) -> None:  # fmt: skip
        self._device = device
        self._has_kernels = has_kernels  # of our own, by Triton
        self._shape = (max_num_seqs, vocab_size)
        self._eos_token_ids = eos_token_ids
        self._in_prompt = torch.zeros(self._shape, dtype=torch.bool, device=device)  # [slots, vocabulary]
        self._in_output = torch.zeros(self._shape, dtype=torch.int32, device=device)  # how often
        self.temperatures = np.zeros(max_num_seqs, dtype=np.float32)
        self._states = np.zeros(max_num_seqs, dtype=np.uint64)
        self._plain = np.zeros(max_num_seqs, dtype=np.bool_)

    def is_plain(self, slots: NDArray[np.int64]) -> bool:
        """Whether none of these slots wants more than a greedy choice or a draw by temperature."""
        return bool(self._plain[slots].all())

    def uniform_numbers(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """The random numbers that the tokens at these positions are drawn with."""
        return uniform(self._states[slots], positions)

    def admit(self, admit: Admit) -> None:
        """Note how a sequence samples, and count the tokens of one that wants penalties."""
        slot, params = admit.slot, admit.sampling
        self.temperatures[slot] = max(params.temperature, SMALLEST) if params.temperature > 0 else 0.0
        self._states[slot] = seed_states(np.array([params.seed], dtype=np.int64))[0]
        self._plain[slot] = not (params.logprobs >= 0 or _truncates(params) or _is_adjusted(params))
        if not _has_penalties(admit.sampling):
            return
        ids = np.frombuffer(admit.token_ids.tobytes(), dtype=np.int32)
        prompt, output = upload((ids[: admit.output_start], ids[admit.output_start :]), self._device)
        self._in_prompt[slot].zero_().index_fill_(0, prompt, True)
        self._in_output[slot].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def sample(
        self,
        logits: Tensor,
        sampling: list[Sampling],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        num_output: NDArray[np.int64],
        mask: Mask | None = None,
    ) -> Sampled:
        """Choose the next token of S sequences.

        logits [S, vocabulary]; slots, positions (of the token to sample) and num_output (tokens sampled before it)
        are [S]. Log-probabilities are the model's own, whatever `mask` leaves of them. When it raises, it has changed
        nothing, its arguments included, so that it can be asked again for some of the rows.
        """
        changes = mask is not None or any(_is_adjusted(params) for params in sampling)
        logits = logits.to(torch.float32, copy=changes)
        wanted = max(params.logprobs for params in sampling)
        raw_logprobs = torch.log_softmax(logits, dim=-1) if wanted >= 0 else None
        logits = self._adjust(logits, sampling, slots, num_output)
        if mask is not None:
            mask.apply(logits)
        best = logits.max(dim=-1)
        token_ids = best.indices
        drawn = [row for row, params in enumerate(sampling) if params.temperature > 0]
        if drawn:
            rows = self._indices(drawn)
            chosen = [sampling[row] for row in drawn]
            seeds = np.array([params.seed for params in chosen], dtype=np.int64)
            numbers = self._column(uniform(seed_states(seeds), positions[drawn]))[:, 0]
            token_ids[rows] = self._draw(logits[rows], chosen, numbers)
        finite = torch.isfinite(best.values)
        # A draw from what is not a number can be any number; the next step may read it before anyone looks.
        token_ids = token_ids.masked_fill(~finite, 0)
        ids = values = None
        if raw_logprobs is not None:
            top = raw_logprobs.topk(wanted, dim=-1)
            ids = torch.cat([token_ids[:, None], top.indices], dim=1)
            values = torch.cat([raw_logprobs.gather(1, token_ids[:, None]), top.values], dim=1)
        self._count(token_ids, sampling, slots)
        return Sampled(token_ids.masked_fill(~finite, -1), ids, values)

    def _adjust(
        self, logits: Tensor, sampling: list[Sampling], slots: NDArray[np.int64], num_output: NDArray[np.int64]
    ) -> Tensor:
        """Penalties, logit_bias, and no end of sequence before min_tokens; in place, where there are any."""
        penalized = [row for row, params in enumerate(sampling) if _has_penalties(params)]
        if penalized:
            rows = self._indices(penalized)
            logits[rows] = self._penalize(logits[rows], [sampling[row] for row in penalized], slots[penalized])
        rows_of: list[int] = []
        ids: list[int] = []
        bias: list[float] = []
        for row, params in enumerate(sampling):
            rows_of += [row] * len(params.bias_ids)
            ids += params.bias_ids
            bias += params.bias_values
            if num_output[row] < params.min_tokens:
                forbidden = [*params.stop_token_ids, *self._eos_token_ids]
                rows_of += [row] * len(forbidden)
                ids += forbidden
                bias += [float("-inf")] * len(forbidden)
        if ids:
            index = (self._indices(rows_of), self._indices(ids))
            logits.index_put_(index, self._column(bias)[:, 0], accumulate=True)
        return logits

    def _penalize(self, logits: Tensor, sampling: list[Sampling], slots: NDArray[np.int64]) -> Tensor:
        """Repetition penalty as in CTRL (Keskar et al., 2019), over prompt and output; OpenAI's two over output."""
        index = upload((slots,), self._device)[0]
        counts = self._in_output[index]
        repetition = self._column([max(params.repetition_penalty, SMALLEST) for params in sampling])
        presence = self._column([params.presence_penalty for params in sampling])
        frequency = self._column([params.frequency_penalty for params in sampling])
        seen = self._in_prompt[index] | (counts > 0)
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        # A penalty may be as small or large as it likes: that does not make the model's output infinite.
        logits = torch.where(seen, repeated.clamp(-LARGEST, LARGEST), logits)
        return logits - presence * (counts > 0) - frequency * counts

    def _draw(self, logits: Tensor, sampling: list[Sampling], numbers: Tensor) -> Tensor:
        """One token of each row; `numbers` [S] are uniform in [0, 1)."""
        temperature = self._column([max(params.temperature, SMALLEST) for params in sampling])
        # Subtracting the maximum first keeps a tiny temperature from overflowing.
        probs = torch.softmax((logits - logits.max(dim=-1, keepdim=True).values) / temperature, dim=-1)
        truncated = [row for row, params in enumerate(sampling) if _truncates(params)]
        if truncated:
            rows = self._indices(truncated)
            chosen = [sampling[row] for row in truncated]
            kept = probs[rows]
            probs[rows] = kept.masked_fill(kept < self._threshold(kept, chosen), 0.0)
        cumulative = probs.cumsum(dim=-1)
        total = cumulative[:, -1:]
        # Rounding must not let the target reach the total, behind which there is no token.
        target = torch.minimum(numbers[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(cumulative, target, right=True)[:, 0]

    def _threshold(self, probs: Tensor, sampling: list[Sampling]) -> Tensor:
        """[S, 1]: the smallest probability that survives top_k, then top_p of what is left, and min_p."""
        vocab_size = probs.shape[1]
        limits = [params.top_k if params.top_k > 0 else vocab_size for params in sampling]
        top_k = self._indices(limits).clamp(max=vocab_size)[:, None]
        top_p = self._column([max(params.top_p, SMALLEST) for params in sampling])
        min_p = self._column([params.min_p for params in sampling])
        if self._has_kernels:
            from model_proc.kernels.truncation_kernel import thresholds

            return thresholds(probs, top_k, top_p, min_p)
        ordered = probs.topk(min(NUM_CANDIDATES, vocab_size), dim=-1).values
        threshold = _rank_threshold(ordered, top_k, top_p, vocab_size)
        if max(limits) <= ordered.shape[1]:
            return torch.maximum(threshold, min_p * ordered[:, :1])
        # Whether the candidates were enough is a question to the device: where there are kernels, nobody waits for it.
        covered = (top_k == vocab_size) & ((top_p >= 1.0) | (ordered.sum(dim=-1, keepdim=True) >= top_p))
        flat = ~(covered | (top_k <= ordered.shape[1]))[:, 0]
        if bool(flat.any()):
            whole = probs[flat].sort(dim=-1, descending=True).values
            threshold[flat] = _rank_threshold(whole, top_k[flat], top_p[flat], vocab_size)
        return torch.maximum(threshold, min_p * ordered[:, :1])

    def _count(self, token_ids: Tensor, sampling: list[Sampling], slots: NDArray[np.int64]) -> None:
        """Remember what was sampled for those who pay for repeating it."""
        rows = [row for row, params in enumerate(sampling) if _has_penalties(params)]
        if rows:
            index = upload((slots[rows],), self._device)[0]
            chosen = token_ids[self._indices(rows)]
            self._in_output[index, chosen] += 1

    def _column(self, values: Sequence[float] | NDArray[np.float32]) -> Tensor:
        bits = np.array(values, dtype=np.float32).view(np.int32)
        return upload((bits,), self._device, torch.int32)[0].view(torch.float32)[:, None]

    def _indices(self, values: list[int]) -> Tensor:
        return upload((np.array(values, dtype=np.int64),), self._device)[0]


def _rank_threshold(ordered: Tensor, top_k: Tensor, top_p: Tensor, vocab_size: int) -> Tensor:
    """[S, 1]: the smallest probability within top_k and top_p; 0 where neither cuts. `ordered` falls along a row."""
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    within_k = ordered * (rank < top_k)
    # Without top_k the whole mass is 1, whether or not the tail is among the ordered ones.
    mass = torch.where(top_k < vocab_size, within_k.sum(dim=-1, keepdim=True), 1.0)
    before = within_k.cumsum(dim=-1) - within_k
    kept = (rank < top_k) & (before < top_p * mass)
    smallest = ordered.masked_fill(~kept, float("inf")).min(dim=-1, keepdim=True).values
    return torch.where((top_k < vocab_size) | (top_p < 1.0), smallest, 0.0)


def _has_penalties(params: Sampling) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _is_adjusted(params: Sampling) -> bool:
    return bool(params.bias_ids or params.min_tokens) or _has_penalties(params)


def _truncates(params: Sampling) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
