"""The CPU kernels against plain PyTorch: products of every kind of matrix, attention of every kind of head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from ipc.codec import Ids
from ipc.messages import Admit, Plan, Sampling
from model_proc.attention.cpu_paged import CpuAttention
from model_proc.attention.paged import AttentionBackend, AttentionParams, HeadTransform, KVCache, LayerShape
from model_proc.attention.torch_sdpa import TorchAttention
from model_proc.batch import Batch
from model_proc.kernels import cpu_build
from model_proc.kernels.cpu_build import NoKernelsError, build
from model_proc.kernels.cpu_library import CpuLibrary
from model_proc.kernels.ops import rms_norm
from model_proc.models.rope import rope_table
from model_proc.quantization import Codes, quantize
from tests.model_proc.gguf_samples import silent
from tests.model_proc.kernel_device import relative_error

CPU = torch.device("cpu")
EXACT, OF_CODES = 2e-6, 1e-2  # float32 sums in another order; activations in 8 bits


@pytest.fixture(scope="module")
def library(kernels: Path) -> CpuLibrary:
    return CpuLibrary(kernels, 3)


def weights_of(bits: int, rows: int, columns: int) -> tuple[Tensor | Codes, Tensor]:
    """A matrix to be packed, and the same as float32."""
    weights = torch.randn(rows, columns)
    if bits > 8:
        weights = weights.to({16: torch.bfloat16, 32: torch.float32}[bits])
        return weights, weights.float()
    codes = quantize(weights, bits)
    return codes, codes.floats()


@pytest.mark.parametrize("num_rows", [1, 2, 5, 8, 23])
@pytest.mark.parametrize(
    ("bits", "quantizes"), [(4, False), (8, False), (16, False), (32, False), (4, True), (8, True)]
)
def test_products(library: CpuLibrary, bits: int, quantizes: bool, num_rows: int) -> None:
    torch.manual_seed(bits + num_rows)
    source, weights = weights_of(bits, 90, 96)  # the last tile is not full
    matrix = library.pack(source)
    x, bias, hidden = torch.randn(num_rows, 96), torch.randn(90), torch.randn(num_rows, 90)
    expected = x @ weights.T + bias
    limit = OF_CODES if quantizes else EXACT
    assert relative_error(library.linear(matrix, x, bias, quantizes), expected) < limit
    wide = torch.randn(num_rows, 200)
    wide[:, 3:99] = x
    assert relative_error(library.linear(matrix, wide[:, 3:99], bias, quantizes), expected) < limit
    summed = library.linear(matrix, x, bias, quantizes, added_to=hidden.clone(), scale=0.5)
    assert relative_error(summed, hidden + 0.5 * expected) < limit


@pytest.mark.parametrize("num_rows", [1, 3, 9])
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_norm_and_gate(library: CpuLibrary, bits: int, num_rows: int) -> None:
    torch.manual_seed(bits + num_rows)
    source, weights = weights_of(bits, 2 * 80, 64)
    matrix = library.pack(source)
    x, norm, bias = 3 * torch.randn(num_rows, 64), torch.randn(64), torch.randn(160)
    gates, ups = (rms_norm(x, norm, 1e-5) @ weights.T + bias).chunk(2, dim=1)
    out = library.linear(matrix, x, bias, False, norm, 1e-5, gated=True)
    assert relative_error(out, silu(gates) * ups) < EXACT


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_rows_of_a_matrix_come_back_as_they_were(library: CpuLibrary, bits: int) -> None:
    source, weights = weights_of(bits, 50, 64)
    indices = torch.tensor([49, 0, 17, 17])
    rows = library.rows(library.pack(source), indices, 2.0)
    assert torch.allclose(rows, 2.0 * weights[indices], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quantizes", [False, True])
def test_a_row_is_the_same_in_any_batch(library: CpuLibrary, quantizes: bool) -> None:
    source, _ = weights_of(4, 128, 64)
    matrix, x = library.pack(source), torch.randn(21, 64)
    whole = library.linear(matrix, x, None, quantizes)
    for start, end in ((0, 1), (3, 7), (5, 20)):
        assert torch.equal(library.linear(matrix, x[start:end], None, quantizes), whole[start:end])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantizes", [False, True])
def test_what_is_not_a_number_is_seen(library: CpuLibrary, quantizes: bool, value: float) -> None:
    source, _ = weights_of(4, 32, 64)
    x = torch.randn(2, 64)
    x[1, 40] = value
    out = library.linear(library.pack(source), x, None, quantizes)
    assert bool(torch.isfinite(out[0]).all())
    assert not bool(torch.isfinite(out[1]).any())


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (4, 1, 48), (20, 2, 128), (6, 6, 16)])
def test_attention(
    kernels: Path, heads: int, kv_heads: int, dim: int, window: int | None, block_size: int, threads: int
) -> None:
    torch.manual_seed(heads)
    params = AttentionParams(dim**-0.5, window)
    transform = HeadTransform(torch.rand(dim) + 0.5, torch.rand(dim) + 0.5, 1e-6, _rope(dim))
    plan = plans(block_size)
    expected = attend(TorchAttention(), plan, (heads, kv_heads, dim), block_size, params, transform, torch.float32)
    library = CpuLibrary(kernels, threads)
    out = attend(CpuAttention(library), plan, (heads, kv_heads, dim), block_size, params, transform, torch.float32)
    for step, (ours, theirs) in enumerate(zip(out, expected, strict=True)):
        assert relative_error(ours, theirs) < 1e-5, f"step {step}"


def test_attention_on_a_cache_of_bfloat16(library: CpuLibrary) -> None:
    params, transform = AttentionParams(0.125), HeadTransform(None, None, 0.0, _rope(64))
    shape = (9, 3, 64)
    exact = attend(CpuAttention(library), plans(16), shape, 16, params, transform, torch.float32)
    rounded = attend(CpuAttention(library), plans(16), shape, 16, params, transform, torch.bfloat16)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert 0 < relative_error(ours, theirs) < 1e-2


def _rope(dim: int) -> Tensor:
    return rope_table({"rope_theta": 10000.0}, dim, 128, CPU)


def plans(block_size: int) -> list[Plan]:
    """Three sequences whose blocks lie apart: whole prompts, a prompt in pieces, decodes between them."""
    per_sequence = 96 // block_size
    blocks = torch.randperm(3 * per_sequence, generator=torch.Generator().manual_seed(1)).tolist()
    tables = [blocks[index * per_sequence : (index + 1) * per_sequence] for index in range(3)]
    admits = [
        Admit(slot, slot, Ids("i", [1] * length), length, 0, tables[slot], Sampling())
        for slot, length in ((0, 1), (1, 37), (2, 70))
    ]
    return [
        Plan(0, [], admits, [0, 1, 2], [1, 37, 30], [0, 0, 0], []),
        Plan(1, [], [], [2, 0, 1], [33, 1, 1], [0, 0, 0], []),
        Plan(2, [], [], [1, 2, 0], [1, 7, 1], [0, 0, 0], []),
        Plan(3, [], [], [0, 1, 2], [1, 1, 1], [0, 0, 0], []),
    ]


def attend(
    backend: AttentionBackend, steps: list[Plan], shape: tuple[int, int, int], block_size: int, params: AttentionParams,
    transform: HeadTransform, dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """What each step's tokens get, their heads drawn at random (the same for every backend)."""
    heads, kv_heads, dim = shape
    generator = torch.Generator().manual_seed(5)
    cache = KVCache([LayerShape(kv_heads, dim, dim)], 3 * 96 // block_size, block_size, dtype, CPU)
    batch = Batch(3, 96, block_size, CPU)
    results = []
    for plan in steps:
        inputs = batch.advance(plan)
        merged = torch.randn(len(inputs.positions), (heads + 2 * kv_heads) * dim, generator=generator)
        query, key, value = torch.split(merged, [heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
        results.append(
            backend.step(cache, batch, inputs)(
                0, query.view(-1, heads, dim), key.view(-1, kv_heads, dim), value.view(-1, kv_heads, dim), params,
                transform,
            )
        )  # fmt: skip
    return results


# -- threads and the compiler ------------------------------------------------------------------------------------------


def test_a_loop_on_many_threads_leaves_nothing_out(kernels: Path) -> None:
    """More threads than cores, and loops so short that threads come late to most of them."""
    library = CpuLibrary(kernels, 8)
    source, weights = weights_of(8, 512, 32)
    matrix, x = library.pack(source), torch.randn(1, 32)
    expected = library.linear(matrix, x, None, True)
    assert relative_error(expected, x @ weights.T) < OF_CODES
    for _ in range(500):
        assert torch.equal(library.linear(matrix, x, None, True), expected)


def test_the_library_is_compiled_once(kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    assert build(kernels.parent.parent, silent) == kernels
    with pytest.raises(NoKernelsError, match="could not be compiled"):
        build(tmp_path, silent)


def test_a_failing_compiler_is_named_and_leaves_nothing(
    kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NoKernelsError, match="false could not compile"):
        build(tmp_path, silent)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_compiler_means_a_remedy(kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> None:
        return None

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", nothing)
    monkeypatch.setattr("importlib.util.find_spec", nothing)
    with pytest.raises(NoKernelsError, match="pip install ziglang"):
        build(tmp_path, silent)


def test_an_old_processor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_build, "_processor_features", lambda: {"avx2", "fma"})
    with pytest.raises(NoKernelsError, match="f16c"):
        build(tmp_path, silent)
