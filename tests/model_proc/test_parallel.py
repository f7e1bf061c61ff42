"""Two ranks that share a model give the tokens of one, and say so when they cannot share it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from ipc.config import ModelConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import Plan, Result, Sampling
from ipc.options import complete
from ipc.process import FatalError
from model_proc import load
from model_proc.describe import describe
from model_proc.files.checkpoint import resolve
from model_proc.ranks import Seat
from model_proc.torch_runner import TorchRunner
from tests.in_process import generate
from tests.model_proc.small_models import SHAPE, VOCAB_SIZE, write_model

SIZE = 2
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, odd vocabulary": ("qwen3", {"vocab_size": 257}),
    "qwen2": ("qwen2", {}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "phi3, merged weights": ("phi3", {"num_key_value_heads": 4}),
}


class Table:
    """Where ranks that are threads of one process lay what they have, for the others to see."""

    def __init__(self) -> None:
        self.barrier = Barrier(SIZE, timeout=60)
        self.laid: list[Any] = [None] * SIZE

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.laid[rank] = value
        self.barrier.wait()
        seen = list(self.laid)
        self.barrier.wait()
        return seen


class ThreadRanks:
    """The Ranks of a thread."""

    def __init__(self, rank: int, table: Table) -> None:
        self.rank = rank
        self.size = SIZE
        self.is_first = rank == 0
        self._table = table

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self._table.exchange(self.rank, tensor.clone())).sum(dim=0))

    def join_columns(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._table.exchange(self.rank, tensor), dim=1)

    def hear_first(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(self._table.exchange(self.rank, tensor.clone())[0])

    def least(self, value: int, device: torch.device) -> int:
        return int(min(self._table.exchange(self.rank, value)))


class TwoRanks:
    """A Runner that is two ranks, each in a thread of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        table = Table()
        monkeypatch.setattr(load, "join_ranks", lambda seat, device: ThreadRanks(seat.rank, table))
        config, files = configured(folder, tensor_parallel_size=SIZE, **options)
        self.runners = [TorchRunner(config, files, lambda *_: None, Seat(rank, SIZE, Path())) for rank in range(SIZE)]
        self._threads = ThreadPoolExecutor(SIZE)
        self.ready = self._both(lambda runner: runner.load())[0]

    def launch(self, plan: Plan) -> None:
        self._both(lambda runner: runner.launch(plan))

    def collect(self) -> Result:
        answer, silence = self._both(lambda runner: runner.collect())
        assert not silence.token_ids
        assert not silence.failed
        return answer

    @property
    def in_flight(self) -> int:
        return self.runners[0].in_flight

    def _both(self, work: Any) -> list[Any]:
        return list(self._threads.map(work, self.runners))


def configured(folder: Path, **options: Any) -> tuple[ModelConfig, Any]:
    values = {"dtype": "float32", "device": "cpu", "num_gpu_blocks_override": 40, "max_num_seqs": 8, **options}
    config = section(ModelConfig, complete(values))
    return config, describe(resolve(str(folder), folder, lambda *_: None, True), config)


def alone(folder: Path) -> tuple[TorchRunner, RunnerReady]:
    config, files = configured(folder)
    runner = TorchRunner(config, files, lambda *_: None)
    return runner, runner.load()


def tokens(runner: Any, ready: Any, temperature: float) -> list[list[int]]:
    rng = random.Random(3)
    prompts = [[rng.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in (1, 17, 40)]
    kinds = [
        Sampling(temperature=temperature, max_tokens=8, ignore_eos=True, seed=seed, top_k=50 if seed else 0)
        for seed in range(3)
    ]
    outcomes, _ = generate(runner, ready, prompts, kinds, max_num_batched_tokens=23)
    return [outcome.token_ids for outcome in outcomes]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_give_the_tokens_of_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, settings = VARIANTS[name]
    folder = write_model(family, tmp_path, **{**SHAPE, **settings})
    expected = [tokens(*alone(folder), temperature) for temperature in (0.0, 0.8)]
    both = TwoRanks(folder, monkeypatch)
    assert [tokens(both, both.ready, temperature) for temperature in (0.0, 0.8)] == expected
    whole, share = alone(folder)[0], both.runners[1]
    assert share._cache.keys[0].shape[1] * SIZE == whole._cache.keys[0].shape[1]


def test_a_rank_that_fails_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model("llama", tmp_path, **SHAPE)
    both = TwoRanks(folder, monkeypatch)

    def fail(inputs: Any) -> Tensor:
        raise RuntimeError("out of luck")

    for runner in both.runners:
        monkeypatch.setattr(runner, "_forward", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        tokens(both, both.ready, 0.0)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("llama", {"num_key_value_heads": 1}, "1 key-value heads"),
        ("llama", {"intermediate_size": 97}, "97 columns of its MLP"),
        ("gpt_neox", {}, "runs on transformers"),
    ],
)
def test_what_ranks_cannot_share_is_refused(
    family: str, settings: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(family, tmp_path, **{**SHAPE, **settings})
    with pytest.raises(FatalError, match=f"--tensor-parallel-size 2: .*{reason}"):
        TwoRanks(folder, monkeypatch)


def test_more_ranks_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    folder = write_model("llama", tmp_path, **SHAPE)
    with pytest.raises(FatalError, match="there are 1 GPUs here"):
        TwoRanks(folder, monkeypatch, device="cuda")
