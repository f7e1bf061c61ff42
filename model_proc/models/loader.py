"""The decoder's weights: from safetensors straight into merged tensors on the device, or random ones.

A rank of several reads only its share of every matrix: rows of the products in front, columns of those behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_proc.files.checkpoint import weight_files
from model_proc.files.model_files import ModelFilesError, Progress
from model_proc.models.settings import DecoderSettings

DUMMY_SEED = 0
DUMMY_STD = 0.02  # what models are usually initialised with; keeps activations in range at any depth


@dataclass(slots=True)
class LayerWeights:
    """One layer. Matrices are [out, in], as checkpoints keep them."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]: queries, keys, values
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None
    output: Tensor  # [hidden, heads * head_dim]
    output_bias: Tensor | None
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]: gates, then ups
    gate_up_bias: Tensor | None
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None


@dataclass(slots=True)
class Place:
    """Where a tensor of a checkpoint goes: whole, or some ranges of one dimension, one behind the other."""

    tensor: Tensor
    stored: tuple[int, ...]  # the shape in the checkpoint
    dim: int = 0
    ranges: tuple[tuple[int, int], ...] = ()  # of `dim`: start and end; none: all of it


@dataclass(slots=True)
class DecoderWeights:
    """A decoder, or a rank's share of one. `head` is `embedding`, or rows of it, where they are tied."""

    embedding: Tensor  # [vocabulary, hidden]
    layers: list[LayerWeights]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocabulary, hidden], or a rank's part of the vocabulary
    places: dict[str, Place] = field(repr=False)  # by the tensor's name in a checkpoint


def empty_weights(
    settings: DecoderSettings, dtype: torch.dtype, device: torch.device, rank: int = 0, size: int = 1
) -> DecoderWeights:
    """Weights to be filled in, and where each tensor of a checkpoint belongs.

    `settings` are those of one rank of `size`: it has so many heads, and so much of the MLP, of the whole model.
    """
    s = settings
    places: dict[str, Place] = {}

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def merged(prefix: str, whole: str, parts: dict[str, int], *columns: int, leaf: str = "weight") -> Tensor:
        tensor = new(sum(parts.values()), *columns)
        if s.merged:
            ends = accumulate(rows * size for rows in parts.values())
            ranges = tuple(
                _share(end - rows * size, rows, rank) for end, rows in zip(ends, parts.values(), strict=True)
            )
            places[f"{prefix}.{whole}.{leaf}"] = Place(tensor, (len(tensor) * size, *columns), 0, ranges)
        else:
            for name, rows in zip(parts, torch.split(tensor, list(parts.values())), strict=True):
                stored = (len(rows) * size, *columns)
                places[f"{prefix}.{name}.{leaf}"] = Place(rows, stored, 0, (_share(0, len(rows), rank),))
        return tensor

    def single(name: str, *shape: int, dim: int | None = None) -> Tensor:
        """A tensor that every rank has whole, or a share of its dimension `dim`."""
        tensor = new(*shape)
        if dim is None:
            places[name] = Place(tensor, shape)
        else:
            stored = tuple(length * size if index == dim else length for index, length in enumerate(shape))
            places[name] = Place(tensor, stored, dim, (_share(0, shape[dim], rank),))
        return tensor

    kv_size = s.num_kv_heads * s.head_dim
    qkv = {"q_proj": s.num_heads * s.head_dim, "k_proj": kv_size, "v_proj": kv_size}
    gate_up = dict.fromkeys(("gate_proj", "up_proj"), s.intermediate_size)
    layers = []
    for index in range(s.num_layers):
        layer = f"model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        layers.append(
            LayerWeights(
                input_norm=single(f"{layer}.input_layernorm.weight", s.hidden_size),
                qkv=merged(attention, "qkv_proj", qkv, s.hidden_size),
                qkv_bias=merged(attention, "qkv_proj", qkv, leaf="bias") if s.qkv_bias else None,
                q_norm=single(f"{attention}.q_norm.weight", s.head_dim) if s.qk_norm else None,
                k_norm=single(f"{attention}.k_norm.weight", s.head_dim) if s.qk_norm else None,
                output=single(f"{attention}.o_proj.weight", s.hidden_size, s.num_heads * s.head_dim, dim=1),
                output_bias=single(f"{attention}.o_proj.bias", s.hidden_size) if s.output_bias else None,
                post_norm=single(f"{layer}.post_attention_layernorm.weight", s.hidden_size),
                gate_up=merged(mlp, "gate_up_proj", gate_up, s.hidden_size),
                gate_up_bias=merged(mlp, "gate_up_proj", gate_up, leaf="bias") if s.mlp_bias else None,
                down=single(f"{mlp}.down_proj.weight", s.hidden_size, s.intermediate_size, dim=1),
                down_bias=single(f"{mlp}.down_proj.bias", s.hidden_size) if s.mlp_bias else None,
            )
        )
    embedding = single("model.embed_tokens.weight", s.vocab_size, s.hidden_size)
    norm = single("model.norm.weight", s.hidden_size)
    # The ranks share the output layer if they can; else each of them has all of it.
    rows = s.vocab_size // size if s.vocab_size % size == 0 else s.vocab_size
    start = rank * rows % s.vocab_size
    if s.tied:
        head = embedding[start : start + rows]
    else:
        head = new(rows, s.hidden_size)
        places["lm_head.weight"] = Place(head, (s.vocab_size, s.hidden_size), 0, ((start, start + rows),))
    return DecoderWeights(embedding, layers, norm, head, places)


