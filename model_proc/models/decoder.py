"""The decoder of the Llama family and its kin, computed from merged weights."""

from __future__ import annotations

import torch
from torch import Tensor

from model_proc.attention.paged import AttentionParams, AttentionStep, HeadTransform, LayerShape
from model_proc.kernels.ops import Ops, rms_norm
from model_proc.models.loader import DecoderWeights
from model_proc.models.readout import Readout
from model_proc.models.rope import rope_table
from model_proc.models.settings import DecoderSettings


class Decoder:
    """One model, or a rank's share of one: settings, weights, and the operations that compute with them."""

    def __init__(self, settings: DecoderSettings, weights: DecoderWeights, ops: Ops, max_model_len: int) -> None:
        self.settings = settings
        self.weights = weights
        self.ops = ops
        s = settings
        device = weights.norm.device
        table = rope_table(s.rope, s.head_dim, max_model_len, device)
        self._params = [AttentionParams(s.attention_scale, window) for window in s.windows]
        self._transforms = [
            HeadTransform(layer.q_norm, layer.k_norm, s.norm_eps, table if rotates else None)
            for layer, rotates in zip(weights.layers, s.rotates, strict=True)
        ]

    @property
    def layers(self) -> list[LayerShape]:
        """What each layer keeps in the KV cache."""
        s = self.settings
        return [LayerShape(s.num_kv_heads, s.head_dim, s.head_dim)] * s.num_layers

    @property
    def attends_plainly(self) -> bool:
        """Whether every layer sees all tokens in front of it."""
        return not any(self.settings.windows)

    def forward(self, token_ids: Tensor, positions: Tensor, sample_rows: Tensor | None, step: AttentionStep) -> Tensor:
        """Compute a step's tokens: token_ids and positions [T] -> the logits of `sample_rows` [S, vocabulary].

        Without sample_rows, every token samples. The attention step knows the positions itself.
        """
        return self._logits(self._run_layers(token_ids, sample_rows, step))

    def read(self, token_ids: Tensor, positions: Tensor, step: AttentionStep) -> Readout:
        """As `forward`, for those who want to know more than the logits of some rows."""
        hidden = self._run_layers(token_ids, None, step)
        normed = rms_norm(hidden, self.weights.norm, self.settings.norm_eps)
        return Readout(normed, lambda rows: self._logits(hidden[rows]))

    def _run_layers(self, token_ids: Tensor, rows: Tensor | None, step: AttentionStep) -> Tensor:
        """token_ids [T] -> what the last layer leaves of `rows` [S, hidden], or of all tokens, before the last norm."""
        s, ops, weights = self.settings, self.ops, self.weights
        q_size, kv_size = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        hidden = ops.embed(weights.embedding, token_ids, s.embedding_scale)
        for index, layer in enumerate(weights.layers):
            qkv = ops.norm_linear(hidden, layer.input_norm, s.norm_eps, layer.qkv, layer.qkv_bias)
            query, key, value = torch.split(qkv, [q_size, kv_size, kv_size], dim=1)
            attended = step(
                index,
                query.view(-1, s.num_heads, s.head_dim),
                key.view(-1, s.num_kv_heads, s.head_dim),
                value.view(-1, s.num_kv_heads, s.head_dim),
                self._params[index],
                self._transforms[index],
            ).flatten(1)
            if rows is not None and layer is weights.layers[-1]:
                # The other tokens have left their keys and values by now, and nobody reads what would become of them.
                hidden, attended = hidden[rows], attended[rows]
                if len(rows) == 0:
                    break
            hidden = ops.add_linear(hidden, attended, layer.output, layer.output_bias, s.residual_scale)
            activated = ops.norm_gate_up(hidden, layer.post_norm, s.norm_eps, layer.gate_up, layer.gate_up_bias)
            hidden = ops.add_linear(hidden, activated, layer.down, layer.down_bias, s.residual_scale)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] of `_run_layers` -> [S, vocabulary]."""
        s, weights = self.settings, self.weights
        logits = self.ops.logits(hidden, weights.norm, s.norm_eps, weights.head, s.vocab_size)
        return logits if s.logit_divisor == 1.0 else logits.div_(s.logit_divisor)
