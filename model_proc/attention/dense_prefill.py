"""Whole long prompts through cuDNN's attention, which is faster there than a kernel that reads a paged cache.

cuDNN makes a plan for every new shape, which takes tens of milliseconds. So prompts are padded to a few lengths and
computed in groups of a few sizes, and the plans are made when the server starts. Under a causal mask, padding behind a
prompt changes nothing of the prompt.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from model_proc.attention.paged import AttentionParams, LayerShape

LENGTH_STEP = 512
MIN_LENGTH, MAX_LENGTH = 1024, 8192
MIN_FILL = 0.9  # of a padded prompt; the work grows with the square of its length
GROUP_SIZES = (8, 4, 2, 1)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are computed in one call: rows `start` to `start + count * length` of the dense tensors."""

    start: int
    count: int
    length: int  # padded


def group_prompts(lengths: NDArray[np.int64]) -> tuple[list[Group], list[tuple[int, int]]]:
    """Which whole prompts are computed densely: the groups, and of each such prompt its index and its first row."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths.tolist()):
        padded = -(-length // LENGTH_STEP) * LENGTH_STEP
        if MIN_LENGTH <= padded <= MAX_LENGTH and length >= MIN_FILL * padded:
            by_length[padded].append(index)
    groups: list[Group] = []
    places: list[tuple[int, int]] = []
    start = 0
    for padded, members in by_length.items():
        while members:
            size = next(size for size in GROUP_SIZES if size <= len(members))
            groups.append(Group(start, size, padded))
            places += [(index, start + number * padded) for number, index in enumerate(members[:size])]
            members = members[size:]
            start += size * padded
    return groups, places


def attend_densely(query: Tensor, key: Tensor, value: Tensor, groups: list[Group], params: AttentionParams) -> Tensor:
    """Causal attention of every group: query [rows, heads, dim], key and value [rows, kv_heads, dim] -> like query."""
    outputs = []
    for group in groups:
        rows = slice(group.start, group.start + group.count * group.length)
        q, k, v = (
            tensor[rows].view(group.count, group.length, *tensor.shape[1:]).transpose(1, 2)
            for tensor in (query, key, value)
        )
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=params.scale, enable_gqa=True)
        outputs.append(out.transpose(1, 2).reshape(-1, *query.shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def make_plans(
    heads: int, shape: LayerShape, scale: float, longest: int, budget: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Make cuDNN's plans for all groups that a step of `budget` tokens can hold. Returns whether it computes them."""
    if dtype == torch.float32 or shape.key_dim > 128 or device.type != "cuda":
        return False
    for length in range(MIN_LENGTH, min(longest, MAX_LENGTH) + LENGTH_STEP - 1, LENGTH_STEP):
        for size in GROUP_SIZES:
            rows = size * length
            if rows * MIN_FILL > budget:
                continue
            query = torch.zeros((rows, heads, shape.key_dim), dtype=dtype, device=device)
            key = torch.zeros((rows, shape.num_kv_heads, shape.key_dim), dtype=dtype, device=device)
            try:
                attend_densely(query, key, key, [Group(0, size, length)], AttentionParams(scale))
            except RuntimeError as error:
                log.info("cuDNN's attention is not used: %s", str(error).splitlines()[0])
                return False
    return True
