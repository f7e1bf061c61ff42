"""Logits in bfloat16 are near those of a higher precision, and on a GPU too the prefix cache changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark.shapes import SHAPES, write_shape
from ipc.codec import Ids
from ipc.messages import Admit, Plan, Sampling
from model_proc.models.decoder import Decoder
from model_proc.torch_runner import TorchRunner
from tests.in_process import generate
from tests.model_proc.kernel_device import DEVICE, relative_error
from tests.model_proc.small_models import SHAPE, VOCAB_SIZE, write_model
from tests.model_proc.test_native_models import load

on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="runs on a GPU")

LENGTHS = (3, 64, 190)
BLOCKS = 16  # of each sequence


def write(shape: dict[str, Any], folder: Path) -> Path:
    """A model of this shape, to be filled with random weights, and any tokenizer."""
    write_shape("0.6b", folder)
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def logits(runner: TorchRunner) -> list[Tensor]:
    """Those of a prefill of prompts of all LENGTHS, and of the decode behind it."""
    slots = list(range(len(LENGTHS)))
    prompts = [[(7 * index + 3 * length) % VOCAB_SIZE for index in range(length)] for length in LENGTHS]
    admits = [
        Admit(
            slot, slot, Ids("i", prompt), len(prompt), 0, list(range(slot * BLOCKS, (slot + 1) * BLOCKS)),
            Sampling(temperature=0.0),
        )
        for slot, prompt in enumerate(prompts)
    ]  # fmt: skip
    found = []
    with torch.inference_mode():
        for step, plan in enumerate(
            (Plan(0, [], admits, slots, list(LENGTHS), [0] * 3, []), Plan(1, [], [], slots, [1] * 3, [0] * 3, []))
        ):
            inputs = runner._batch.advance(plan)
            runner._batch.last_token[: len(slots)] = 11 + step  # the same in every precision
            forward = runner._forward(inputs)
            assert forward is not None
            found.append(forward.logits.clone())
    return found


def weights(runner: TorchRunner) -> dict[str, Tensor]:
    assert isinstance(runner._model, Decoder)
    return {name: place.tensor for name, place in runner._model.weights.places.items()}


SMALL = SHAPES["0.6b"] | {
    "vocab_size": VOCAB_SIZE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64,
    "num_attention_heads": 8, "num_key_value_heads": 4, "eos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["small", pytest.param("0.6b", marks=on_gpu)])
def test_bfloat16_logits_are_near_those_of_a_higher_precision(name: str, tmp_path: Path) -> None:
    folder = write(SMALL if name == "small" else SHAPES[name], tmp_path)
    options: dict[str, Any] = {
        "load_format": "dummy", "max_model_len": 256, "device": DEVICE.type, "max_num_seqs": 4,
        "num_gpu_blocks_override": BLOCKS * len(LENGTHS),
    }  # fmt: skip
    backend = "triton" if DEVICE.type == "cuda" else "torch"
    fast, _ = load(folder, **options, dtype="bfloat16", attention_backend=backend)
    exact, _ = load(folder, **options, dtype="float32", attention_backend="torch")
    for place, given in zip(weights(exact).values(), weights(fast).values(), strict=True):
        place.copy_(given)
    for kind, out, expected in zip(("prefill", "decode"), logits(fast), logits(exact), strict=True):
        error = relative_error(out, expected)
        print(f"{name}, {kind}: {error:.1e}")
        assert error < 1e-2, kind


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_prefix_cache_changes_nothing(dtype: str, tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path, **SHAPE)
    runner, ready = load(folder, device="cuda", dtype=dtype)
    shared = [(5 * index) % VOCAB_SIZE for index in range(64)]
    prompts = [shared + [index] * (index + 1) for index in range(6)]
    sampling = [Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)] * len(prompts)
    found, scheduler = generate(runner, ready, prompts, sampling, max_num_seqs=1)
    assert scheduler.residents.prefix_hits > 0
    alone, _ = generate(runner, ready, prompts, sampling, max_num_seqs=1, enable_prefix_caching=False)
    assert [outcome.token_ids for outcome in found] == [outcome.token_ids for outcome in alone]
