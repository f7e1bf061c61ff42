"""The interface of attention backends, and the KV cache that they read and write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model_proc.batch import Batch, StepInputs


@dataclass(slots=True)
class LayerShape:
    """What one attention layer keeps of a token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int


class KVCache:
    """Keys and values of all layers, in blocks of `block_size` tokens.

    `keys[layer]` is [num_blocks * block_size, num_kv_heads, key_dim], `values[layer]` likewise: block b holds the rows
    from b * block_size on.
    """

    def __init__(
        self, layers: list[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        rows = num_blocks * block_size
        self.keys = [_zeros((rows, shape.num_kv_heads, shape.key_dim), dtype, device) for shape in layers]
        self.values = [_zeros((rows, shape.num_kv_heads, shape.value_dim), dtype, device) for shape in layers]

    @staticmethod
    def bytes_per_token(layers: list[LayerShape], dtype: torch.dtype) -> int:
        return sum(shape.num_kv_heads * (shape.key_dim + shape.value_dim) for shape in layers) * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not empty memory: rows that a mask hides are still multiplied by 0, and 0 * NaN is NaN."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy asks the system for zeroed pages, which cost nothing until they are used; torch.zeros writes them all.
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)


@dataclass(slots=True)
class AttentionParams:
    """How one layer attends."""

    scale: float
    sliding_window: int | None = None  # a token sees itself and this many tokens less one before it
    softcap: float | None = None


@dataclass(slots=True)
class HeadTransform:
    """What happens to each query and key head before attention: first an RMS norm, then a rotation by the position.

    It is part of the attention's interface because a kernel can do it on the way.
    """

    q_norm: Tensor | None  # [key_dim]; None: no norm
    k_norm: Tensor | None
    eps: float
    rope: Tensor | None  # [positions, key_dim] float32: key_dim / 2 cosines, then as many sines; None: no rotation


class AttentionStep(Protocol):
    """The attention of one step; made once, called once a layer."""

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        params: AttentionParams,
        transform: HeadTransform | None = None,
    ) -> Tensor:
        """Transform the heads, store the step's keys and values, then attend.

        query [T, num_heads, key_dim], key [T, num_kv_heads, key_dim], value [T, num_kv_heads, value_dim]
        -> [T, num_heads, value_dim]. Each token sees the tokens of its own sequence up to itself.
        """
        ...


class AttentionBackend(Protocol):
    """Makes the attention of a step from the step's inputs."""

    def step(self, cache: KVCache, batch: Batch, inputs: StepInputs) -> AttentionStep: ...
