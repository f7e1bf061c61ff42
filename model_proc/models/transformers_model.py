"""A model of `transformers` in the form that the runner computes with."""

from __future__ import annotations

import torch
from torch import Tensor

from model_proc.attention import transformers_bridge
from model_proc.attention.paged import AttentionStep, LayerShape
from model_proc.models.readout import Readout


class TransformersModel:
    """Any decoder-only model that `transformers` knows, its attention replaced by ours."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device

    @property
    def layers(self) -> list[LayerShape]:
        """What each layer keeps in the KV cache, found by sending one token through the model."""
        probe = transformers_bridge.ShapeProbe()
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            self.forward(zero, zero, zero, probe)
        return [probe.layers[layer] for layer in sorted(probe.layers)]

    def forward(self, token_ids: Tensor, positions: Tensor, sample_rows: Tensor | None, step: AttentionStep) -> Tensor:
        """As Decoder.forward: the logits of `sample_rows`, or of every token."""
        output = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=0 if sample_rows is None else sample_rows,
            **{transformers_bridge.STEP_KEYWORD: step},
        )
        return output.logits[0]

    def read(self, token_ids: Tensor, positions: Tensor, step: AttentionStep) -> Readout:
        """As Decoder.read. The logits of all tokens are made: what happens to them behind the output layer, such as
        scaling or capping, differs from model to model."""
        kept: list[Tensor] = []
        base = self._model.get_submodule(self._model.base_model_prefix)  # type: ignore[arg-type]
        handle = base.register_forward_hook(lambda _module, _args, output: kept.append(output[0]))
        try:
            logits = self.forward(token_ids, positions, None, step)
        finally:
            handle.remove()
        return Readout(kept[0][0], lambda rows: logits[rows])
