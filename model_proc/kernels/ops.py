"""The steps of a decoder layer, and their reference in plain PyTorch.

A layer is `add_linear(hidden, attention(norm_linear(hidden)))`, then `add_linear(hidden, norm_gate_up(hidden))`: the
residual stream goes in and out of each operation, so that norms, activations and sums can be part of the products.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


class Ops(Protocol):
    """T tokens; matrices are [out, in], norms [in], biases [out]. Norms accumulate in float32."""

    def embed(self, table: Tensor, token_ids: Tensor, scale: float) -> Tensor:
        """Rows of `table` [vocabulary, hidden], times `scale` -> [T, hidden]. The result may be written to."""
        ...

    def norm_linear(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        """weight · rms_norm(x) + bias: x [T, in] -> [T, out]."""
        ...

    def norm_gate_up(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        """silu(gate) * up of norm_linear; weight is [2 * out, in], gates first: x [T, in] -> [T, out]."""
        ...

    def add_linear(self, hidden: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """hidden + scale * (weight · x + bias): hidden [T, out], x [T, in] -> [T, out]. May overwrite `hidden`."""
        ...

    def logits(self, x: Tensor, norm: Tensor, eps: float, head: Tensor, vocab_size: int) -> Tensor:
        """head · rms_norm(x), for the whole vocabulary: x [S, in] -> [S, vocab_size]. May be written to."""
        ...


class TorchOps:
    """The Ops of plain PyTorch: the reference, and the way that runs everywhere."""

    def embed(self, table: Tensor, token_ids: Tensor, scale: float) -> Tensor:
        rows = table[token_ids]
        return rows if scale == 1.0 else rows * scale

    def norm_linear(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(rms_norm(x, norm, eps), weight, bias)

    def norm_gate_up(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        gate, up = linear(rms_norm(x, norm, eps), weight, bias).chunk(2, dim=-1)
        return silu(gate) * up

    def add_linear(self, hidden: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        return torch.add(hidden, linear(x, weight, bias), alpha=scale)

    def logits(self, x: Tensor, norm: Tensor, eps: float, head: Tensor, vocab_size: int) -> Tensor:
        return self.norm_linear(x, norm, eps, head, None)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019), accumulated in float32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight
