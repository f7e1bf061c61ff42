"""Log-probabilities and embeddings of prompts equal those of `transformers`, however the work is cut and mixed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ipc.config import ModelConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import LENGTH, Sampling
from ipc.options import complete
from model_proc.describe import describe
from model_proc.files.checkpoint import resolve
from model_proc.torch_runner import TorchRunner
from tests.in_process import Outcome, generate
from tests.model_proc.small_models import VOCAB_SIZE, save

LENGTHS = (1, 2, 16, 17, 33, 48)
MAX_TOKENS = 18
# The output layers of these differ: our own, our own with a divisor, with capped logits and without a norm's name.
FAMILIES = ("llama", "granite", "gemma2", "gpt_neox")


@dataclass
class Model:
    runner: TorchRunner
    ready: RunnerReady
    reference: Any
    prompts: list[list[int]]

    def run(self, sampling: Sampling, preempts: bool = False, **options: Any) -> list[Outcome]:
        outcomes, scheduler = generate(self.runner, self.ready, self.prompts, [sampling] * len(LENGTHS), **options)
        assert scheduler.residents.pool.num_in_use == 0
        assert (scheduler.planner.preemptions > 0) == preempts
        return outcomes

    def logprobs(self, token_ids: list[int]) -> Tensor:
        """[tokens, vocabulary] what the reference expects behind each token."""
        with torch.no_grad():
            return self.reference(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1)

    def hidden(self, token_ids: list[int]) -> Tensor:
        """[tokens, hidden size] behind the last norm."""
        with torch.no_grad():
            return self.reference.base_model(torch.tensor([token_ids])).last_hidden_state[0]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = save(request.param, tmp_path_factory.mktemp("model") / request.param)
    options = {"dtype": "float32", "device": "cpu", "num_gpu_blocks_override": 40, "max_num_seqs": 8}
    config = section(ModelConfig, complete(options))
    files = describe(resolve(str(folder), folder.parent, lambda *_: None), config)
    runner = TorchRunner(config, files, lambda *_: None)
    ready = runner.load()
    rng = random.Random(3)
    prompts = [[rng.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]
    # The last two begin alike: without care the second would be read from the cache of the first.
    prompts[5][:33] = prompts[4]
    yield Model(runner, ready, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), prompts)
    torch.set_grad_enabled(True)


WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in chunks": {"max_num_batched_tokens": 7},
    "one after the other": {"max_num_seqs": 1},
    "preempted": {"num_blocks": 6, "max_num_batched_tokens": 20},
    "one step at a time": {"pipeline_depth": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_prompt_logprobs_equal_log_softmax_of_transformers(model: Model, way: str) -> None:
    wanted = Sampling(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, prompt_logprobs=3, logprobs=2)
    plain = Sampling(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    without = model.run(plain)
    outcomes = model.run(wanted, preempts=way == "preempted", **WAYS[way])
    for prompt, outcome, other in zip(model.prompts, outcomes, without, strict=True):
        assert outcome.token_ids == other.token_ids
        assert outcome.cached_tokens == 0
        expected = model.logprobs(prompt + outcome.token_ids)
        assert outcome.prompt_logprobs[0] == [(prompt[0], 0.0)]
        _check(outcome.prompt_logprobs[1:], prompt[1:], expected[: len(prompt) - 1], 3)
        _check(outcome.logprobs, outcome.token_ids, expected[len(prompt) - 1 : -1], 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_equal_hidden_states_of_transformers(model: Model, way: str, pooling: str) -> None:
    outcomes = model.run(Sampling(prompt_only=True, pooling=pooling), **WAYS[way])
    for prompt, outcome in zip(model.prompts, outcomes, strict=True):
        hidden = model.hidden(prompt)
        expected = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
        assert (outcome.reason, outcome.token_ids) == (LENGTH, [])
        torch.testing.assert_close(torch.tensor(outcome.embedding), expected, atol=1e-4, rtol=1e-3)


def test_a_prompt_alone_samples_nothing_and_is_found_in_the_cache(model: Model) -> None:
    sampling = [Sampling(prompt_only=True, prompt_logprobs=0), Sampling(prompt_only=True), Sampling(max_tokens=2)]
    prompts = [model.prompts[5]] * 3
    outcomes, scheduler = generate(model.runner, model.ready, prompts, sampling, max_num_seqs=1)
    assert [outcome.cached_tokens for outcome in outcomes] == [0, 32, 32]
    assert [len(outcome.token_ids) for outcome in outcomes] == [0, 0, 2]
    assert [len(outcome.prompt_logprobs) for outcome in outcomes] == [48, 0, 0]
    assert scheduler.residents.pool.num_in_use == 0


def test_readers_and_others_share_their_steps(model: Model) -> None:
    """Nobody's tokens depend on what a neighbour wants to know."""
    kinds = [
        Sampling(temperature=0.8, seed=5, max_tokens=MAX_TOKENS, ignore_eos=True),
        Sampling(temperature=0.0, max_tokens=1, prompt_logprobs=20),
        Sampling(prompt_only=True, pooling="mean"),
        Sampling(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True),
    ]
    prompts = [model.prompts[4]] * len(kinds)
    together, _ = generate(model.runner, model.ready, prompts, kinds, max_num_batched_tokens=16)
    for params, outcome in zip(kinds, together, strict=True):
        [alone], _ = generate(model.runner, model.ready, prompts[:1], [params], enable_prefix_caching=False)
        assert outcome.token_ids == alone.token_ids
        values = [row[0][1] for row in outcome.prompt_logprobs]
        assert values == pytest.approx([row[0][1] for row in alone.prompt_logprobs], abs=1e-4)
        assert outcome.embedding == pytest.approx(alone.embedding, abs=1e-4)


def test_a_prompt_that_cannot_be_read_fails_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("out of luck")

    kinds = [Sampling(temperature=0.0, max_tokens=MAX_TOKENS), Sampling(max_tokens=2, prompt_logprobs=0)]
    [expected], _ = generate(model.runner, model.ready, model.prompts[:1], kinds[:1])
    monkeypatch.setattr(model.runner._reader, "_logprobs", refuse)
    outcomes, scheduler = generate(model.runner, model.ready, model.prompts[:2], kinds)
    assert outcomes[0].token_ids == expected.token_ids
    assert outcomes[1].refusal is not None
    assert "the reading of this prompt failed: ValueError" in outcomes[1].refusal.message
    assert scheduler.residents.pool.num_in_use == 0


def _check(rows: list[list[tuple[int, float]]], token_ids: list[int], expected: Tensor, num_top: int) -> None:
    assert [row[0][0] for row in rows] == token_ids
    for row, values in zip(rows, expected, strict=True):
        assert [token for token, _ in row[1:]] == values.topk(num_top).indices.tolist()
        for token, value in row:
            assert value == pytest.approx(float(values[token]), abs=1e-3)
