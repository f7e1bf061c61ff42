"""Which models our own decoder computes, and how: a model's configuration reduced to what the decoder needs.

A configuration that says anything the decoder does not know is left to `transformers`: a setting that nobody reads
would change the answers in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Family:
    """How the members of one model type differ from a plain Llama. A str is the setting that decides."""

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    merged: bool = False  # the checkpoint holds q, k and v, and gate and up, as one weight each
    windowed: bool = False  # a sliding_window without layer_types holds for every layer
    settings: frozenset[str] = frozenset()  # what its configuration may say beside COMMON_SETTINGS


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "attention_bias", "attention_bias", "mlp_bias", settings=frozenset({"attention_bias", "mlp_bias"})
    ),
    "mistral": Family(windowed=True, settings=frozenset({"sliding_window"})),
    "ministral": Family(settings=frozenset({"sliding_window", "layer_types"})),
    "qwen2": Family(qkv_bias=True, settings=frozenset({"sliding_window", "layer_types"})),
    "qwen3": Family(
        "attention_bias", "attention_bias", qk_norm=True,
        settings=frozenset({"attention_bias", "sliding_window", "layer_types"}),
    ),
    "granite": Family(
        "attention_bias", "attention_bias", "mlp_bias",
        settings=frozenset({
            "attention_bias", "mlp_bias", "embedding_multiplier", "logits_scaling", "residual_multiplier",
            "attention_multiplier",
        }),
    ),
    "smollm3": Family(
        "attention_bias", "attention_bias", "mlp_bias",
        settings=frozenset({
            "attention_bias", "mlp_bias", "sliding_window", "layer_types", "no_rope_layers", "no_rope_layer_interval",
        }),
    ),
    "phi3": Family(
        merged=True, windowed=True, settings=frozenset({"sliding_window", "original_max_position_embeddings"})
    ),
}  # fmt: skip
"""The model types that our decoder computes; every other one runs on `transformers`."""

COMMON_SETTINGS = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_parameters", "rope_theta", "rope_scaling",
})  # fmt: skip
"""What the decoder reads of every family."""

HARMLESS_SETTINGS = frozenset({
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "embd_pdrop", "resid_pdrop",
    "pretraining_tp", "use_sliding_window", "max_window_layers", "auto_map", "is_llama_config", "rope_interleaved",
    "unsloth_fixed", "unsloth_version", "_name_or_path", "is_encoder_decoder",
    "id2label", "label2id", "problem_type", "return_dict", "output_hidden_states", "output_attentions",
    "chunk_size_feed_forward", "task_specific_params", "attn_implementation", "_attn_implementation_autoset",
    "transformers.js_config", "rope_interleave", "tokenizer_class",
})  # fmt: skip
"""What changes nothing at inference, or only through settings that are read (`use_sliding_window`, `layer_types`)."""

INTERLEAVED = ("rope_interleaved", "rope_interleave")
ROPE_TYPES = frozenset({"default", "linear", "dynamic", "llama3", "yarn"})


class NotNativeError(Exception):
    """Our decoder does not compute this model; the text says which part of it."""


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """A decoder-only transformer with RMS norms before attention and MLP, rotary positions and a gated SiLU MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    tied: bool  # the output layer is the embedding
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMS norm of every head's query and key, before the rotation
    merged: bool  # as in Family
    rope: dict[str, Any]  # rope_type, rope_theta and the parameters of the type
    max_positions: int
    rotates: tuple[bool, ...]  # whether layer i rotates its queries and keys
    windows: tuple[int | None, ...]  # the sliding window of layer i
    attention_scale: float
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0


def decoder_settings(config: PretrainedConfig, stored: dict[str, Any]) -> DecoderSettings:
    """The decoder's settings for a model: `config` is complete, `stored` is its config.json as it is.

    Raises NotNativeError, with the reason, for everything that the decoder does not know.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise NotNativeError(f"the model type {config.model_type} has no native decoder")
    unknown = sorted(
        name for name, value in stored.items()
        if value is not None and name not in COMMON_SETTINGS | HARMLESS_SETTINGS | family.settings
    )  # fmt: skip
    if unknown:
        raise NotNativeError(f"its config.json sets {unknown[0]}")
    if config.hidden_act != "silu":
        raise NotNativeError(f"its hidden_act is {config.hidden_act}")
    if any(stored.get(name) for name in INTERLEAVED):
        raise NotNativeError("its rotary embedding is interleaved")

    def flag(decides: bool | str) -> bool:
        return bool(getattr(config, decides)) if isinstance(decides, str) else decides

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return DecoderSettings(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        norm_eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings,
        qkv_bias=flag(family.qkv_bias),
        output_bias=flag(family.output_bias),
        mlp_bias=flag(family.mlp_bias),
        qk_norm=family.qk_norm,
        merged=family.merged,
        rope=_rope(config),
        max_positions=config.max_position_embeddings,
        rotates=tuple(map(bool, getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers)),
        windows=_windows(config, family),
        attention_scale=getattr(config, "attention_multiplier", head_dim**-0.5),
        embedding_scale=getattr(config, "embedding_multiplier", 1.0),
        residual_scale=getattr(config, "residual_multiplier", 1.0),
        logit_divisor=getattr(config, "logits_scaling", 1.0),
    )  # fmt: skip


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    parameters = dict(config.rope_parameters or {})
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise NotNativeError(f"its rope_type is {kind}")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise NotNativeError("it rotates only a part of each head")
    return parameters


def _windows(config: PretrainedConfig, family: Family) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None) if "sliding_window" in family.settings else None
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None) if "layer_types" in family.settings else None
    if kinds is None:
        return (window if family.windowed else None,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
