"""Codes in blocks: from floats, from GGUF, and as the weights of a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors import safe_open

from ipc.config import ModelConfig, section
from ipc.options import complete
from ipc.process import FatalError
from model_proc.describe import describe
from model_proc.files.checkpoint import resolve
from model_proc.files.model_files import BLOCKS_FILE
from model_proc.models.decoder import Decoder
from model_proc.quantization import GGUF_BITS, from_gguf, join, quantize
from model_proc.torch_runner import TorchRunner
from tests.in_process import generate
from tests.model_proc.gguf_samples import in_gguf_row_order, metadata, silent, tensors, write_gguf
from tests.model_proc.test_torch_runner import GREEDY


@pytest.mark.parametrize("kind", GGUF_BITS)
def test_gguf_blocks_are_held_exactly(kind: str) -> None:
    weights = np.random.default_rng(1).normal(0, 0.1, (6, 96)).astype(np.float32)
    rows = gguf.quantize(weights, GGMLQuantizationType[kind])
    codes = from_gguf(torch.from_numpy(rows), kind)
    expected = torch.from_numpy(gguf.dequantize(rows, GGMLQuantizationType[kind]))
    assert codes.bits == GGUF_BITS[kind]
    assert torch.allclose(codes.floats(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("bits", "steps"), [(4, 15), (8, 254)])
def test_codes_are_the_nearest_ones(bits: int, steps: int) -> None:
    torch.manual_seed(2)
    weights = torch.randn(8, 64)
    blocks = weights.view(8, 2, 32)
    widths = blocks.amax(2) - blocks.amin(2) if bits == 4 else 2 * blocks.abs().amax(2)
    error = (quantize(weights, bits).floats() - weights).view(8, 2, 32).abs()
    assert bool((error <= 0.51 * widths[:, :, None] / steps + 2e-3).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_zeros_stay_zero(bits: int) -> None:
    assert quantize(torch.zeros(2, 64), bits).floats().tolist() == torch.zeros(2, 64).tolist()


def test_joined_matrices_lie_one_below_the_other() -> None:
    first, second = torch.randn(3, 32), torch.randn(5, 32)
    joined = join([quantize(first, 4), quantize(second, 4)])
    assert torch.equal(joined.floats(), torch.cat([quantize(first, 4).floats(), quantize(second, 4).floats()]))


# -- a model of codes --------------------------------------------------------------------------------------------------


def write(path: Path, kind: str) -> Path:
    """A tiny GGUF model of the llama family whose matrices are of this type."""
    weights = tensors("llama")
    for name in weights:
        for part, heads in (("attn_q.weight", 4), ("attn_k.weight", 2)):
            if name.endswith(part):
                weights[name] = in_gguf_row_order(weights[name], heads)
    return write_gguf(path, "llama", metadata("llama"), weights, GGMLQuantizationType[kind])


def load(model: Path, cache: Path, **options: Any) -> tuple[TorchRunner, Any]:
    values = {"device": "cpu", "num_gpu_blocks_override": 40, "max_num_seqs": 8, "num_threads": 2, **options}
    config = section(ModelConfig, complete(values))
    runner = TorchRunner(config, describe(resolve(str(model), cache, silent), config), silent)
    return runner, runner.load()


def greedy(model: Path, cache: Path, **options: Any) -> list[list[int]]:
    runner, ready = load(model, cache, **options)
    prompts = [[3, 5, 8], [20] * 20, list(range(40))]
    outcomes, _ = generate(runner, ready, prompts, [GREEDY] * len(prompts), max_num_batched_tokens=23)
    return [outcome.token_ids for outcome in outcomes]


@pytest.mark.parametrize("kind", GGUF_BITS)
def test_published_blocks_give_the_tokens_of_the_dequantized_weights(kernels: Path, tmp_path: Path, kind: str) -> None:
    model = write(tmp_path / "tiny.gguf", kind)
    exact = greedy(model, tmp_path, dtype="float32", quantization="none")
    assert greedy(model, tmp_path, dtype="float32", quantization="auto") == exact
    assert greedy(model, tmp_path, dtype="float32", attention_backend="torch") == exact


def test_the_cache_keeps_the_published_blocks(tmp_path: Path) -> None:
    model = write(tmp_path / "tiny.gguf", "Q4_1")
    folder = resolve(str(model), tmp_path, silent).folder
    with (
        safe_open(folder / BLOCKS_FILE, framework="pt") as blocks,
        safe_open(folder / "model.safetensors", framework="pt") as weights,
    ):
        names = [name for name in weights.keys() if weights.get_tensor(name).ndim > 1]  # noqa: SIM118
        assert sorted(blocks.keys()) == sorted(names)
        for name in names:
            codes = from_gguf(blocks.get_tensor(name), blocks.metadata()[name])
            assert torch.allclose(codes.floats(), weights.get_tensor(name), rtol=1e-6, atol=1e-7), name


def test_other_types_are_served_in_eight_bits(kernels: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "tiny.gguf", "Q5_0")
    runner, _ = load(model, tmp_path)
    assert isinstance(runner._model, Decoder)
    assert {layer.down.bits for layer in runner._model.weights.layers} == {8}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("quantization", "inner", "outer"), [("none", 16, 16), ("int8", 8, 8), ("int4", 4, 8)])
def test_quantization_chooses_the_bits(
    kernels: Path, tmp_path: Path, quantization: str, inner: int, outer: int
) -> None:
    runner, _ = load(write(tmp_path / "tiny.gguf", "F32"), tmp_path, dtype="bfloat16", quantization=quantization)
    assert isinstance(runner._model, Decoder)
    weights: Any = runner._model.weights
    assert {matrix.bits for layer in weights.layers for matrix in (layer.qkv, layer.gate_up)} == {inner}
    assert (weights.embedding.bits, weights.head.bits) == (outer, outer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int4", "attention_backend": "torch"}, "asks for plain PyTorch"),
        ({"quantization": "int8", "model_impl": "transformers"}, "our own decoder alone"),
        ({"attention_backend": "cpu", "dtype": "float16"}, "a KV cache of float16"),
        ({"attention_backend": "cpu", "block_size": 8}, "no multiple of 16"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FatalError, match=message):
        load(write(tmp_path / "tiny.gguf", "F32"), tmp_path, **options)
