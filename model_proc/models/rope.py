"""Rotary position embeddings: the table of cosines and sines, in float32, for every scaling that the decoder knows.

Sources: Su et al., "RoFormer" (2021); linear interpolation, Chen et al. (2023); YaRN, Peng et al. (2023); Llama 3's
scaling, https://github.com/meta-llama/llama-models. `dynamic` changes nothing within the length that a model was made
for, and longer sequences are not served.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def rope_table(rope: dict[str, Any], head_dim: int, length: int, device: torch.device) -> Tensor:
    """[length, head_dim] float32: of each position, head_dim / 2 cosines and then as many sines."""
    frequencies, factor = _frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return (torch.cat([angles.cos(), angles.sin()], dim=1) * factor).to(device)


def rotate(x: Tensor, table_rows: Tensor) -> Tensor:
    """Turn heads by their positions: x [T, heads, head_dim], table_rows [T, head_dim] -> like x, in float32."""
    half = x.shape[-1] // 2
    cos, sin = table_rows[:, None, :half], table_rows[:, None, half:]
    first, second = x[..., :half].float(), x[..., half:].float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _frequencies(rope: dict[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """The angle that each pair of a head turns by a position, [head_dim / 2], and the scale of cosines and sines."""
    base = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return base / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(rope, base), 1.0
    if kind == "yarn":
        return _yarn(rope, base, head_dim)
    return base, 1.0


def _llama3(rope: dict[str, Any], base: Tensor) -> Tensor:
    """Slow frequencies are divided by the factor, fast ones kept, those between blended."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * base / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * base / rope["factor"] + keep * base


def _yarn(rope: dict[str, Any], base: Tensor, head_dim: int) -> tuple[Tensor, float]:
    factor, original = rope["factor"], rope["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    frequencies = base / factor * interpolated + base * (1 - interpolated)
    return frequencies, _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: dict[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)
