"""Tiny GGUF files for tests: random models with a byte-level vocabulary, written with the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from tokenizers.pre_tokenizers import ByteLevel

from model_proc.gguf.convert import convert_gguf

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 96, 2, 4, 2, 128
HEAD_DIM = {"llama": 16, "qwen2": 16, "qwen3": 32}
SPECIAL_TOKENS = ("<|end|>", "<|turn|>", "<|begin|>")

BYTES = sorted(ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "hell o", "\u0120 w", "o r", "\u0120w or", "l d"]
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), *SPECIAL_TOKENS]
TOKEN_TYPES = [1] * (len(TOKENS) - len(SPECIAL_TOKENS)) + [3] * len(SPECIAL_TOKENS)
END, TURN, BEGIN = (TOKENS.index(token) for token in SPECIAL_TOKENS)

Metadata = dict[str, Any]
Tensors = dict[str, np.ndarray]


def metadata(architecture: str) -> Metadata:
    """The metadata of a tiny model, by key; tests change them before writing."""
    return {
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": CONTEXT,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": INNER,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.key_length": HEAD_DIM[architecture],
        f"{architecture}.attention.value_length": HEAD_DIM[architecture],
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2" if architecture.startswith("qwen") else "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TOKEN_TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.eot_token_id": TURN,
        "tokenizer.ggml.bos_token_id": BEGIN,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }


def tensors(architecture: str, tied: bool = False, bias: bool = False) -> Tensors:
    """Random float32 tensors under their GGUF names, rows and columns as in `transformers`."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(0, 0.2, shape).astype(np.float32)

    head_dim = HEAD_DIM[architecture]
    drawn = {"token_embd.weight": draw(len(TOKENS), HIDDEN), "output_norm.weight": 1 + draw(HIDDEN)}
    if not tied:
        drawn["output.weight"] = draw(len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        projections = {
            "attn_q": (HEADS * head_dim, HIDDEN),
            "attn_k": (KV_HEADS * head_dim, HIDDEN),
            "attn_v": (KV_HEADS * head_dim, HIDDEN),
            "attn_output": (HIDDEN, HEADS * head_dim),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        biased = {"qwen2": list(projections)[:3]}.get(architecture, list(projections) if bias else [])
        drawn |= {f"{block}{name}.weight": draw(*shape) for name, shape in projections.items()}
        drawn |= {f"{block}{name}.bias": draw(projections[name][0]) for name in biased}
        drawn |= {f"{block}{name}.weight": 1 + draw(HIDDEN) for name in ("attn_norm", "ffn_norm")}
        if architecture == "qwen3":
            drawn |= {f"{block}{name}.weight": 1 + draw(head_dim) for name in ("attn_q_norm", "attn_k_norm")}
    return drawn


def write_gguf(
    path: Path,
    architecture: str,
    values: Metadata,
    weights: Tensors,
    matrix_type: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> Path:
    """Write `values` and `weights` to `path`; matrices in `matrix_type`, vectors in float32. Returns `path`."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
            writer.add_key_value(key, value, kinds.get(type(value), GGUFValueType.STRING))
    for name, tensor in weights.items():
        kind = matrix_type if tensor.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def in_gguf_row_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of query and key projections of the llama family.

    Source: `LlamaModel.permute` in https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def silent(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def convert(folder: Path, architecture: str, values: Metadata, weights: Tensors) -> Path:
    """Write `folder`/tiny.gguf and convert it; returns the model folder."""
    target = folder / "model"
    target.mkdir()
    convert_gguf(write_gguf(folder / "tiny.gguf", architecture, values, weights), target, silent)
    return target
