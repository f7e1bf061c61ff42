"""Weights as codes in blocks of 32: made from floats, or taken from GGUF's blocks as they are.

A weight is scale * code + minimum. With four bits, codes go from 0 to 15 and a block has a scale and a minimum; with
eight, from -127 to 127, and the minimum is 0. Scales and minima are float16, as in GGUF.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32
GGUF_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""The types of GGUF whose blocks are codes in this sense."""


@dataclass(slots=True)
class Codes:
    """A matrix [rows, columns] as codes."""

    bits: int  # 4 or 8
    codes: Tensor  # [rows, columns]: uint8 of four bits, int8 of eight
    scales: Tensor  # [rows, columns / 32] float16
    minima: Tensor  # as scales; empty with eight bits

    def floats(self) -> Tensor:
        """The weights [rows, columns] as float32."""
        blocks = self.codes.float().view(len(self.codes), -1, BLOCK) * self.scales.float()[:, :, None]
        if self.bits == 4:
            blocks += self.minima.float()[:, :, None]
        return blocks.flatten(1)


def join(parts: list[Codes]) -> Codes:
    """Matrices one below the other. They have equally many bits and columns."""
    fields = ((part.codes, part.scales, part.minima) for part in parts)
    return Codes(parts[0].bits, *(torch.cat(tensors) for tensors in zip(*fields, strict=True)))


def quantize(weights: Tensor, bits: int) -> Codes:
    """The nearest codes for weights [rows, columns]: between a block's extremes, or symmetric around 0 with 8 bits."""
    blocks = weights.float().view(len(weights), -1, BLOCK)
    if bits == 8:
        scales = (blocks.abs().amax(dim=2) / 127).half()
        codes = _codes(blocks, scales, torch.zeros_like(scales), -127, 127).to(torch.int8)
        return Codes(8, codes, scales, scales.new_empty(0))
    minima = blocks.amin(dim=2).half()
    scales = ((blocks.amax(dim=2) - minima.float()) / 15).half()
    return Codes(4, _codes(blocks, scales, minima, 0, 15).to(torch.uint8), scales, minima)


def _codes(blocks: Tensor, scales: Tensor, minima: Tensor, low: int, high: int) -> Tensor:
    wide = scales.float()[:, :, None]
    codes = (blocks - minima.float()[:, :, None]) / torch.where(wide == 0, 1.0, wide)
    return codes.round_().clamp_(low, high).flatten(1)


def from_gguf(rows: Tensor, kind: str) -> Codes:
    """The codes in rows of GGUF blocks, uint8 [rows, bytes of a row]; `kind` is a key of GGUF_BITS.

    Source: https://github.com/ggml-org/ggml, ggml-common.h. A block starts with its scale (then the minimum, in Q4_1)
    as float16; of 4-bit codes, the first 16 are the lower halves of the bytes, the others the upper halves.
    """
    header = 4 if kind == "Q4_1" else 2
    blocks = rows.view(len(rows), -1, header + BLOCK * GGUF_BITS[kind] // 8)
    numbers = blocks[:, :, :header].contiguous().view(torch.float16)
    scales, packed = numbers[:, :, 0], blocks[:, :, header:]
    if kind == "Q8_0":
        return Codes(8, packed.contiguous().view(torch.int8).flatten(1), scales, scales.new_empty(0))
    codes = torch.cat([packed & 15, packed >> 4], dim=2).flatten(1)
    return Codes(4, codes, scales, numbers[:, :, 1] if kind == "Q4_1" else -8 * scales)
