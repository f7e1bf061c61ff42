"""The decoder's weights for the CPU kernels: packed matrices, quantized or not; norms and biases in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_proc.files.checkpoint import weight_files
from model_proc.files.model_files import BLOCKS_FILE, ModelFilesError, Progress
from model_proc.kernels.cpu_library import TILE, CpuLibrary, PackedMatrix
from model_proc.models.loader import DecoderWeights, empty_weights, fill_from, fill_randomly
from model_proc.models.settings import DecoderSettings
from model_proc.quantization import BLOCK, GGUF_BITS, Codes, from_gguf, join, quantize

MATRICES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
MERGED_NAMES = {"qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}
BIASES = {"qkv_bias": "qkv", "output_bias": "output", "gate_up_bias": "gate_up", "down_bias": "down"}
NORMS = {
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


def unsupported(settings: DecoderSettings) -> str | None:
    """What the kernels cannot do of this model's matrices, if anything."""
    s = settings
    for what, columns in (("hidden size", s.hidden_size), ("heads", s.num_heads * s.head_dim)):
        if columns % BLOCK:
            return f"a {what} of {columns}, which is no multiple of {BLOCK}"
    if s.intermediate_size % max(BLOCK, TILE):
        return f"an intermediate size of {s.intermediate_size}, which is no multiple of {BLOCK}"
    return None


def is_published_quantized(folder: Path) -> bool:
    """Whether the checkpoint was made from quantized weights, whose blocks lie beside it."""
    return (folder / BLOCKS_FILE).is_file()


def packed_weights(
    folder: Path, settings: DecoderSettings, dtype: torch.dtype, quantization: str, library: CpuLibrary,
    load_format: str, progress: Progress,
) -> DecoderWeights:  # fmt: skip
    """The weights in `folder`, or random ones when `load_format` is "dummy", for CpuOps.

    `quantization` is "none" (matrices of `dtype`), "int8", "int4" (the embedding and the output layer in 8 bits), or
    "blocks": the codes that were published; other matrices in 8 bits. Raises ModelFilesError as `fill_from` does.
    """
    if load_format == "dummy":
        weights = empty_weights(settings, torch.float32, torch.device("cpu"))
        fill_randomly(weights)
        places = weights.places
        return _pack(weights, settings, dtype, quantization, library, lambda name: places[name].tensor, None)
    weights = empty_weights(settings, torch.float32, torch.device("meta"))
    fill_from(folder, weights, progress)  # nothing is read: this compares the names and shapes
    with ExitStack() as files:
        tensors = _open(files, weight_files(folder))
        blocks = _Blocks(files, folder / BLOCKS_FILE) if is_published_quantized(folder) else None
        return _pack(weights, settings, dtype, quantization, library, tensors, blocks)


class _Blocks:
    """The published blocks of a checkpoint."""

    def __init__(self, files: ExitStack, path: Path) -> None:
        try:
            self._file = files.enter_context(safe_open(path, framework="pt", device="cpu"))
            self._types: dict[str, str] = self._file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ModelFilesError(f"cannot load the blocks in {path}: {error}") from error

    def bits(self, name: str) -> int:
        """Of a matrix's codes; 0 when its blocks are not there."""
        return GGUF_BITS.get(self._types.get(name, ""), 0)

    def codes(self, name: str) -> Codes:
        return from_gguf(self._file.get_tensor(name), self._types[name])


def _open(files: ExitStack, paths: list[Path]) -> Callable[[str], Tensor]:
    """A way to read the tensors of some safetensors files by name."""
    opened: dict[str, Any] = {}
    for path in paths:
        file = files.enter_context(safe_open(path, framework="pt", device="cpu"))
        opened |= dict.fromkeys(file.keys(), file)
    return lambda name: opened[name].get_tensor(name)


def _pack(
    weights: DecoderWeights, settings: DecoderSettings, dtype: torch.dtype, quantization: str, library: CpuLibrary,
    tensor: Callable[[str], Tensor], blocks: _Blocks | None,
) -> DecoderWeights:  # fmt: skip
    """Put every weight, read by `tensor` or from `blocks`, into `weights` in the form that the kernels want."""

    def matrix(names: list[str], bits: int) -> PackedMatrix:
        """`bits` of codes; 0: as published, else 8."""
        if quantization == "none":
            return library.pack(torch.cat([tensor(name) for name in names]).to(dtype))
        published = {blocks.bits(name) for name in names} if blocks else {0}
        if blocks and len(published) == 1 and 0 not in published and (not bits or bits in published):
            return library.pack(join([blocks.codes(name) for name in names]))
        return library.pack(quantize(torch.cat([tensor(name) for name in names]), bits or 8))

    inner_bits = {"none": 0, "blocks": 0, "int8": 8, "int4": 4}[quantization]
    outer_bits = 8 if inner_bits else 0
    names = MATRICES | (MERGED_NAMES if settings.merged else {})
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}."
        for field, parts in names.items():
            setattr(layer, field, matrix([f"{prefix}{part}.weight" for part in parts], inner_bits))
        for field, whole in BIASES.items():
            if getattr(layer, field) is not None:
                setattr(layer, field, torch.cat([tensor(f"{prefix}{part}.bias") for part in names[whole]]).float())
        for field, norm in NORMS.items():
            if getattr(layer, field) is not None:
                setattr(layer, field, tensor(f"{prefix}{norm}.weight").float().clone())
    weights.norm = tensor("model.norm.weight").float().clone()
    embedding: Any = matrix(["model.embed_tokens.weight"], outer_bits)
    weights.embedding = weights.head = embedding
    if not settings.tied:
        head: Any = matrix(["lm_head.weight"], outer_bits)
        weights.head = head
    weights.places = {}
    return weights
