"""Triton attention against float64, over odd lengths, head shapes, block sizes and windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ipc.codec import Ids
from ipc.messages import Admit, Plan, Sampling
from model_proc.attention.paged import AttentionParams, HeadTransform, KVCache, LayerShape
from model_proc.batch import Batch
from model_proc.models.rope import rope_table, rotate
from tests.model_proc.kernel_device import DEVICE, DTYPES, INTERPRETED, needs_triton, relative_error, tolerance

pytestmark = needs_triton

MAX_LEN = 1100
Lens = list[tuple[int, int]]  # of each sequence: tokens in the cache before the step, and computed in it
MIXED: Lens = [(0, 1), (300, 1), (0, 130), (64, 1), (63, 65), (129, 1), (5, 2), (15, 1), (0, 17)]
DECODES: Lens = [(context, 1) for context in (0, 1, 15, 16, 17, 63, 64, 65, 127, 300, 640)]


@dataclass
class Case:
    lens: Lens
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    norm: bool = True
    rope: bool = True


CASES = {
    "mixed": Case(MIXED),
    "decodes": Case(DECODES),
    "one head each": Case(MIXED, heads=2, kv_heads=2),
    "gqa 3": Case(DECODES, heads=6, kv_heads=2),
    "gqa 5, dim 128": Case(MIXED, heads=5, kv_heads=1, dim=128),
    "gqa 8, blocks of 64": Case(MIXED, heads=8, kv_heads=1, block_size=64),
    "dim 80, blocks of 32": Case(MIXED, dim=80, block_size=32),
    "dim 96": Case(DECODES, dim=96),
    "window": Case(MIXED, window=37),
    "window of decodes": Case(DECODES, window=100, dim=128),
    "softcap": Case(MIXED, softcap=5.0),
    "no norm": Case(MIXED, norm=False),
    "whole long prompts": Case([(0, 1024), (0, 990), (100, 200), (7, 1), (0, 1024), (0, 30)], dim=128),
    "one long prompt": Case([(0, 1024)], dim=128),
    "dim 256": Case(MIXED, dim=256, heads=2, kv_heads=1),
    "bare": Case(DECODES, norm=False, rope=False),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_float64(name: str, dtype: torch.dtype) -> None:
    from model_proc.attention.triton_paged import TritonAttention

    case = CASES[name]
    if case.dim == 256 and dtype == torch.float32:
        pytest.skip("too wide in float32 for the shared memory of a GPU; runs there in bfloat16")
    rng = np.random.default_rng(5)
    generator = torch.Generator(DEVICE).manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float32).to(dtype)

    per_sequence = -(-MAX_LEN // case.block_size)
    num_blocks = len(case.lens) * per_sequence
    cache = KVCache(
        [LayerShape(case.kv_heads, case.dim, case.dim)], num_blocks, case.block_size, dtype, DEVICE
    )  # fmt: skip
    batch = Batch(len(case.lens) + 2, MAX_LEN, case.block_size, DEVICE)
    blocks = rng.permutation(num_blocks).reshape(len(case.lens), -1)
    slots = rng.permutation(len(case.lens) + 2)[: len(case.lens)].tolist()
    admits = [
        Admit(slot, slot, Ids("i", [1] * (before + count)), before + count, before, blocks[index].tolist(), Sampling())
        for index, (slot, (before, count)) in enumerate(zip(slots, case.lens, strict=True))
    ]
    backend = TritonAttention(batch, DEVICE)
    backend.uses_dense = DEVICE.type == "cuda" and dtype != torch.float32 and not case.window and not case.softcap
    inputs = batch.advance(Plan(0, [], admits, slots, [count for _, count in case.lens], [0] * len(slots), []))
    params = AttentionParams(case.dim**-0.5, case.window, case.softcap)
    transform = HeadTransform(
        1 + 0.1 * random(case.dim) if case.norm else None,
        1 + 0.1 * random(case.dim) if case.norm else None,
        1e-6,
        rope_table({"rope_theta": 10000.0}, case.dim, MAX_LEN, DEVICE) if case.rope else None,
    )
    tokens = len(inputs.token_ids)
    width = (case.heads + 2 * case.kv_heads) * case.dim
    qkv = random(tokens, width)
    query, key, value = (
        part.view(tokens, -1, case.dim)
        for part in torch.split(qkv, [case.heads * case.dim, case.kv_heads * case.dim, case.kv_heads * case.dim], dim=1)
    )
    histories = []
    for index, (before, _) in enumerate(case.lens):
        rows = torch.from_numpy(blocks[index]).to(DEVICE)[:, None] * case.block_size
        rows = (rows + torch.arange(case.block_size, device=DEVICE)).reshape(-1)
        cache.keys[0][rows[:before]] = random(before, case.kv_heads, case.dim)
        cache.values[0][rows[:before]] = random(before, case.kv_heads, case.dim)
        histories.append(rows)
    step = backend.step(cache, batch, inputs)
    out = step(0, query, key, value, params, transform)
    again = step(0, query, key, value, params, transform)
    assert torch.equal(out, again), "the counters of a launch were not left as they were found"
    start = 0
    for index, (before, count) in enumerate(case.lens):
        positions = torch.arange(before, before + count)
        part = slice(start, start + count)
        start += count
        q = _transformed(query[part], transform.q_norm, transform, positions)
        k = _transformed(key[part], transform.k_norm, transform, positions)
        rows = histories[index]
        written = cache.keys[0][rows[before : before + count]]
        assert relative_error(written, k) < tolerance(dtype)
        assert torch.equal(cache.values[0][rows[before : before + count]], value[part])
        keys = torch.cat([cache.keys[0][rows[:before]].double().cpu(), k])
        values = cache.values[0][rows[: before + count]].double().cpu()
        expected = _attend(q, keys, values, positions, params)
        assert relative_error(out[part], expected) < tolerance(dtype), (index, before, count)


@pytest.mark.parametrize(
    ("key_dim", "value_dim", "dtype", "expected"),
    [
        (64, 64, torch.bfloat16, True), (80, 80, torch.float32, True), (256, 256, torch.bfloat16, True),
        (256, 256, torch.float32, False), (192, 128, torch.bfloat16, False), (20, 20, torch.float16, False),
    ],
)  # fmt: skip
def test_what_has_a_kernel(key_dim: int, value_dim: int, dtype: torch.dtype, expected: bool) -> None:
    from model_proc.attention.triton_paged import supports

    assert supports(LayerShape(1, key_dim, value_dim), dtype) is expected


def _transformed(heads: Tensor, norm: Tensor | None, transform: HeadTransform, positions: Tensor) -> Tensor:
    heads = heads.double().cpu()
    if norm is not None:
        heads = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + transform.eps) * norm.double().cpu()
    if transform.rope is not None:
        table = transform.rope.cpu()[positions]
        half = heads.shape[-1] // 2
        cos, sin = table[:, None, :half].double(), table[:, None, half:].double()
        first, second = heads[..., :half], heads[..., half:]
        heads = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return heads


def _attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, params: AttentionParams) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * params.scale
    if params.softcap:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    cached = torch.arange(k.shape[0])
    seen = cached[None, :] <= positions[:, None]
    if params.sliding_window:
        seen &= cached[None, :] > positions[:, None] - params.sliding_window
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def test_rotate_is_the_rotation_of_the_reference() -> None:
    heads = torch.randn(3, 2, 8)
    table = rope_table({"rope_theta": 100.0}, 8, 5, torch.device("cpu"))
    transform = HeadTransform(None, None, 0.0, table)
    expected = _transformed(heads, None, transform, torch.tensor([0, 2, 4]))
    assert relative_error(rotate(heads, table[[0, 2, 4]]), expected) < 1e-6
    assert INTERPRETED or DEVICE.type == "cuda"