def fill_randomly(weights: DecoderWeights) -> None:
    """Random matrices, the same in every run on the same kind of device; norms of one, no bias."""
    device = weights.embedding.device
    generator = torch.Generator(device).manual_seed(DUMMY_SEED)
    for name, place in weights.places.items():
        if place.tensor.ndim > 1:
            place.tensor.normal_(std=DUMMY_STD, generator=generator)
        else:
            place.tensor.fill_(0.0 if name.endswith(".bias") else 1.0)


def fill_from(folder: Path, weights: DecoderWeights, progress: Progress) -> None:
    """Copy every tensor of the checkpoint in `folder`, or the share of it that is wanted, to its place.

    Raises ModelFilesError when tensors are missing, of another shape, or of a layer without a place for them. Tensors
    of other modules (heads for training, drafts of later tokens) do not matter.
    """
    modules = {name.rpartition(".")[0] for name in weights.places}
    missing = set(weights.places)
    homeless = []
    for name, file in _names(folder, progress):
        if name in missing:
            place = weights.places[name]
            shape = tuple(file.get_slice(name).get_shape())
            if place.stored != shape:
                raise ModelFilesError(
                    f"{folder}: {name} has shape {shape}, but config.json means {place.stored}; fetch the model again"
                )
            _copy(file, name, place)
            missing.discard(name)
        elif name.rpartition(".")[0] in modules:
            homeless.append(name)
    if missing:
        raise ModelFilesError(f"{folder} lacks {some(sorted(missing))}; fetch the model again")
    if homeless:
        raise ModelFilesError(
            f"{folder} has {some(sorted(homeless))}, which config.json has no place for; fetch the model again"
        )


def some(names: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more weights" if len(names) > 3 else "")


def _share(start: int, length: int, rank: int) -> tuple[int, int]:
    """The rank's range of what is cut into pieces of `length` from `start` on."""
    return start + rank * length, start + (rank + 1) * length


def _copy(file: Any, name: str, place: Place) -> None:
    """Put a tensor of an open safetensors file into its place."""
    if place.tensor.shape == place.stored:
        place.tensor.copy_(file.get_tensor(name))  # mapped, so that it is copied once
        return
    stored = file.get_slice(name)
    done = 0
    for start, end in place.ranges:
        piece = stored[start:end] if place.dim == 0 else stored[:, start:end]
        place.tensor.narrow(place.dim, done, end - start).copy_(piece)
        done += end - start


def _names(folder: Path, progress: Progress) -> Iterator[tuple[str, Any]]:
    """The name of every tensor of the folder's safetensors files, and the open file that it is in."""
    files = weight_files(folder)
    total = sum(path.stat().st_size for path in files)
    done = 0
    progress("load", 0, total)
    for path in files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                names = file.keys()
                for name in names:
                    yield name, file
                    done += path.stat().st_size // len(names)
                    progress("load", done, total)
        except (OSError, SafetensorError) as error:
            raise ModelFilesError(f"cannot load the weights in {path}: {error}") from error
    progress("load", total, total)
