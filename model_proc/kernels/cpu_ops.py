"""The Ops of a CPU on our own kernels: activations are float32, matrices are packed, of any number of bits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model_proc.kernels.cpu_library import CpuLibrary


class CpuOps:
    """Matrices are PackedMatrix; norms and biases are float32.

    `quantizes` lets products with codes quantize their activations to 8 bits, in blocks as the weights are: integer
    products are several times as fast. The bits of a row's result depend on that row alone, whatever the batch.
    """

    def __init__(self, library: CpuLibrary, quantizes: bool) -> None:
        self._library = library
        self._quantizes = quantizes

    def embed(self, table: Any, token_ids: Tensor, scale: float) -> Tensor:
        return self._library.rows(table, token_ids, scale)

    def norm_linear(self, x: Tensor, norm: Tensor, eps: float, weight: Any, bias: Tensor | None) -> Tensor:
        return self._library.linear(weight, x, bias, self._quantizes and weight.bits <= 8, norm, eps)

    def norm_gate_up(self, x: Tensor, norm: Tensor, eps: float, weight: Any, bias: Tensor | None) -> Tensor:
        return self._library.linear(weight, x, bias, self._quantizes and weight.bits <= 8, norm, eps, gated=True)

    def add_linear(self, hidden: Tensor, x: Tensor, weight: Any, bias: Tensor | None, scale: float) -> Tensor:
        quantize = self._quantizes and weight.bits <= 8
        return self._library.linear(weight, x, bias, quantize, added_to=hidden, scale=scale)

    def logits(self, x: Tensor, norm: Tensor, eps: float, head: Any, vocab_size: int) -> Tensor:
        return self.norm_linear(x, norm, eps, head, None)
