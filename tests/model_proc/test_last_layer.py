"""Behind its last attention, the decoder computes no token that nobody samples from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipc.messages import Sampling
from model_proc.attention.paged import AttentionStep
from model_proc.models.decoder import Decoder
from tests.in_process import generate
from tests.model_proc.small_models import SHAPE, VOCAB_SIZE, write_model
from tests.model_proc.test_native_models import load


def watch(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each layer's MLP is given from now on."""
    counts: list[int] = []
    compute = decoder.ops.norm_gate_up

    def norm_gate_up(x: Tensor, *args: object) -> Tensor:
        counts.append(len(x))
        return compute(x, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder.ops, "norm_gate_up", norm_gate_up)
    return counts


@pytest.mark.parametrize("chunk", [64, 7])
def test_only_what_is_sampled_passes_the_last_mlp(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, ready = load(write_model("llama", tmp_path, **SHAPE), max_num_batched_tokens=chunk)
    decoder = runner._model
    assert isinstance(decoder, Decoder)
    prompt = [(3 * index) % VOCAB_SIZE for index in range(20)]
    sampling = [Sampling(temperature=0.0, max_tokens=2, ignore_eos=True)]
    counts = watch(decoder, monkeypatch)
    generate(runner, ready, [prompt], sampling, max_num_batched_tokens=chunk, enable_prefix_caching=False)
    others = decoder.settings.num_layers - 1
    if chunk == 64:
        assert counts == [20] * others + [1] + [1] * (others + 1)
    else:  # nobody samples behind the first two chunks
        assert counts == [7] * others + [7] * others + [6] * others + [1] + [1] * (others + 1)


def test_the_logits_are_those_of_all_tokens(tmp_path: Path) -> None:
    runner, _ = load(write_model("llama", tmp_path, **SHAPE))
    decoder = runner._model
    assert isinstance(decoder, Decoder)
    token_ids = torch.arange(9) % VOCAB_SIZE
    rows = torch.tensor([8, 2])
    with torch.inference_mode():
        everything = decoder.forward(token_ids, token_ids, None, Alone())
        assert torch.allclose(decoder.forward(token_ids, token_ids, rows, Alone()), everything[rows], atol=1e-5)
        assert decoder.forward(token_ids, token_ids, rows[:0], Alone()).shape == (0, VOCAB_SIZE)


class Alone(AttentionStep):
    """Every token sees itself, and nothing else."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
