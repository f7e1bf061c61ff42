"""GGUF metadata to a `transformers` config.json and generation_config.json.

What the converter does not understand it refuses: a key of the architecture that is read by nobody may change what the
model computes.
Source of the keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, section "Standardized key-value pairs".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from model_proc.files.model_files import ModelFilesError
from model_proc.gguf.file import GgufFile, GgufTensor
from model_proc.gguf.tokenizer import read_special_ids

MODEL_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""GGUF architectures that can be converted; the names are also `transformers` model types."""

HARMLESS_KEYS = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "expert_used_count"}
"""Keys of an architecture that change nothing, or say what the tensors already say."""

LLAMA3_LOW_FACTOR, LLAMA3_HIGH_FACTOR, LLAMA3_ORIGINAL_LENGTH = 1.0, 4.0, 8192
"""The one setting of Llama 3.1 to 3.3; only the scale (8, or 32 for the small models) differs between them."""


def build_config(file: GgufFile) -> dict[str, Any]:
    """The config.json of the model in `file`. Raises ModelFilesError when the architecture is not supported."""
    parts = file.metadata.get("split.count", 0)
    if parts > 1:
        raise ModelFilesError(f"{file.path} is one of {parts} parts; join them first: llama-gguf-split --merge")
    architecture = file.metadata.get("general.architecture")
    if architecture not in MODEL_CLASSES:
        raise ModelFilesError(
            f"{file.path} has the GGUF architecture {architecture}, which is not supported (supported:"
            f" {', '.join(MODEL_CLASSES)}); use the model's safetensors folder instead"
        )
    if "token_embd.weight" not in file.tensors:
        raise ModelFilesError(f"{file.path} has no tensor token_embd.weight: it is no complete language model")
    keys = _Keys(file, architecture)
    hidden_size, num_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden_size // num_heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise keys.unsupported("attention.value_length differs from attention.key_length")
    if keys.integer("rope.dimension_count", head_dim) != head_dim:
        raise keys.unsupported(f"rope.dimension_count is not {head_dim}, the size of a head")
    if keys.integer("expert_count", 0):
        raise keys.unsupported("it is a mixture of experts")
    if not keys.boolean("attention.causal", True):
        raise keys.unsupported("its attention is not causal")
    context_length = keys.integer("context_length")
    config: dict[str, Any] = {
        "architectures": [MODEL_CLASSES[architecture]],
        "model_type": architecture,
        "dtype": "float32",
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context_length,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(keys, file.tensors.get("rope_freqs.weight"), head_dim, context_length),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_token_ids(file),
    }
    if architecture == "llama":
        config |= {
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        }
        if window := keys.integer("attention.sliding_window", 0):
            config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    keys.finish()
    return config


def build_generation_config(file: GgufFile) -> dict[str, Any]:
    """The generation_config.json: every token that ends a turn, and the other special ids."""
    ids = read_special_ids(file)
    ends = dict.fromkeys(ids[role] for role in ("eos", "eot", "eom"))
    return {**_token_ids(file), "eos_token_id": [end for end in ends if end is not None]}


def _token_ids(file: GgufFile) -> dict[str, int | None]:
    ids = read_special_ids(file)
    if ids["eos"] is None:
        raise ModelFilesError(f"{file.path} names no end-of-sequence token (tokenizer.ggml.eos_token_id)")
    return {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}


def _rope_parameters(keys: _Keys, freqs: GgufTensor | None, head_dim: int, context_length: int) -> dict[str, Any]:
    theta = keys.number("rope.freq_base", 10000.0)
    scaling = keys.text("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    original = keys.integer("rope.scaling.original_context_length", context_length)
    if freqs is not None:
        return {"rope_theta": theta, **_llama3_scaling(keys, freqs, theta, head_dim)}
    if scaling == "yarn":
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
        }
    if scaling not in ("none", "linear"):
        raise keys.unsupported(f"rope.scaling.type is {scaling}")
    if factor != 1.0:
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_scaling(keys: _Keys, freqs: GgufTensor, theta: float, head_dim: int) -> dict[str, Any]:
    """The parameters behind a `rope_freqs` tensor: GGUF keeps what Llama 3's formula gives, `transformers` the formula.

    `freqs` [head_dim / 2]: by how much each frequency is divided. Refused unless the formula gives just these values.
    Source of the formula: https://github.com/meta-llama/llama-models, `apply_scaling`.
    """
    if freqs.type is not GGMLQuantizationType.F32 or freqs.shape != (head_dim // 2,):
        raise keys.unsupported(f"its rope_freqs tensor is {freqs.type.name} {freqs.shape}")
    factors = freqs.rows.reshape(-1).view("<f4")
    factor = float(factors.max())
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (LLAMA3_ORIGINAL_LENGTH / wavelengths - LLAMA3_LOW_FACTOR) / (LLAMA3_HIGH_FACTOR - LLAMA3_LOW_FACTOR)
    smooth = smooth.clip(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(factors, expected, rtol=1e-4):
        raise keys.unsupported("its rope_freqs tensor is not the scaling of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW_FACTOR,
        "high_freq_factor": LLAMA3_HIGH_FACTOR,
        "original_max_position_embeddings": LLAMA3_ORIGINAL_LENGTH,
    }


class _Keys:
    """The keys of one architecture: each is read with its type, and none may be left over."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._path: Path = file.path
        self._prefix = f"{architecture}."
        keys = (key.removeprefix(self._prefix) for key in file.metadata if key.startswith(self._prefix))
        self._values = {key: file.metadata[self._prefix + key] for key in keys}
        self._unread = set(self._values) - HARMLESS_KEYS

    def integer(self, key: str, default: int | None = None) -> int:
        """A count: positive, or zero where zero is a possible `default`."""
        value: int = self._read(key, default, int, int)
        if value < (1 if default is None else 0):
            raise self.unsupported(f"{self._prefix}{key} is {value}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        return self._read(key, default, bool, bool)

    def text(self, key: str, default: str) -> str:
        return self._read(key, default, str, str)

    def number(self, key: str, default: float | None = None) -> float:
        """A float: the shortest decimal that means the same float32 (1e-05, not 9.999999747378752e-06)."""
        return self._read(key, default, (int, float), lambda value: float(str(np.float32(value))))

    def unsupported(self, what: str) -> ModelFilesError:
        return ModelFilesError(f"{self._path}: {what}, which GGUF conversion does not support; use safetensors instead")

    def finish(self) -> None:
        if self._unread:
            raise self.unsupported(f"it has the unknown key {self._prefix}{min(self._unread)}")

    def _read(self, key: str, default: Any, kind: type | tuple[type, ...], convert: Callable[[Any], Any]) -> Any:
        self._unread.discard(key)
        value = self._values.get(key, default)
        if value is None:
            raise ModelFilesError(f"{self._path} is incomplete: it has no key {self._prefix}{key}; fetch it again")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.unsupported(f"{self._prefix}{key} is a {type(value).__name__}")
        return convert(value)
