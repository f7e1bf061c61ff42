"""The decoder's weights: from safetensors straight into merged tensors on the device, or random ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
class DecoderWeights:
    """A whole decoder. `head` is `embedding` where they are tied."""

    embedding: Tensor  # [vocabulary, hidden]
    layers: list[LayerWeights]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocabulary, hidden]
    places: dict[str, Tensor] = field(repr=False)  # what every tensor of a checkpoint is copied to, by its name


def empty_weights(settings: DecoderSettings, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Weights to be filled in, and where each tensor of a checkpoint belongs."""
    s = settings
    places: dict[str, Tensor] = {}

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def merged(prefix: str, whole: str, parts: dict[str, int], *columns: int, leaf: str = "weight") -> Tensor:
        tensor = new(sum(parts.values()), *columns)
        if s.merged:
            places[f"{prefix}.{whole}.{leaf}"] = tensor
        else:
            for name, rows in zip(parts, torch.split(tensor, list(parts.values())), strict=True):
                places[f"{prefix}.{name}.{leaf}"] = rows
        return tensor

    def single(name: str, *shape: int) -> Tensor:
        places[name] = new(*shape)
        return places[name]

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
                output=single(f"{attention}.o_proj.weight", s.hidden_size, s.num_heads * s.head_dim),
                output_bias=single(f"{attention}.o_proj.bias", s.hidden_size) if s.output_bias else None,
                post_norm=single(f"{layer}.post_attention_layernorm.weight", s.hidden_size),
                gate_up=merged(mlp, "gate_up_proj", gate_up, s.hidden_size),
                gate_up_bias=merged(mlp, "gate_up_proj", gate_up, leaf="bias") if s.mlp_bias else None,
                down=single(f"{mlp}.down_proj.weight", s.hidden_size, s.intermediate_size),
                down_bias=single(f"{mlp}.down_proj.bias", s.hidden_size) if s.mlp_bias else None,
            )
        )
    embedding = single("model.embed_tokens.weight", s.vocab_size, s.hidden_size)
    norm = single("model.norm.weight", s.hidden_size)
    head = embedding if s.tied else single("lm_head.weight", s.vocab_size, s.hidden_size)
    return DecoderWeights(embedding, layers, norm, head, places)


def fill_randomly(weights: DecoderWeights) -> None:
    """Random matrices, the same in every run on the same kind of device; norms of one, no bias."""
    device = weights.embedding.device
    generator = torch.Generator(device).manual_seed(DUMMY_SEED)
    for name, place in weights.places.items():
        if place.ndim > 1:
            place.normal_(std=DUMMY_STD, generator=generator)
        else:
            place.fill_(0.0 if name.endswith(".bias") else 1.0)


def fill_from(folder: Path, weights: DecoderWeights, progress: Progress) -> None:
    """Copy every tensor of the checkpoint in `folder` to its place.

    Raises ModelFilesError when tensors are missing, of another shape, or of a layer without a place for them. Tensors
    of other modules (heads for training, drafts of later tokens) do not matter.
    """
    modules = {name.rpartition(".")[0] for name in weights.places}
    missing = set(weights.places)
    homeless = []
    for name, tensor in _tensors(folder, progress):
        if name in missing:
            place = weights.places[name]
            if place.shape != tensor.shape:
                raise ModelFilesError(
                    f"{folder}: {name} has shape {tuple(tensor.shape)}, but config.json means {tuple(place.shape)};"
                    " fetch the model again"
                )
            place.copy_(tensor)
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


def _tensors(folder: Path, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's safetensors files, one after the other, in host memory."""
    files = weight_files(folder)
    total = sum(path.stat().st_size for path in files)
    done = 0
    progress("load", 0, total)
    for path in files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    tensor = file.get_tensor(name)
                    yield name, tensor
                    done += tensor.nbytes
                    progress("load", done, total)
        except (OSError, SafetensorError) as error:
            raise ModelFilesError(f"cannot load the weights in {path}: {error}") from error
    progress("load", total, total)
