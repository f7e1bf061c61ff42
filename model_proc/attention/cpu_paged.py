"""Paged attention on a CPU: our own kernel reads keys and values where they lie, in the cache's blocks."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from model_proc.attention.paged import AttentionParams, HeadTransform, KVCache
from model_proc.batch import Batch, StepInputs
from model_proc.kernels.cpu_library import CpuLibrary, LayerStruct, StepStruct

LANES = 16  # keys, and dimensions, that the kernel takes at once
CACHE_DTYPES = (torch.float32, torch.bfloat16)


def unsupported(head_dim: int, block_size: int, dtype: torch.dtype) -> str | None:
    """What the kernel cannot do of this, if anything."""
    if dtype not in CACHE_DTYPES:
        return f"a KV cache of {str(dtype).removeprefix('torch.')}"
    if block_size % LANES:
        return f"blocks of {block_size} tokens, which is no multiple of {LANES}"
    if head_dim % LANES:
        return f"heads of {head_dim} dimensions, which is no multiple of {LANES}"
    return None


class CpuAttention:
    """The AttentionBackend of this file. It lays out the blocks of the cache in its own way."""

    def __init__(self, library: CpuLibrary) -> None:
        self._library = library
        self._layers: dict[int, LayerStruct] = {}

    def step(self, cache: KVCache, batch: Batch, inputs: StepInputs) -> CpuAttentionStep:
        return CpuAttentionStep(self._library, self._layers, cache, batch, inputs)


class CpuAttentionStep:
    """The AttentionStep of this file."""

    def __init__(
        self, library: CpuLibrary, layers: dict[int, LayerStruct], cache: KVCache, batch: Batch, inputs: StepInputs
    ) -> None:
        self._library = library
        self._layers = layers
        self._cache = cache
        # The kernel reads these while this object lives.
        self._arrays = (
            np.ascontiguousarray(inputs.positions), batch.cache_rows(inputs), np.ascontiguousarray(inputs.query_lens),
            np.ascontiguousarray(inputs.slots), batch.block_table,
        )  # fmt: skip
        positions, cache_rows, query_lens, slots, table = (array.ctypes.data for array in self._arrays)
        self._step = StepStruct(
            len(inputs.positions), len(inputs.slots), positions, cache_rows, query_lens, slots, table,
            batch.block_table.shape[1],
        )  # fmt: skip

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        params: AttentionParams,
        transform: HeadTransform | None = None,
    ) -> Tensor:
        struct = self._layers.get(layer)
        if struct is None:
            struct = self._layers[layer] = self._layer(layer, query, key, params, transform)
        return self._library.attend(struct, self._step, query, key, value)

    def _layer(
        self, layer: int, query: Tensor, key: Tensor, params: AttentionParams, transform: HeadTransform | None
    ) -> LayerStruct:
        """What stays the same from step to step; made at a layer's first one."""
        if params.softcap:
            raise ValueError("the CPU kernel knows no softcap")
        keys, values = self._cache.keys[layer], self._cache.values[layer]

        def address(tensor: Tensor | None) -> ctypes.c_void_p | None:
            return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())

        t = transform or HeadTransform(None, None, 0.0, None)
        return LayerStruct(
            query.shape[1], key.shape[1], query.shape[2], self._cache.block_size, params.sliding_window or 0,
            params.scale, t.eps, address(t.q_norm), address(t.k_norm), address(t.rope), address(keys), address(values),
            keys.itemsize,
        )  # fmt: skip
