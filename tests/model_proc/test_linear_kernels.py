"""The kernels around a layer's products against float64, and the sampling kernels against the sampler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model_proc.kernels.ops import Ops, TorchOps
from tests.model_proc.kernel_device import DEVICE, DTYPES, needs_triton, relative_error, tolerance

pytestmark = needs_triton

SHAPES = [(1, 64, 40), (1, 1500, 33), (3, 64, 40), (17, 1100, 48), (64, 256, 96)]  # tokens, in, out


def random(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("tokens", "k", "n"), SHAPES)
def test_operations_equal_float64(tokens: int, k: int, n: int, with_bias: bool, dtype: torch.dtype) -> None:
    from model_proc.kernels.triton_ops import TritonOps

    x, norm = random(dtype, tokens, k), 1 + 0.1 * random(dtype, k)
    weight, gate_up, hidden = random(dtype, n, k), random(dtype, 2 * n, k), random(dtype, tokens, n)
    bias = random(dtype, n) if with_bias else None
    wide_bias = random(dtype, 2 * n) if with_bias else None

    def compute(ops: Ops, *tensors: Tensor | None) -> list[Tensor]:
        x, norm, weight, gate_up, hidden, bias, wide_bias = tensors
        assert x is not None
        assert norm is not None
        assert weight is not None
        assert gate_up is not None
        assert hidden is not None
        return [
            ops.norm_linear(x, norm, 1e-5, weight, bias),
            ops.norm_gate_up(x, norm, 1e-5, gate_up, wide_bias),
            ops.add_linear(hidden.clone(), x, weight, bias, 0.5),
        ]

    inputs = (x, norm, weight, gate_up, hidden, bias, wide_bias)
    expected = compute(TorchOps(), *(None if tensor is None else tensor.double().cpu() for tensor in inputs))
    for out, right in zip(compute(TritonOps(), *inputs), expected, strict=True):
        assert relative_error(out, right) < (3e-4 if dtype == torch.float32 and tokens > 1 else tolerance(dtype))


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_embedding_rows(scale: float) -> None:
    from model_proc.kernels.linear_kernels import embed_rows

    table = random(torch.float32, 50, 48)
    ids = torch.tensor([0, 49, 7], device=DEVICE)
    assert torch.equal(embed_rows(table, ids, scale), table[ids] * scale)


def test_sampling_is_greedy_or_inverts_the_cumulative_distribution() -> None:
    from model_proc.kernels.sampling_kernels import sample_plain

    vocab, rows = 9001, 12
    logits = random(torch.float32, rows, vocab) * 3
    logits[3, 5000:] = float("-inf")
    logits[4] = float("-inf")
    logits[5, 17] = float("nan")
    logits[6, 17] = float("inf")
    temperatures = torch.tensor([0.0, 1.0, 0.6, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0, 1.0, 0.001], device=DEVICE)
    numbers = torch.tensor([0.5, 0.0, 0.3, 1 - 2**-24, 0.5, 0.5, 0.5, 0.9, 0.99, 1 - 2**-24, 0.25, 0.5], device=DEVICE)
    slots = torch.arange(rows, device=DEVICE).flip(0)
    last_token = torch.full((rows + 1,), -1, device=DEVICE)
    tokens = sample_plain(logits, temperatures, numbers, slots, last_token)
    assert (tokens >= 0).tolist() == [row not in (4, 5, 6) for row in range(rows)]
    assert torch.equal(last_token[slots], tokens.clamp(min=0))
    assert last_token[rows] == -1
    for row in range(rows):
        if tokens[row] < 0:
            continue
        if temperatures[row] == 0:
            assert tokens[row] == logits[row].argmax()
            continue
        weights = torch.softmax(logits[row].double().cpu() / float(temperatures[row]), dim=0)
        ends = weights.cumsum(0)
        token, number = int(tokens[row]), float(numbers[row])
        assert weights[token] > 0
        assert ends[token] - weights[token] - 1e-5 <= number <= ends[token] + 1e-5, row


def test_tokens_come_from_the_host_or_from_the_slot() -> None:
    from model_proc.kernels.sampling_kernels import resolve_tokens

    last_token = torch.tensor([10, 11, 12, 13], device=DEVICE)
    given = torch.tensor([5, -1, 0, -1], dtype=torch.int32, device=DEVICE)
    slots = torch.tensor([0, 2, 1, 3], dtype=torch.int32, device=DEVICE)
    assert resolve_tokens(given, slots, last_token).tolist() == [5, 12, 0, 13]
