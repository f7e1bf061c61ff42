"""GGUF tensors to the weights of a `transformers` model: names, row order and values.

Values are exact: quantized tensors become float32 just as the `gguf` package dequantizes them; float32, float16 and
bfloat16 tensors keep their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from model_proc.files.model_files import ModelFilesError
from model_proc.files.safetensors_file import ITEM_BYTES, TensorSpec
from model_proc.gguf.file import GgufFile, GgufTensor

CHUNK_ITEMS = 4 * 1024 * 1024
GROUP_BLOCKS = 1024

KEPT_DTYPES = {GGMLQuantizationType.F32: "F32", GGMLQuantizationType.F16: "F16", GGMLQuantizationType.BF16: "BF16"}
IGNORED_TENSORS = {"rope_freqs.weight"}  # its content is in the config


@dataclass(frozen=True, slots=True)
class Conversion:
    """One tensor of the file and what becomes of it. `heads` > 0: its rows are in GGUF's rotary order, per head."""

    source: GgufTensor
    target: TensorSpec
    heads: int

    @property
    def is_quantized(self) -> bool:
        return self.source.type not in KEPT_DTYPES

    @property
    def block_spec(self) -> TensorSpec:
        """What `block_rows` gives, under the target's name."""
        return TensorSpec(self.target.name, "U8", self.source.rows.shape)

    def block_rows(self) -> np.ndarray:
        """The source's bytes, uint8 [rows, bytes of a row], in the target's order of rows."""
        rows = self.source.rows
        if self.heads:
            rows = rotary_halves(rows.reshape(self.source.shape[0], -1), self.heads)
        return np.ascontiguousarray(rows)

    def chunks(self) -> Iterator[np.ndarray]:
        """The target's values in order, some million at a time, as contiguous arrays."""
        rows = self.source.rows
        if self.heads:
            rows = rotary_halves(rows.reshape(self.source.shape[0], -1), self.heads)
        step = max(1, CHUNK_ITEMS // self.source.shape[-1])
        step = 1 << (step.bit_length() - 1)  # a power of two has the divisors that dequantize_rows wants
        for begin in range(0, len(rows), step):
            chunk = np.ascontiguousarray(rows[begin : begin + step])
            yield chunk if self.source.type in KEPT_DTYPES else dequantize_rows(chunk, self.source.type)


def plan_conversions(file: GgufFile, config: dict[str, Any]) -> list[Conversion]:
    """Every tensor of the model that `config` describes, in the order to write: wide dtypes first.

    Raises ModelFilesError when the file lacks one, has one too many, or has one of the wrong shape or type.
    """
    expected = _expected_tensors(config)
    surplus = set(file.tensors) - set(expected) - IGNORED_TENSORS
    if surplus:
        raise ModelFilesError(
            f"{file.path}: a {config['model_type']} model has no place for tensor {min(surplus)}; use the model's"
            " safetensors folder instead"
        )
    conversions = []
    for name, (target_name, shape, heads) in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise ModelFilesError(f"{file.path} is incomplete: it has no tensor {name}; fetch it again")
        if tensor.shape != shape:
            raise ModelFilesError(f"{file.path} is damaged: {name} has shape {tensor.shape}, its metadata say {shape}")
        if len(shape) == 1 and tensor.type not in KEPT_DTYPES:
            raise ModelFilesError(f"{file.path} is damaged: {name}, a vector, is quantized ({tensor.type.name})")
        dtype = KEPT_DTYPES.get(tensor.type, "F32")
        conversions.append(Conversion(tensor, TensorSpec(target_name, dtype, shape), heads))
    for tensor_type in {conversion.source.type for conversion in conversions} - set(KEPT_DTYPES):
        _check_type(file, tensor_type)
    return sorted(conversions, key=lambda conversion: -ITEM_BYTES[conversion.target.dtype])


def rotary_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo the row order of query and key projections in GGUF files of the llama family.

    There the two coordinates that are rotated together are neighbours (0 1 0 1 ...); `transformers` keeps first all
    first coordinates of a head, then all second ones. Whole rows move, so this works on quantized bytes.
    `rows` [heads * head_dim, anything].
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def dequantize_rows(rows: np.ndarray, tensor_type: GGMLQuantizationType) -> np.ndarray:
    """`rows` uint8 [any, bytes of a row] as float32 [any * items of a row].

    The `gguf` package works on 16 rows at a time, which for short rows is mostly overhead; blocks do not depend on each
    other, so they are regrouped into long rows.
    """
    block_bytes = GGML_QUANT_SIZES[tensor_type][1]
    blocks = gcd(rows.size // block_bytes, GROUP_BLOCKS)
    return dequantize(rows.reshape(-1, blocks * block_bytes), tensor_type).reshape(-1)


def _check_type(file: GgufFile, tensor_type: GGMLQuantizationType) -> None:
    try:
        dequantize_rows(np.zeros((1, GGML_QUANT_SIZES[tensor_type][1]), np.uint8), tensor_type)
    except NotImplementedError as error:
        raise ModelFilesError(
            f"{file.path} has tensors of type {tensor_type.name}, which the installed gguf package cannot dequantize;"
            " use another quantization of the model (Q8_0, Q4_K, F16, ...)"
        ) from error


def _expected_tensors(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """GGUF name to (`transformers` name, shape, heads whose rows are in rotary order or 0)."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, head_dim = (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])
    is_llama = config["model_type"] in ("llama", "mistral")
    expected: dict[str, tuple[str, tuple[int, ...], int]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocab, hidden), 0),
        "output_norm.weight": ("model.norm.weight", (hidden,), 0),
    }
    if not config["tie_word_embeddings"]:
        expected["output.weight"] = ("lm_head.weight", (vocab, hidden), 0)
    norms = {"attn_norm": ("input_layernorm", hidden), "ffn_norm": ("post_attention_layernorm", hidden)}
    if config["model_type"] == "qwen3":
        norms |= {"attn_q_norm": ("self_attn.q_norm", head_dim), "attn_k_norm": ("self_attn.k_norm", head_dim)}
    rotary = (heads, kv_heads) if is_llama else (0, 0)
    attention_bias = config.get("attention_bias", False)
    mlp_bias = config.get("mlp_bias", False)
    qkv_bias = attention_bias or config["model_type"] == "qwen2"
    projections = [
        ("attn_q", "self_attn.q_proj", heads * head_dim, hidden, rotary[0], qkv_bias),
        ("attn_k", "self_attn.k_proj", kv_heads * head_dim, hidden, rotary[1], qkv_bias),
        ("attn_v", "self_attn.v_proj", kv_heads * head_dim, hidden, 0, qkv_bias),
        ("attn_output", "self_attn.o_proj", hidden, heads * head_dim, 0, attention_bias),
        ("ffn_gate", "mlp.gate_proj", inner, hidden, 0, mlp_bias),
        ("ffn_up", "mlp.up_proj", inner, hidden, 0, mlp_bias),
        ("ffn_down", "mlp.down_proj", hidden, inner, 0, mlp_bias),
    ]
    for layer in range(config["num_hidden_layers"]):
        source, target = f"blk.{layer}.", f"model.layers.{layer}."
        for name, (target_name, size) in norms.items():
            expected[f"{source}{name}.weight"] = (f"{target}{target_name}.weight", (size,), 0)
        for name, target_name, rows, columns, rotary_heads, has_bias in projections:
            expected[f"{source}{name}.weight"] = (f"{target}{target_name}.weight", (rows, columns), rotary_heads)
            if has_bias:
                expected[f"{source}{name}.bias"] = (f"{target}{target_name}.bias", (rows,), rotary_heads)
    return expected
