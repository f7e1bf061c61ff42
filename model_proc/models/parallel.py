"""One decoder shared by several ranks: each has some heads of every layer, some of its MLP, some of the vocabulary.

The products in front of attention and of the activation are split by rows, those behind by columns, so that a layer
needs two sums over the ranks and nothing else (Shoeybi et al., "Megatron-LM", 2019). Embedding and norms are whole on
every rank; the output layer is split when the ranks divide the vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ipc.process import FatalError
from model_proc.kernels.ops import Ops
from model_proc.models.settings import DecoderSettings
from model_proc.ranks import Ranks


def share_of(settings: DecoderSettings, size: int) -> DecoderSettings:
    """What one of `size` ranks computes. Raises FatalError when the ranks do not divide the model."""
    for count, what in (
        (settings.num_kv_heads, "key-value heads"),
        (settings.num_heads, "attention heads"),
        (settings.intermediate_size, "columns of its MLP"),
    ):
        if count % size:
            raise FatalError(
                f"--tensor-parallel-size {size}: the model has {count} {what}, which {size} does not divide"
            )
    return replace(
        settings,
        num_heads=settings.num_heads // size,
        num_kv_heads=settings.num_kv_heads // size,
        intermediate_size=settings.intermediate_size // size,
    )


class ParallelOps:
    """The Ops of one rank around those of its device."""

    def __init__(self, ops: Ops, ranks: Ranks) -> None:
        self._ops = ops
        self._ranks = ranks

    def embed(self, table: Tensor, token_ids: Tensor, scale: float) -> Tensor:
        return self._ops.embed(table, token_ids, scale)

    def norm_linear(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._ops.norm_linear(x, norm, eps, weight, bias)

    def norm_gate_up(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._ops.norm_gate_up(x, norm, eps, weight, bias)

    def add_linear(self, hidden: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        # Every rank has a part of the product. What it is added to, and the bias, are rank 0's part of the sum.
        if not self._ranks.is_first:
            hidden, bias = hidden.zero_(), None
        return self._ranks.sum(self._ops.add_linear(hidden, x, weight, bias, scale))

    def logits(self, x: Tensor, norm: Tensor, eps: float, head: Tensor, vocab_size: int) -> Tensor:
        part = self._ops.logits(x, norm, eps, head, vocab_size)
        return part if part.shape[1] == vocab_size else self._ranks.join_columns(part)
