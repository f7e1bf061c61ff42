"""The Ops of a GPU: kernels of our own around cuBLAS, and instead of it where a step has one token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from model_proc.kernels.linear_kernels import embed_rows, gate_rows, matvec, norm_rows


class TritonOps:
    """The Ops with Triton kernels. `pdl`: kernels for one token overlap their starts (Hopper and later)."""

    def __init__(self, pdl: bool = False) -> None:
        self._pdl = pdl

    def embed(self, table: Tensor, token_ids: Tensor, scale: float) -> Tensor:
        return embed_rows(table, token_ids, scale)

    def norm_linear(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] == 1:
            return matvec(x, weight, norm, eps, bias, pdl=self._pdl)
        return linear(norm_rows(x, norm, eps, self._pdl), weight, bias)

    def norm_gate_up(self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] == 1:
            return matvec(x, weight, norm, eps, bias, gated=True, pdl=self._pdl)
        return gate_rows(linear(norm_rows(x, norm, eps, self._pdl), weight, bias), self._pdl)

    def add_linear(self, hidden: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        if x.shape[0] == 1:
            return matvec(x, weight, bias=bias, hidden=hidden, scale=scale, pdl=self._pdl)
        # The product's own epilogue adds to what is there, in place.
        if bias is not None:
            hidden.add_(bias, alpha=scale)
        return torch.addmm(hidden, x, weight.t(), alpha=scale, out=hidden)

    def logits(self, x: Tensor, norm: Tensor, eps: float, head: Tensor, vocab_size: int) -> Tensor:
        return self.norm_linear(x, norm, eps, head, None)
