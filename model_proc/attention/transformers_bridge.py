"""Lets a `transformers` model attend through our paged cache.

`transformers` looks its attention functions up by name. Ours finds the step that is being computed in the keyword
arguments that the model passes down from its forward call, so nothing global is involved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from model_proc.attention.paged import AttentionParams, AttentionStep, HeadTransform, LayerShape

NAME = "quintet_paged"
STEP_KEYWORD = "quintet_step"


def paged_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that `transformers` calls: query [1, heads, T, dim] -> [1, T, heads, dim]."""
    if s_aux is not None:
        raise ValueError("this model uses attention sinks, which this engine does not support")
    step: AttentionStep = kwargs[STEP_KEYWORD]
    params = AttentionParams(
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    output = step(layer, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), params)
    return output[None], None


def register() -> None:
    """Make the name known to `transformers`. Masks are ours too: no function is registered to build one."""
    AttentionInterface.register(NAME, paged_attention_forward)


class ShapeProbe:
    """An AttentionStep that computes nothing: it notes what each layer would keep in the cache."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        params: AttentionParams,
        transform: HeadTransform | None = None,
    ) -> Tensor:
        self.layers[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2])
        return torch.zeros(query.shape[0], query.shape[1], value.shape[2], dtype=query.dtype, device=query.device)
